"""Tiny, randomly initialised checkpoints of every detector, and pictures to show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jobs.bench.random_detectors import WORDS, clip_tokenizer, clip_vocabulary_size, save_random, spread


def grounding_dino(folder: Path, max_text_len: int = 64) -> Path:
    return save_random("grounding-dino", folder, max_text_len=max_text_len)


def frames(sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    """Random pictures of 8 x 8 blocks, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        pictures.append(np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]))
    return pictures


__all__ = ["WORDS", "clip_tokenizer", "clip_vocabulary_size", "frames", "grounding_dino", "save_random", "spread"]
