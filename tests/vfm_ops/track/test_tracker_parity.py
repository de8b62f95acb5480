"""Our streaming tracker gives what transformers' whole-video session gives, frame by frame, on the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.vfm_ops.track.conftest import Oracle
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.prompts import Prompt
from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

RELATIVE = 1e-4


def blob(height: int = 96, width: int = 128) -> np.ndarray:
    """An ellipse, as a mask prompt."""
    y, x = np.mgrid[:height, :width]
    return ((x - 80) / 25) ** 2 + ((y - 50) / 18) ** 2 < 1


FOUR = [
    Prompt(7, points=[[40.0, 40.0]], labels=[1]),
    Prompt(3, box=[70.0, 10.0, 120.0, 60.0]),
    Prompt(9, mask=blob()),
    Prompt(1, points=[[20.0, 70.0], [60.0, 80.0], [5.0, 5.0]], labels=[1, 1, 0]),
]


def assert_same(ours, theirs, where: str) -> None:
    logits, scores = theirs
    scale = logits[logits > -1000].abs().max().item() if (logits > -1000).any() else 1.0
    worst = (ours.logits_Nhw - logits).abs().max().item() / scale
    assert worst < RELATIVE, f"{where}: logits differ by {worst:.2e} of their scale"
    assert torch.equal(ours.logits_Nhw > 0, logits > 0), f"{where}: a binary mask differs"
    torch.testing.assert_close(ours.object_logits_N, scores, rtol=1e-3, atol=1e-3)


def run_both(model, network, frames, script, settings=None, reverse=False):
    """script: frame index -> prompts. Compares every frame, and returns the share of pixels that were foreground."""
    oracle = Oracle(model, frames)
    tracker = Sam2Tracker(network, settings)
    order = range(len(frames) - 1, -1, -1) if reverse else range(len(frames))
    started, shares, shown = False, [], []
    for t in order:
        prompts = script.get(t, ())
        started = started or bool(prompts)
        if not started:
            continue
        if prompts:
            oracle.prompt(t, prompts)
        ours = tracker.track(frames[t], frame_index=t, prompts=prompts, reverse=reverse)
        assert_same(ours, oracle.forward(t, reverse), f"frame {t}")
        shares.append((ours.logits_Nhw > 0).float().mean().item())
        shown.append(ours.visible.mean())
    return shares, shown


@pytest.mark.parametrize("prompt", FOUR[:3], ids=["point", "box", "mask"])
def test_one_object_keeps_transformers_masks_over_real_frames(model, network, frames, prompt):
    shares, shown = run_both(model, network, frames[:60], {0: [prompt]})
    assert 0.02 < np.mean(shares) < 0.98, "the masks are trivial, so that this test would show nothing"


def test_four_objects_in_one_batch_keep_transformers_masks_over_200_real_frames(model, network, frames):
    shares, shown = run_both(model, network, frames, {0: FOUR})
    assert 0.02 < np.mean(shares) < 0.98
    assert 0 < np.mean(shown) <= 1
