"""Every objective's small preset on Fashion-MNIST: what it learns, against random weights and raw pixels, and how fast."""

from __future__ import annotations

from typing import Any

QUICK_MINUTES = 0.2
MINUTES = 10.0


def measure(quick: bool) -> list[dict[str, Any]]:
    """One row per objective: accuracies in percent (kNN, kNN of 1,000 labels, linear probe, zero-shot), steps, images/s.

    quick: seconds an objective instead of minutes: the figures then mean nothing. UsageError without Debian's
    dataset-fashion-mnist.
    """
    from vfm_ops.pretrain.benchmark import bench_pretrain
    from vfm_ops.pretrain.registry import OBJECTIVES

    rows = bench_pretrain(
        OBJECTIVES, minutes=QUICK_MINUTES if quick else MINUTES, probe_samples=2000 if quick else 20000
    )
    return [_row(row) for row in rows]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    accuracies = ("knn", "knn_1000", "pixel_knn_1000", "probe", "random_probe", "pixel_probe", "zero_shot")
    shown = {key: None if row[key] is None else round(100 * row[key], 1) for key in accuracies}
    return {
        "objective": row["objective"], **shown, "effective_rank": round(row["effective_rank"], 1),
        "steps": f"{row['steps']}/{row['of_steps']}", "seconds": round(row["seconds"]),
        "images_per_s": round(row["images_per_s"]),
    }  # fmt: skip
