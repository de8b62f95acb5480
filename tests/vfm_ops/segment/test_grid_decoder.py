"""The decoder for many points against transformers' own, on the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vfm_ops.segment.grid_decoder import GridDecoder
from vfm_ops.segment.segmenter import load_segmenter


@pytest.fixture(params=["sam", "sam2"])
def segmenter(request, sam_folder, sam2_folder):
    return load_segmenter(
        f"{request.param}:{sam_folder if request.param == 'sam' else sam2_folder}",
        device="cpu",
    )


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_masks_and_scores_are_those_of_the_model(segmenter, photograph, at_once):
    points = torch.from_numpy(np.random.default_rng(0).uniform(0, 127, (9, 2)))
    with torch.inference_mode():
        encoded = segmenter.encode(photograph)
        features = tuple(f.double() for f in encoded.features)
        model = segmenter.model.double()
        given = features[0] if len(features) == 1 else list(features)
        expected = model(image_embeddings=given, input_points=points[None, :, None])
        parts = list(GridDecoder(model, features).decode(points, lambda scores: scores > -1e9, at_once))
    logits, scores = expected.pred_masks[0].flatten(0, 1), expected.iou_scores[0].flatten()
    ours = torch.cat([p.logits_Mhw for p in parts])
    assert (ours - logits).abs().max() < 1e-5 * logits.abs().max()
    assert (torch.cat([p.scores_M for p in parts]) - scores).abs().max() < 1e-5
    assert torch.cat([p.point_M for p in parts]).tolist() == [i for i in range(9) for _ in range(3)]
    assert torch.cat([p.candidate_M for p in parts]).tolist() == [0, 1, 2] * 9


def test_masks_that_nobody_wants_are_not_made(segmenter, photograph):
    points = torch.tensor([[20.0, 20.0], [60.0, 60.0], [100.0, 30.0]])
    with torch.inference_mode():
        decoder = GridDecoder(segmenter.model, segmenter.encode(photograph).features)
        (everything,) = decoder.decode(points, lambda scores: scores > -1e9, 64)
        made = []
        masks = decoder.upscaling.masks
        decoder.upscaling.masks = lambda pixels, *rest: made.append(len(pixels)) or masks(pixels, *rest)
        wanted = torch.tensor([[False, True, False], [False, False, False], [True, False, True]])
        (some,) = decoder.decode(points, lambda scores: wanted, 64)
        assert not list(decoder.decode(points, lambda scores: scores > 1e9, 64))
    assert made == [2]
    assert some.point_M.tolist() == [0, 2, 2]
    assert some.candidate_M.tolist() == [1, 0, 2]
    torch.testing.assert_close(some.logits_Mhw, everything.logits_Mhw[wanted.flatten()], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(some.scores_M, everything.scores_M[wanted.flatten()])
