"""`vfm bench detect`: every detector against transformers' own batch and pipeline, same random weights, alternating."""

from __future__ import annotations

from typing import Any


def measure(quick: bool) -> list[dict[str, Any]]:
    """A row a family: images/s of ours and of the peers, the ratio, and how far the boxes differ."""
    from jobs.bench.detect_peers import bench_detect

    report = bench_detect(size="tiny", rounds=2 if quick else 7)
    return [{"family": family, **figures} for family, figures in report["families"].items()]
