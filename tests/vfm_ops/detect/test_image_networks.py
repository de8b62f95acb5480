"""The parts of detectors that see pictures, in a faster runtime: what they find is what the plain module finds."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import Owlv2ImageProcessor

from vfm_ops.detect.loading import load_detector
from vfm_ops.detect.owl_pixels import BlursByAxis

PROMPTS = ["person", "red car", "dog"]


@pytest.mark.parametrize("family", ["owlvit", "owlv2", "omdet-turbo"])
def test_a_compiled_image_network_finds_the_same_boxes(checkpoints, family):
    detector = load_detector(f"{family}:{checkpoints[family]}", device="cpu")
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((90, 120), (64, 40), (120, 120))]
    compiled = detector.detect(pictures, PROMPTS, thresholds=1e-3)
    detector.see = detector.image_network()[0]
    plain = detector.detect(pictures, PROMPTS, thresholds=1e-3)
    assert sum(map(len, plain)) > 10
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.labels == theirs.labels
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.01)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)


@pytest.mark.parametrize("side", [96, 480])
@pytest.mark.parametrize("shape", [(480, 640), (1200, 1000), (100, 1300), (64, 64)])
def test_blur_along_one_axis_after_the_other_is_that_of_transformers(shape, side):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    size = {"height": side, "width": side}
    theirs, ours = (
        made(size=size)(images=[picture], return_tensors="np")["pixel_values"]
        for made in (Owlv2ImageProcessor, BlursByAxis)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
