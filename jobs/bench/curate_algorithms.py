"""`vfm bench curate`: each function measures one promise of this package and returns plain values.

Seconds are both wall and CPU: on a machine that others use, CPU seconds are the ones to compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jobs.bench.faiss_reference import best_of
from jobs.bench.planted import TRANSFORMS, real_images
from vfm_ops.curate.balance import sample_balanced
from vfm_ops.curate.components import connected_components
from vfm_ops.curate.hierarchy import HierarchyOptions, build_hierarchy
from vfm_ops.curate.image_duplicates import image_duplicates
from vfm_ops.curate.kmeans import KMeansOptions, available_cores, kmeans
from vfm_ops.curate.neighbours import near_duplicate_pairs

RING_SIZES = (20000, 200, 1000, 500, 8000)
_RING_CENTRES = ((-2.2, 1.0), (0.0, 1.0), (2.2, 1.0), (-1.1, -0.2), (1.1, -0.2))


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def clustered_vectors(rows: int, dim: int = 256, seed: int = 0, planted: float = 0.1) -> np.ndarray:
    """Unit vectors that resemble embeddings, float32 (rows, dim), shuffled.

    400 kinds whose sizes fall like 1/rank, each spread mostly along 24 directions of its own, plus noise; the last
    `planted` share are near-copies of others, with cosines uniform in [0.9, 1], half of each difference along the kind's
    own directions.
    """
    rng = np.random.default_rng(seed)
    kinds, inner = 400, min(24, dim // 2)
    mass_K = 1.0 / np.arange(1, kinds + 1)
    kind_N = rng.choice(kinds, rows, p=mass_K / mass_K.sum())
    mean_KD = rng.standard_normal((kinds, dim), np.float32)
    basis_KID = rng.standard_normal((kinds, inner, dim), np.float32) / np.float32(np.sqrt(inner))
    x_ND = np.float32(0.25) * rng.standard_normal((rows, dim), np.float32)
    copies = int(rows * planted)
    source_M = rng.integers(rows - copies, size=copies)
    step_MD = rng.standard_normal((copies, dim), np.float32)
    for kind in range(kinds):
        mine, moved = np.flatnonzero(kind_N == kind), np.flatnonzero(kind_N[source_M] == kind)
        x_ND[mine] += mean_KD[kind] + 1.2 * rng.standard_normal((len(mine), inner), np.float32) @ basis_KID[kind]
        step_MD[moved] += rng.standard_normal((len(moved), inner), np.float32) @ basis_KID[kind]
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    base_MD = x_ND[source_M]
    step_MD -= (step_MD * base_MD).sum(axis=1, keepdims=True) * base_MD
    step_MD /= np.linalg.norm(step_MD, axis=1, keepdims=True)
    cosine_M1 = rng.uniform(0.9, 1.0, (copies, 1)).astype(np.float32)
    x_ND[rows - copies :] = cosine_M1 * base_MD + np.sqrt(1 - cosine_M1**2) * step_MD
    return x_ND[rng.permutation(rows)]


def rings(seed: int, sizes: Sequence[int] = RING_SIZES) -> tuple[np.ndarray, np.ndarray]:
    """Five 2-D rings of very unequal mass, as in Vo et al.'s demonstration: points float32 (N, 2), ring int64 (N,)."""
    rng = np.random.default_rng(seed)
    points = []
    for size, (x, y) in zip(sizes, _RING_CENTRES, strict=True):
        radius, angle = rng.uniform(0.7, 1.0, size), rng.uniform(0, 2 * np.pi, size)
        points.append(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1))
    return np.concatenate(points).astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


def kl_to_uniform(label_N: np.ndarray, classes: int) -> float:
    """KL divergence from the labels' distribution to the uniform one, nats."""
    share_C = np.bincount(label_N, minlength=classes) / len(label_N)
    share_C = share_C[share_C > 0]
    return float((share_C * np.log(share_C * classes)).sum())


def rings_balance(seeds: int = 10, target: int = 1000, levels: Sequence[int] = (1000, 100)) -> dict[str, Any]:
    """KL to uniform of the rings in a balanced sample, for the hierarchy and for a random sample: mean over seeds."""
    balanced, plain = [], []
    for seed in range(seeds):
        x_ND, ring_N = rings(seed)
        options = HierarchyOptions(tuple(levels), kmeans=KMeansOptions(iterations=50, seed=seed))
        rows = sample_balanced(build_hierarchy(x_ND, options), target, seed=seed).rows
        balanced.append(kl_to_uniform(ring_N[rows], len(RING_SIZES)))
        picked = np.random.default_rng(seed).choice(len(ring_N), target, replace=False)
        plain.append(kl_to_uniform(ring_N[picked], len(RING_SIZES)))
    return {
        "levels": list(levels),
        "kl": float(np.mean(balanced)),
        "kl_random": float(np.mean(plain)),
        "each": balanced,
    }


def kmeans_against_faiss(
    rows: int = 200_000, dim: int = 256, k: int = 1000, iterations: int = 20, seed: int = 0
) -> dict[str, Any]:
    """Seconds and inertia of k-means, against faiss's, with the same number of full iterations on the same cores."""
    x_ND, cores = clustered_vectors(rows, dim, seed), available_cores()
    ours, seconds = _timed(lambda: kmeans(x_ND, k, KMeansOptions(iterations=iterations, tol=0.0, seed=seed)))
    theirs = best_of("kmeans", x_ND, k, iterations, threads=cores)
    return {
        "rows": rows,
        "k": k,
        **seconds,
        "inertia": ours.inertia,
        "faiss": theirs,
        "cpu_ratio": seconds["cpu_s"] / theirs["cpu_s"],
        "inertia_ratio": ours.inertia / theirs["inertia"],
    }


def range_search_against_faiss(
    rows: int = 200_000, dim: int = 256, threshold: float = 0.9, queries: int = 4000, seed: int = 0
) -> dict[str, Any]:
    """Seconds of the near-duplicate search against faiss's exact range search, and recall over the first `queries` rows."""
    x_ND = clustered_vectors(rows, dim, seed)
    batches, seconds = _timed(lambda: list(near_duplicate_pairs(x_ND, threshold)))
    found = {(int(i), int(j)) for batch in batches for i, j in zip(batch.i, batch.j, strict=True)}
    theirs = best_of("range", x_ND, threshold, queries, threads=available_cores())
    truth = {(min(i, j), max(i, j)) for i, j in theirs.pop("pairs")}
    return {
        "rows": rows,
        "threshold": threshold,
        **seconds,
        "pairs": len(found),
        "recall": len(truth & found) / max(1, len(truth)),
        "faiss": theirs,
        "cpu_ratio": seconds["cpu_s"] / theirs["cpu_s"],
    }


def search_growth(sizes: Sequence[int] = (50_000, 400_000), dim: int = 256, threshold: float = 0.9) -> dict[str, Any]:
    """CPU seconds of the search at each size, and the exponent p of cost ~ rows^p between the first and the last."""
    list(near_duplicate_pairs(clustered_vectors(2000, dim), threshold))
    seconds = []
    for rows in sizes:
        x_ND = clustered_vectors(rows, dim, seed=1)
        seconds.append(_timed(lambda x=x_ND: list(near_duplicate_pairs(x, threshold)))[1]["cpu_s"])  # type: ignore[misc]
    exponent = float(np.log(seconds[-1] / seconds[0]) / np.log(sizes[-1] / sizes[0]))
    return {"rows": list(sizes), "cpu_s": seconds, "exponent": exponent}


def hierarchy_time(
    rows: int = 200_000, dim: int = 256, levels: Sequence[int] = (2000, 200), resamplings: int = 3, iterations: int = 50
) -> dict[str, Any]:
    """Seconds to build a hierarchy, with and without stopping where k-means has settled."""
    x_ND = clustered_vectors(rows, dim)
    out: dict[str, Any] = {"rows": rows, "levels": list(levels)}
    for name, tol in (("settled", 1e-4), ("all_iterations", 0.0)):
        options = HierarchyOptions(tuple(levels), resamplings, kmeans=KMeansOptions(iterations=iterations, tol=tol))
        out[name] = _timed(lambda o=options: build_hierarchy(x_ND, o))[1]  # type: ignore[misc]
    return out


def planted_duplicates(
    images: int = 5000,
    per_transform: int = 100,
    embed: Callable[[list[np.ndarray]], np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Precision, and recall per transform, of near-duplicates planted in real images.

    embed: images to unit vectors (N, D); the offline default embedder when None. A pair counts as right where both come
    from one image. Recall: the share of planted copies that end in one group with their original.
    """
    rng = np.random.default_rng(seed)
    pictures = real_images(images, seed)
    source, kind = list(range(images)), [""] * images
    for name, transform in TRANSFORMS.items():
        for i in rng.choice(images, per_transform, replace=False):
            pictures.append(transform(pictures[i], rng))
            source.append(int(i))
            kind.append(name)
    vectors_ND = (embed or _default_embed)(pictures)
    pairs, seconds = _timed(lambda: image_duplicates(pictures, vectors_ND))
    origin_N, kind_N = np.array(source), np.array(kind)
    right = origin_N[pairs.i] == origin_N[pairs.j]
    group_N = connected_components([pairs], len(pictures))
    together_N = group_N == group_N[origin_N]
    return {
        "images": len(pictures),
        **seconds,
        "precision": float(right.mean()) if len(right) else 1.0,
        "wrong_pairs": int((~right).sum()),
        "recall": float(together_N[images:].mean()),
        "recall_of": {name: float(together_N[kind_N == name].mean()) for name in TRANSFORMS},
    }


def _default_embed(pictures: list[np.ndarray]) -> np.ndarray:
    from vfm_ops.embed.embedder import load_embedder
    from vfm_ops.models.shipped import DEFAULT_EMBEDDER

    embedder = load_embedder(DEFAULT_EMBEDDER)
    batches = [np.stack([embedder.view.apply(p) for p in pictures[i : i + 32]]) for i in range(0, len(pictures), 32)]
    return np.concatenate([embedder.embed_images(batch) for batch in batches])
