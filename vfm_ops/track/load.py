"""A spec in, a tracker out; and the image encoder in the fastest faithful runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vfm_ops.errors import UsageError
from vfm_ops.torch_state import keeps_torch_state

if TYPE_CHECKING:
    from vfm_ops.models.runtime import Precision, RuntimeName
    from vfm_ops.track.network import ImageEncoder, Sam2Network
    from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

Dtype = Literal["auto", "float32", "bfloat16"]


@keeps_torch_state()
def load_network(spec: str, *, device: str = "auto", dtype: Dtype = "auto") -> Sam2Network:
    """A SAM 2 / 2.1 video checkpoint: `sam2:facebook/sam2.1-hiera-tiny`, a hub id, or a folder.

    device: auto, cpu, cuda or cuda:N. dtype: auto is float32 on a CPU and bfloat16 on a card. Raises UsageError for a
    checkpoint of another architecture, WeightsUnavailable when the weights are not to be had.
    """
    import torch
    from transformers import Sam2VideoModel

    from vfm_ops.models.checkpoint import processor_settings
    from vfm_ops.models.device import resolve_device
    from vfm_ops.models.resolve import find_checkpoint
    from vfm_ops.models.weights import load_transformers
    from vfm_ops.track.network import IMAGENET_MEAN, IMAGENET_STD, Sam2Network

    folder = find_checkpoint(spec, "track").folder
    where = resolve_device(device)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"dtype {dtype!r} is unknown: use auto, float32 or bfloat16")
    low = dtype == "bfloat16" or (dtype == "auto" and where != "cpu")
    settings = processor_settings(folder)
    return Sam2Network(
        load_transformers(Sam2VideoModel, folder),
        where,
        torch.bfloat16 if low else torch.float32,
        settings.get("image_mean", IMAGENET_MEAN),
        settings.get("image_std", IMAGENET_STD),
    )


def load_tracker(
    spec: str,
    settings: TrackerSettings | None = None,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    runtime: RuntimeName = "torch",
    precision: Precision = "auto",
) -> Sam2Tracker:
    """A tracker of one video on a checkpoint (see `load_network`). runtime, precision: of the image encoder."""
    from vfm_ops.track.tracker import Sam2Tracker

    network = load_network(spec, device=device, dtype=dtype)
    encoder = None if runtime == "torch" and precision == "auto" else compile_image_encoder(network, runtime, precision)
    return Sam2Tracker(network, settings, encoder)


def compile_image_encoder(
    network: Sam2Network, runtime: RuntimeName = "auto", precision: Precision = "auto"
) -> ImageEncoder:
    """The network's image encoder as the fastest faithful callable on its device; to be given to `Sam2Tracker`.

    The choice and the converted graph are remembered by the weights' fingerprint. Masks then follow float32's as closely
    as the runtime's own bar (cosine 0.995) makes them; `precision="exact"` keeps float32.
    """
    import numpy as np
    from torch import Tensor

    from vfm_ops.models.runtime import compile_module
    from vfm_ops.models.torch_runtime import TorchModule

    example = np.zeros((1, network.image_size, network.image_size, 3), np.uint8)
    compiled = compile_module(
        network.image_encoder,
        example,
        device=str(network.device),
        runtime=runtime,
        precision=precision,
        cache_key=f"sam2-image-encoder-{network.fingerprint()}-{network.image_size}",
        static_batch=1,
    )

    if isinstance(compiled, TorchModule):  # maps stay on the card, where the rest of the network wants them
        return compiled.on_device

    def encode(squares: Tensor) -> tuple[np.ndarray, ...]:
        return tuple(compiled(squares.cpu().numpy()))

    return encode
