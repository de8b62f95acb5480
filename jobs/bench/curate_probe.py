"""Does balance teach? Long-tailed Fashion-MNIST, 2,000 items selected without labels, a linear probe on the test set."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vfm_ops.curate.balance import sample_balanced
from vfm_ops.curate.hierarchy import HierarchyOptions, build_hierarchy
from vfm_ops.curate.kmeans import KMeansOptions

FOLDER = Path("/usr/share/datasets/fashion-mnist")
TARGET, CLASSES = 2000, 10


def long_tail_probe(quick: bool) -> list[dict[str, Any]]:
    """Rows: entropy of the selection's classes over uniform's; the probe's gain over random items, in standard errors."""
    if not FOLDER.is_dir():
        return [
            {"what": "long-tailed Fashion-MNIST", "note": "needs Debian's dataset-fashion-mnist: apt-get install it"}
        ]
    seeds = 2 if quick else 5
    images, label = _read("train")
    test_images, test_label = _read("t10k")
    chosen = long_tail(label, *((600, 6) if quick else (6000, 60)))
    target = TARGET // 10 if quick else TARGET
    x_ND, y_N = _features(images[chosen]), label[chosen]
    test = _features(test_images[: 1000 if quick else None])
    entropies, gains, scores = [], [], []
    for seed in range(seeds):
        levels = (len(x_ND) // 15, len(x_ND) // 150)
        options = HierarchyOptions(levels, 5, kmeans=KMeansOptions(metric="cosine", iterations=30, seed=seed))
        rows = sample_balanced(build_hierarchy(x_ND, options), target, seed=seed).rows
        plain = np.random.default_rng(seed).choice(len(x_ND), target, replace=False)
        pair = [_probe(x_ND[r], y_N[r], test, test_label[: len(test)]) for r in (rows, plain)]
        entropies.append(class_entropy(y_N[rows]))
        scores.append(pair)
        gains.append(pair[0] - pair[1])
    error = float(np.std(gains, ddof=1) / np.sqrt(seeds))
    ours, random = np.mean(scores, axis=0)
    return [
        {
            "what": "long tail, class entropy of the selection",
            "ours": float(np.mean(entropies)),
            "bar": "at least 0.95",
        },
        {
            "what": "long tail, linear probe",
            "ours": float(ours),
            "reference": float(random),
            "ratio": float(np.mean(gains)) / max(error, 1e-9),
            "bar": "gain above 2 standard errors",
            "note": "ratio: the gain over random items, in standard errors",
        },
    ]


def class_entropy(label_N: np.ndarray) -> float:
    """Entropy of the classes over that of a uniform distribution, 0 to 1."""
    share = np.bincount(label_N, minlength=CLASSES) / len(label_N)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum() / np.log(CLASSES))


def long_tail(label_N: np.ndarray, most: int, least: int) -> np.ndarray:
    """Rows of classes whose sizes fall geometrically from `most` to `least`, sorted."""
    sizes = np.geomspace(most, least, CLASSES).round().astype(int)
    return np.sort(np.concatenate([np.flatnonzero(label_N == c)[:size] for c, size in enumerate(sizes)]))


def _read(split: str) -> tuple[np.ndarray, np.ndarray]:
    raw = [
        gzip.decompress((FOLDER / f"{split}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1")
    ]
    return (
        np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(raw[1], np.uint8, offset=8).astype(np.int64),
    )


def _features(images: np.ndarray) -> np.ndarray:
    """Unit vectors of the offline default embedder, float32 (N, D)."""
    from vfm_ops.embed.embedder import default_embedder_spec, load_embedder

    embedder = load_embedder(default_embedder_spec())
    parts = []
    for low in range(0, len(images), 32):
        views = [embedder.view.apply(cv2.cvtColor(i, cv2.COLOR_GRAY2RGB)) for i in images[low : low + 32]]
        parts.append(embedder.embed_images(np.stack(views)))
    return np.concatenate(parts).astype(np.float32)


def _probe(x_ND: np.ndarray, y_N: np.ndarray, test_MD: np.ndarray, test_y_M: np.ndarray) -> float:
    """Accuracy of a linear classifier: ridge regression on one-hot classes, standardised features (closed form)."""
    mean_D, std_D = x_ND.mean(axis=0), x_ND.std(axis=0) + 1e-6
    a_NE = np.pad((x_ND - mean_D) / std_D, ((0, 0), (0, 1)), constant_values=1.0).astype(np.float64)
    penalty = 0.1 * len(a_NE) * np.eye(a_NE.shape[1])
    weight_EC = np.linalg.solve(a_NE.T @ a_NE + penalty, a_NE.T @ np.eye(CLASSES)[y_N])
    b_ME = np.pad((test_MD - mean_D) / std_D, ((0, 0), (0, 1)), constant_values=1.0)
    return float(((b_ME @ weight_EC).argmax(axis=1) == test_y_M).mean())
