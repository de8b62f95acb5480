"""Does balance teach? Long-tailed Fashion-MNIST, 2,000 items selected without labels, a linear probe on the test set."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vfm_ops.curate.balance import sample_balanced
from vfm_ops.curate.blocks import local_map
from vfm_ops.curate.classes import balanced_rows, classify, fit_discriminant
from vfm_ops.curate.hierarchy import HierarchyOptions, build_hierarchy
from vfm_ops.curate.kmeans import KMeansOptions

FOLDER = Path("/usr/share/datasets/fashion-mnist")
TARGET, CLASSES, SEEDS_A_CLASS = 2000, 10, 50


def long_tail_probe(quick: bool) -> list[dict[str, Any]]:
    """Rows: entropy of the selection's classes over uniform's; the probe's gain over random items, in standard errors.

    Each for a balanced sample, which no label enters, and for one retrieved by the classes of a seed set: SEEDS_A_CLASS items
    of each, out of the pool itself.
    """
    if not FOLDER.is_dir():
        return [
            {"what": "long-tailed Fashion-MNIST", "note": "needs Debian's dataset-fashion-mnist: apt-get install it"}
        ]
    images, label = _read("train")
    test_images, test_label = _read("t10k")
    chosen = long_tail(label, *((600, 6) if quick else (6000, 60)))
    target = TARGET // 10 if quick else TARGET
    x_ND, y_N = _features(images[chosen]), label[chosen]
    test_MD = _features(test_images[: 1000 if quick else None])

    def score(rows: np.ndarray) -> float:
        return _probe(x_ND[rows], y_N[rows], test_MD, test_label[: len(test_MD)])

    ways = {
        "balanced": lambda seed: _balanced(x_ND, target, seed),
        "by classes of curated seeds": lambda seed: _retrieved(
            x_ND, y_N, target, seed, SEEDS_A_CLASS // (10 if quick else 1)
        ),
    }
    seeds = range(2 if quick else 5)
    plain = [score(np.random.default_rng(s).choice(len(x_ND), target, replace=False)) for s in seeds]
    rows = []
    for name, select in ways.items():
        selections = [select(s) for s in seeds]
        ours = [score(rows) for rows in selections]
        entropies = [class_entropy(y_N[rows]) for rows in selections]
        rows += _rows(name, ours, plain, entropies)
    return rows


def _rows(name: str, ours: list[float], plain: list[float], entropies: list[float]) -> list[dict[str, Any]]:
    gains = np.subtract(ours, plain)
    error = float(np.std(gains, ddof=1) / np.sqrt(len(gains)))
    return [
        {"what": f"long tail, {name}: class entropy", "ours": float(np.mean(entropies)), "bar": "at least 0.95"},
        {
            "what": f"long tail, {name}: linear probe",
            "ours": float(np.mean(ours)),
            "reference": float(np.mean(plain)),
            "ratio": float(np.mean(gains)) / max(error, 1e-9),
            "bar": "gain above 2 standard errors",
            "note": "ratio: the gain over random items, in standard errors",
        },
    ]


def _balanced(x_ND: np.ndarray, target: int, seed: int) -> np.ndarray:
    """Rows of a balanced sample. Many short resamplings: what is common is flattened more than by few long ones."""
    kmeans = KMeansOptions(metric="cosine", iterations=10, seed=seed)
    levels = (len(x_ND) // 25, len(x_ND) // 250, CLASSES) if len(x_ND) > 2500 else (len(x_ND) // 25, CLASSES)
    options = HierarchyOptions(levels, 20, (3,) * len(levels), kmeans, resampling_iterations=6)
    return sample_balanced(build_hierarchy(x_ND, options), target, seed=seed).rows


def _retrieved(x_ND: np.ndarray, y_N: np.ndarray, target: int, seed: int, per_class: int) -> np.ndarray:
    """Rows retrieved by the classes of a class-balanced seed set, which is part of them."""
    shuffled = np.random.default_rng(seed).permutation(len(x_ND))
    rows = np.concatenate([shuffled[y_N[shuffled] == c][:per_class] for c in range(CLASSES)])
    known = dict(zip(rows.tolist(), y_N[rows].tolist(), strict=True))
    return balanced_rows(classify(local_map(x_ND), fit_discriminant(x_ND[rows], y_N[rows]), known), target)


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
    from vfm_ops.embed.embedder import load_embedder
    from vfm_ops.models.shipped import DEFAULT_EMBEDDER

    embedder = load_embedder(DEFAULT_EMBEDDER)
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
