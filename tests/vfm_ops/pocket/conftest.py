"""A pocket-sam2 of random weights that takes every object for present."""

from __future__ import annotations

import pytest
import torch

from vfm_ops.pocket import sam2


@pytest.fixture(scope="module")
def model():
    """Always present: masks and pointers of absent objects are put away, which would hide a difference."""
    torch.manual_seed(0)
    made = sam2.make_model().eval()
    with torch.no_grad():
        made.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)
    return made
