"""Texts to token ids of a fixed length, with the `tokenizers` library alone where the checkpoint has a tokenizer.json."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vfm_ops.embed.checkpoint import Checkpoint
from vfm_ops.errors import UsageError

Tokenize = Callable[[list[str]], np.ndarray]
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def has_text_tower(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint embeds texts into the space of its images."""
    return checkpoint.kind == "openclip" or checkpoint.config.get("model_type") in ("clip", "siglip", "siglip2")


def text_length(checkpoint: Checkpoint) -> int:
    """Tokens that the text tower takes."""
    if checkpoint.kind == "openclip":
        return int(checkpoint.config["model_cfg"].get("text_cfg", {}).get("context_length", 77))
    default = 77 if checkpoint.config["model_type"] == "clip" else 64
    return int((checkpoint.config.get("text_config") or {}).get("max_position_embeddings", default))


def canonical(text: str, model_type: str) -> str:
    """What a text tower's own preparation does before tokens: SigLIP drops punctuation and case, SigLIP 2 case only."""
    if model_type == "siglip":
        return " ".join(text.translate(_NO_PUNCTUATION).lower().split())
    return text.lower() if model_type == "siglip2" else text


def tokenizer_of(checkpoint: Checkpoint) -> Tokenize:
    """texts -> ids (B, L) int64, padded and truncated to the tower's length as the checkpoint's own tokenizer does.

    Raises UsageError when the checkpoint has no tokenizer files.
    """
    length = text_length(checkpoint)
    if checkpoint.kind == "openclip":
        return _openclip_tokenizer(checkpoint, length)
    path = checkpoint.folder / "tokenizer.json"
    if not path.exists():
        return _transformers_tokenizer(checkpoint, length)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    settings = _json(checkpoint.folder / "tokenizer_config.json")
    pad = _pad_id(tokenizer, settings, checkpoint.folder)
    left = settings.get("padding_side") == "left"
    kind = str(checkpoint.config["model_type"])

    def tokenize(texts: list[str]) -> np.ndarray:
        ids = np.full((len(texts), length), pad, np.int64)
        for row, encoded in zip(ids, tokenizer.encode_batch([canonical(t, kind) for t in texts]), strict=True):
            count = len(encoded.ids)
            row[slice(length - count, None) if left else slice(0, count)] = encoded.ids
        return ids

    return tokenize


def _pad_id(tokenizer: Any, settings: dict[str, Any], folder: Path) -> int:
    token = settings.get("pad_token") or _json(folder / "special_tokens_map.json").get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(token) if token else None
    return int(found) if found is not None else 0


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _transformers_tokenizer(checkpoint: Checkpoint, length: int) -> Tokenize:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"{checkpoint.folder} has no tokenizer.json: copy the model's tokenizer files there"
        ) from error

    def tokenize(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True)["input_ids"]
        return np.asarray(ids, np.int64)

    return tokenize


def _openclip_tokenizer(checkpoint: Checkpoint, length: int) -> Tokenize:
    text = checkpoint.config["model_cfg"].get("text_cfg", {})
    if "hf_tokenizer_name" in text:
        from open_clip.tokenizer import HFTokenizer

        tokenizer: Any = HFTokenizer(str(checkpoint.folder), context_length=length, **text.get("tokenizer_kwargs", {}))
    else:
        from open_clip.tokenizer import SimpleTokenizer

        tokenizer = SimpleTokenizer(context_length=length)
    return lambda texts: tokenizer(texts).numpy().astype(np.int64)
