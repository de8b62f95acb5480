"""Loading weights whole or not at all: nothing is unpickled, no remote code runs, and nothing is left at random."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vfm_ops.errors import UsageError, WeightsUnavailable


def read_state_dict(*paths: Path) -> dict[str, Tensor]:
    """Tensors of weight files by name, from safetensors or torch.load(weights_only=True).

    Raises WeightsUnavailable for a damaged file, UsageError for one that holds Python objects or no tensors.
    """
    state: dict[str, Tensor] = {}
    for path in paths:
        state |= _tensors(path)
    return state


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} can't be read as weights: it holds Python objects, which are never unpickled here: where you trust it, "
            "save its 'state_dict' with safetensors.torch.save_file and use that file "
            f"({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        first = [*str(error).splitlines(), type(error).__name__][0]
        raise WeightsUnavailable(f"{path} can't be read as weights: {first}: fetch it again") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"{path} can't be read as weights: it holds no state dict of tensors")
    return content


def fit(model: nn.Module, state: dict[str, Tensor], folder: Path, settings: str) -> None:
    """Fills a model with exactly these weights. Raises UsageError where they are of another architecture than `settings`."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        second = [*str(error).splitlines(), ""][1].strip()[:200]
        raise UsageError(f"the weights in {folder} do not fit {settings}: {second}") from error


def load_transformers(
    model_class: Any, folder: Path, config: Any = None, *, may_lack: tuple[str, ...] = (), **settings: Any
) -> Any:
    """A transformers model in eval mode and float32, every weight of it from the folder.

    config: where the model is to be built by another configuration than its config.json. may_lack: prefixes of weights
    that are not used. settings: override the configuration. Raises WeightsUnavailable when the files can't be read,
    UsageError when they lack some of the model's weights.
    """
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its load report is told below, as one sentence
    try:
        model, info = model_class.from_pretrained(
            folder, config=config, output_loading_info=True, local_files_only=True, dtype=torch.float32, **settings
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsUnavailable(f"transformers can't load {folder}: {first}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    missing = sorted(k for k in info["missing_keys"] if not k.startswith(may_lack or ("\0",)))
    if missing:
        raise UsageError(f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}: fetch it again")
    return model.eval()


def load_processor(processor_class: Any, folder: Path) -> Any:
    """The checkpoint's own tokenizer and image processor. Raises WeightsUnavailable when their files are missing."""
    try:
        return processor_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsUnavailable(
            f"{folder} lacks the processor's files (tokenizer.json, preprocessor_config.json): "
            f"{str(error).splitlines()[0]}"
        ) from error
