"""The benchmark compares like with like: the same weights, the same images, the same boxes."""

from __future__ import annotations

import pytest

from jobs.bench.detect_peers import bench_detect
from tests.vfm_ops.detect import tiny
from vfm_ops.errors import UsageError


def test_every_family_is_timed_and_its_boxes_are_those_of_transformers():
    report = bench_detect(device="cpu", images=tiny.frames([(48, 64), (64, 48)]), rounds=1)
    assert set(report["families"]) == {"grounding-dino", "owlvit", "owlv2", "omdet-turbo", "yolo-world"}
    for family, figures in report["families"].items():
        rates = ("online", "folded") if family == "yolo-world" else ("ours", "transformers")
        assert all(figures[r] > 0 for r in rates)
        assert figures["speedup"] == pytest.approx(figures[rates[-1 if family == "yolo-world" else 0]] /
                                                   figures[rates[0 if family == "yolo-world" else 1]])  # fmt: skip
        if family != "yolo-world":
            assert figures["box_difference_px"] < 1e-3
            assert figures["score_difference"] < 1e-5


def test_an_unknown_family_or_size_is_refused():
    with pytest.raises(UsageError, match="no benchmark"):
        bench_detect(["rcnn"])
    with pytest.raises(UsageError, match="size"):
        bench_detect(["owlvit"], size="huge", device="cpu")
