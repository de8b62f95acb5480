"""Texts to token ids of a fixed length, with the `tokenizers` library alone where the checkpoint has a tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vfm_ops.embed.family import TextSide, Tokenize, embedding_family
from vfm_ops.errors import UsageError
from vfm_ops.models.checkpoint import Checkpoint


def has_text_tower(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint embeds texts into the space of its images."""
    return embedding_family(checkpoint).text is not None


def text_length(checkpoint: Checkpoint) -> int:
    """Tokens that the text tower takes."""
    return _text_side(checkpoint).length(checkpoint)


def _text_side(checkpoint: Checkpoint) -> TextSide:
    text = embedding_family(checkpoint).text
    assert text is not None, "asked only where has_text_tower"
    return text


def tokenizer_of(checkpoint: Checkpoint) -> Tokenize:
    """texts -> ids (B, L) int64, padded and truncated to the tower's length as the checkpoint's own tokenizer does.

    Raises UsageError when the checkpoint has no tokenizer files.
    """
    text = _text_side(checkpoint)
    length = text.length(checkpoint)
    if text.tokenizer is not None:
        return text.tokenizer(checkpoint, length)
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

    def tokenize(texts: list[str]) -> np.ndarray:
        ids = np.full((len(texts), length), pad, np.int64)
        for row, encoded in zip(
            ids, tokenizer.encode_batch([text.canonical(t, checkpoint.model_type) for t in texts]), strict=True
        ):
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
