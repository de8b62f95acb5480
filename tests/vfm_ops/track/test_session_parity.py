"""A session's prompts, corrections and passes give what transformers' session gives, its private way included.

Meta feeds the mask that is corrected back to the decoder, and encodes the memory of the correction; transformers has the way in
`_run_single_frame_inference`, which its public `forward` never takes. Both in float64 on real frames. VFM_SESSION_FRAMES sets
how many (8): the tests' scripts are spread over them.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from tests.vfm_ops.track.conftest import read_frames, tiny_model
from tests.vfm_ops.track.private_session import PrivateSession
from tests.vfm_ops.track.test_tracker_parity import blob
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.network import Sam2Network
from vfm_ops.track.prompts import Prompt
from vfm_ops.track.session import VideoSession
from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

RELATIVE = 1e-6
COUNT = int(os.environ.get("VFM_SESSION_FRAMES", "8"))
LAST = COUNT - 1
SEED = 2  # of weights by which most prompts show something, and some nothing


def at(share: float) -> int:
    """A frame of the clip."""
    return round(share * LAST)


POINT = Prompt(7, points=[[40.0, 40.0]], labels=[1])
BOX = Prompt(3, box=[70.0, 10.0, 120.0, 60.0])
MASK = Prompt(9, mask=blob())
POINTS = Prompt(1, points=[[20.0, 70.0], [60.0, 80.0], [5.0, 5.0]], labels=[1, 1, 0])
OFF = Prompt(7, points=[[50.0, 20.0], [20.0, 30.0]], labels=[1, 0])
MORE = Prompt(7, points=[[80.0, 80.0]], labels=[0], append=True)
ANEW = Prompt(7, box=[30.0, 30.0, 70.0, 80.0])


@pytest.fixture(scope="module", params=["random", "pocket"])
def weights(request):
    """(model, network), float64: of random weights, and of pocket-sam2."""
    if request.param == "random":
        model = tiny_model(SEED, image_size=64).double()
        return model, Sam2Network(model, dtype=torch.float64)
    from transformers import Sam2VideoModel

    from vfm_ops.models.resolve import find_checkpoint

    model = Sam2VideoModel.from_pretrained(find_checkpoint("sam2:pocket", "track").folder).eval().double()
    return model, Sam2Network(model, dtype=torch.float64)


@pytest.fixture(scope="module")
def clip(bikes) -> list[np.ndarray]:
    """Real footage of cyclists, 96 x 128, before its first cut; with fewer than 16 frames transformers spaces pointers
    in another way."""
    return read_frames(bikes, max(COUNT, 16))


class Both:
    """A session of ours and one of transformers', given the same; `worst` is the largest relative difference of logits."""

    def __init__(self, weights, clip, **settings) -> None:
        model, network = weights
        settings = {"bank": BankPolicy(history=COUNT, around_prompts=True), **settings}
        self.ours = VideoSession(Sam2Tracker(network, TrackerSettings(**settings)), clip)
        made = self.ours.tracker.settings
        self.theirs = PrivateSession(model, clip, made.corrections_are_prompts, made.feed_previous_masks)
        self.clears = made.clear_memories_around_prompts
        self.worst, self.shares = 0.0, []

    def say(self, index: int, prompt: Prompt) -> None:
        if prompt.mask is not None:
            ours = self.ours.add_new_mask(index, prompt.object_id, prompt.mask)
        else:
            ours = self.ours.add_new_points_or_box(
                index, prompt.object_id, prompt.points, prompt.labels, not prompt.append, prompt.box
            )
        theirs, score = self.theirs.add(index, prompt)
        if self.clears:
            self.theirs.clear_around(index)
        self.compare(ours.logits_Nhw[0], theirs, f"prompt on frame {index}")
        assert abs(ours.object_logits_N[0] - score) < 1e-3

    def go(self, start: int, stop: int, reverse: bool = False) -> None:
        """All objects over a range, ends included."""
        for masks in self.ours.propagate_in_video(start, abs(stop - start), reverse):
            t = masks.frame_index
            theirs = self.theirs.track(t, reverse)
            if self.clears:
                self.theirs.clear_around(t)
            assert masks.object_ids == list(theirs)
            for i, logits in zip(masks.object_ids, masks.logits_Nhw):
                self.compare(logits, theirs[i], f"object {i} on frame {t}")
        assert t == stop

    def compare(self, ours, theirs, where: str) -> None:
        shown = theirs[theirs > -1000]
        scale = shown.abs().max().item() if len(shown) else 1.0
        difference = (ours.double() - theirs).abs().max().item() / scale
        self.worst = max(self.worst, difference)
        assert difference < RELATIVE, f"{where}: logits differ by {difference:.2e} of their scale"
        assert torch.equal(ours > 0, theirs > 0), f"{where}: a pixel is flipped"
        self.shares.append((ours > 0).double().mean().item())

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            shown = [share for share in self.shares if 0.005 < share < 0.995]
            assert len(shown) > 0.3 * len(self.shares), "most masks are trivial: this would show little"
            print(f"\nworst relative difference {self.worst:.1e} over {len(self.shares)} masks")


def test_several_objects_by_every_kind_of_prompt(weights, clip):
    with Both(weights, clip) as both:
        for prompt in (POINT, BOX, MASK, POINTS):
            both.say(0, prompt)
        both.go(0, LAST)


def test_clicks_refine_the_mask_that_is_there_before_tracking_begins(weights, clip):
    with Both(weights, clip) as both:
        for prompt in (POINT, MORE, OFF, ANEW, MASK, Prompt(9, points=[[80.0, 50.0]], labels=[0])):
            both.say(0, prompt)
        both.go(0, at(0.3))


def test_objects_prompted_late_and_again(weights, clip):
    with Both(weights, clip) as both:
        both.say(0, POINT)
        both.go(0, at(0.4))
        both.say(at(0.4), BOX)
        both.say(at(0.6), MASK)
        both.go(at(0.4), LAST)
        both.say(at(0.8), POINTS)
        both.go(at(0.4), LAST)


@pytest.mark.parametrize("sticks", [True, False], ids=["kept as prompts", "as memories"])
def test_corrections_on_three_frames(weights, clip, sticks):
    with Both(weights, clip, corrections_are_prompts=sticks) as both:
        both.say(0, POINT)
        both.say(0, BOX)
        both.go(0, LAST)
        for share, prompt in ((0.3, OFF), (0.5, ANEW), (0.7, OFF)):
            both.say(at(share), prompt)
            both.say(at(share), MORE)
            both.go(at(share) + (not sticks), LAST)


def test_a_mask_corrects_what_was_tracked(weights, clip):
    with Both(weights, clip) as both:
        both.say(0, BOX)
        both.go(0, at(0.6))
        both.say(at(0.4), Prompt(3, mask=blob()))
        both.go(at(0.4), LAST)


def test_backward_and_a_correction_on_the_way(weights, clip):
    with Both(weights, clip) as both:
        both.say(LAST, POINT)
        both.say(LAST, BOX)
        both.go(LAST, 0, reverse=True)
        both.say(at(0.4), OFF)
        both.go(at(0.4), 0, reverse=True)


def test_both_ways_from_prompts_in_the_middle(weights, clip):
    with Both(weights, clip) as both:
        both.say(at(0.5), POINT)
        both.say(at(0.6), BOX)
        both.go(at(0.6), LAST)
        both.go(at(0.5), 0, reverse=True)
        both.say(at(0.7), OFF)
        both.go(at(0.7), LAST)
        both.say(at(0.2), OFF)
        both.go(at(0.2), 0, reverse=True)


def test_an_object_that_is_removed_leaves_the_others_as_they_are(weights, clip):
    with Both(weights, clip) as both:
        for prompt in (POINT, BOX, MASK):
            both.say(0, prompt)
        both.go(0, at(0.4))
        both.ours.remove_object(3)
        both.theirs.remove(3)
        both.go(at(0.4) + 1, at(0.7))
        both.say(at(0.7), BOX)
        both.go(at(0.7), LAST)


def test_prompts_of_a_frame_are_taken_back(weights, clip):
    with Both(weights, clip) as both:
        both.say(0, POINT)
        both.say(0, BOX)
        both.go(0, LAST)
        both.say(at(0.4), OFF)
        both.say(at(0.6), ANEW)
        both.go(at(0.4), LAST)
        both.ours.clear_all_prompts_in_frame(at(0.4), 7)
        both.theirs.clear(at(0.4), 7)
        both.go(at(0.2), LAST)
        both.say(at(0.4), OFF)
        both.go(at(0.4), LAST)


def test_memories_around_a_prompt_are_cleared(weights, clip):
    with Both(weights, clip, clear_memories_around_prompts=True) as both:
        both.say(0, POINT)
        both.say(0, BOX)
        both.go(0, at(0.8))
        both.say(at(0.5), OFF)
        both.go(at(0.5), LAST)
