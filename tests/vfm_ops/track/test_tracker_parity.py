"""Our streaming tracker gives what transformers' whole-video session gives, frame by frame, on the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.vfm_ops.track.conftest import Oracle
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.prompts import Prompt
from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

RELATIVE = 1e-4
# What transformers' public way does with a correction; its private one is in test_session_parity.py.
PUBLIC = TrackerSettings(corrections_are_prompts=False, feed_previous_masks=False)


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
    shown = logits[logits > -1000]
    scale = shown.abs().max().item() if len(shown) else 1.0
    worst = (ours.logits_Nhw - logits).abs().max().item() / scale
    assert worst < RELATIVE, f"{where}: logits differ by {worst:.2e} of their scale"
    assert torch.equal(ours.logits_Nhw > 0, logits > 0), f"{where}: a binary mask differs"
    torch.testing.assert_close(ours.object_logits_N.double(), scores.double(), rtol=1e-3, atol=1e-2)


class Both:
    """The same video and the same prompts, given to transformers' session and to our tracker."""

    def __init__(self, model, network, frames, settings=None) -> None:
        self.frames = frames
        self.oracle = Oracle(model, frames)
        self.tracker = Sam2Tracker(network, settings)
        self.foreground: list[float] = []

    def step(self, t: int, prompts=(), reverse: bool = False) -> None:
        if prompts:
            self.oracle.prompt(t, prompts)
        ours = self.tracker.track(self.frames[t], frame_index=t, prompts=prompts, reverse=reverse)
        assert_same(ours, self.oracle.forward(t, reverse), f"frame {t}")
        self.foreground.append((ours.logits_Nhw > 0).float().mean().item())

    def run(self, script, order, reverse: bool = False) -> None:
        for t in order:
            self.step(t, script.get(t, ()), reverse)

    def assert_worth_comparing(self) -> None:
        assert 0.02 < np.mean(self.foreground) < 0.98, "the masks are trivial: this test would show nothing"


def test_four_objects_keep_transformers_masks_over_200_real_frames(exact, frames):
    both = Both(*exact, frames)
    both.run({0: FOUR}, range(200))
    both.assert_worth_comparing()


def test_four_objects_keep_transformers_masks_in_float32(model, network, frames):
    both = Both(model, network, frames[:20])
    both.run({0: FOUR}, range(20))
    both.assert_worth_comparing()


@pytest.mark.parametrize(
    ("prompt", "count"), list(zip(FOUR, (20, 200, 20, 20))), ids=["point", "box", "mask", "points"]
)
def test_one_object_keeps_transformers_masks(exact, frames, prompt, count):
    both = Both(*exact, frames[:count])
    both.run({0: [prompt]}, range(count))
    both.assert_worth_comparing()


def test_objects_that_join_later_and_are_prompted_again_keep_transformers_masks(exact, frames):
    again = [Prompt(7, box=[30.0, 30.0, 70.0, 80.0])]
    script = {0: FOUR[:2], 5: FOUR[2:3], 9: FOUR[3:], 15: again}
    both = Both(*exact, frames[:24])
    both.run(script, range(24))
    both.assert_worth_comparing()


def test_tracking_backward_keeps_transformers_masks(exact, frames):
    both = Both(*exact, frames[:24])
    both.run({23: FOUR}, range(23, -1, -1), reverse=True)
    both.assert_worth_comparing()


def test_both_ways_from_a_prompt_keep_transformers_masks(exact, frames):
    """After a pass backward the frames before the prompt are still remembered when tracking turns forward."""
    both = Both(*exact, frames[:40], TrackerSettings(bank=BankPolicy(around_prompts=True)))
    both.run({20: FOUR[:2]}, range(20, -1, -1), reverse=True)
    both.run({}, range(21, 40))
    both.assert_worth_comparing()


def test_corrections_on_earlier_frames_keep_transformers_masks(exact, frames):
    """Frames are sent again from the corrected one on; `history` frames back the bank is still whole."""
    both = Both(*exact, frames[:30], replace(PUBLIC, bank=BankPolicy(history=8)))
    both.run({0: FOUR[:2]}, range(24))
    both.step(18, [Prompt(7, points=[[50.0, 20.0], [20.0, 30.0]], labels=[1, 0])])
    both.run({}, range(19, 24))
    both.step(22, [Prompt(3, points=[[90.0, 30.0]], labels=[0])])
    both.step(22, [Prompt(3, points=[[100.0, 50.0]], labels=[1], append=True)])
    both.run({}, range(23, 30))
    both.assert_worth_comparing()


def test_refining_clicks_on_the_first_frame_keeps_transformers_masks(exact, frames):
    both = Both(*exact, frames[:20], PUBLIC)  # a video shorter than 16 frames changes how transformers spaces pointers
    both.step(0, FOUR[:1])
    both.step(0, [Prompt(7, points=[[80.0, 80.0]], labels=[0], append=True)])
    both.run({}, range(12))
    both.assert_worth_comparing()


def test_a_checkpoint_that_looks_at_few_prompted_frames_keeps_transformers_masks(exact, frames):
    model, network = exact
    model.config.max_cond_frame_num = 2
    try:
        both = Both(model, network, frames[:24])
        both.run({t: [Prompt(7, points=[[40.0 + t, 40.0]], labels=[1])] for t in (0, 4, 9, 14)}, range(24))
    finally:
        model.config.max_cond_frame_num = -1
    both.assert_worth_comparing()
