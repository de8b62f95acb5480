"""If these fail, pocket-sam2 is taught corrections that users of `Segmenter` and `VideoSession` never make."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F

from vfm_ops.pocket import sam2, sam2_clicks, sam2_train
from vfm_ops.pocket.score_masks import corrective_click
from vfm_ops.track.network import Sam2Network
from vfm_ops.track.session import VideoSession
from vfm_ops.track.tracker import Sam2Tracker


def square(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_a_user_clicks_amid_the_largest_error_and_says_which_it_is():
    truth = square(10, 10, 41, 41)
    assert corrective_click(truth, truth) is None
    missing = truth & ~square(20, 20, 31, 31)
    assert corrective_click(missing, truth) == ((25, 25), 1)
    assert corrective_click(missing | square(45, 45, 60, 60), truth) == ((52, 52), 0)


def test_training_clicks_lie_amid_the_largest_error():
    rng, cell = np.random.default_rng(0), sam2.SIZE // sam2_train.SIDE
    truth = square(10, 10, 41, 41)
    mask = (truth | square(45, 45, 50, 50)) & ~square(20, 20, 31, 31)
    found = [sam2_clicks.wrong_click(rng, mask, truth) for _ in range(100)]
    assert {label for _, label in found} == {1}
    cells = [(int(x // cell), int(y // cell)) for (x, y), _ in found]
    assert all(20 <= x < 31 and 20 <= y < 31 for x, y in cells)
    assert 60 <= sum(at == (25, 25) for at in cells) < 95, "most on the deepest pixel, not all"
    assert sam2_clicks.wrong_click(rng, truth | square(45, 45, 60, 60), truth)[1] == 0
    (x, y), label = sam2_clicks.wrong_click(rng, truth, truth)
    assert label == 1
    assert truth[int(y // cell), int(x // cell)]
    nothing = np.zeros_like(truth)
    assert sam2_clicks.wrong_click(rng, nothing, nothing)[1] == 0


def test_rough_masks_are_like_the_true_ones_but_not_them():
    true = torch.from_numpy(sam2_train.make_stills(0, 8, 2, 0)["masks"]).flatten(0, 1)
    rough = sam2_clicks.rough_masks(np.random.default_rng(0), true)
    assert rough.shape == (16, 32, 32)
    assert (rough.min(), rough.max()) == (-10, 10)
    a, b = rough > 0, F.avg_pool2d(true[:, None], 2)[:, 0] > 0.5
    assert 0.3 < ((a & b).sum() / (a | b).sum()) < 0.95


def test_corrections_teach_prompts_and_masks_and_leave_features_alone(model):
    sam2_clicks.learn_only_prompts(model)
    rng, clips = np.random.default_rng(1), sam2_train.make_clips(0, 1, 1, 3, 0, 0, 3)
    features, item = next(sam2_clicks.encoded_stills(model, iter([sam2_train.make_stills(0, 2, 2, 1)])))
    losses = sam2_clicks.corrected_still_losses(model, features, item, rng)
    assert set(losses) == set(sam2_clicks.corrected_clip_losses(model, clips, 3, rng))
    model.zero_grad()
    sam2_train.total(losses).backward()
    taught = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n for n in taught if not n.startswith(("mask_decoder.", "prompt_encoder."))} == set()
    assert {"prompt_encoder.mask_embed.conv1.weight", "prompt_encoder.point_embed.weight"} <= taught
    assert model.prompt_encoder.point_embed.weight.grad[0].any(), "a click off the object"
    model.requires_grad_(True)
    model.zero_grad()


@torch.no_grad()
def test_corrections_in_training_are_those_of_the_products_tracker(model, monkeypatch):
    """A clip of six frames, prompted by a box, corrected once on the third: the masks of every frame, both ways."""
    batch = sam2_train.make_clips(0, 1, 1, 6, 0, 0, 0)
    decoded, clicks = [], []
    decode, wrong_clicks = sam2.decode, sam2_clicks.wrong_clicks
    monkeypatch.setattr(sam2_clicks, "corrections", lambda *_: {0: 0, 2: 1})
    monkeypatch.setattr(sam2, "decode", lambda *args: decoded.append(decode(*args)) or decoded[-1])
    monkeypatch.setattr(sam2_clicks, "wrong_clicks", lambda *args: clicks.append(wrong_clicks(*args)) or clicks[-1])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    sam2_clicks.corrected_clip_losses(model, batch, 6, np.random.default_rng(0))
    ours = [d.masks_BNMSS[0, 0, 0] for d in decoded]

    session = VideoSession(Sam2Tracker(Sam2Network(model)), list(batch["rgb"][0]))
    session.add_new_points_or_box(0, 1, box=batch["points"][0, 0].reshape(4))
    theirs = [m.logits_Nhw[0] for m in session.propagate_in_video(max_frame_num_to_track=2)]
    (points, labels), *more = clicks
    assert not more
    theirs.append(session.add_new_points_or_box(2, 1, points[0, 0], labels[0, 0]).logits_Nhw[0])
    theirs += [m.logits_Nhw[0] for m in session.propagate_in_video()][1:]
    assert len(ours) == len(theirs) == 7
    for mine, product in zip(ours, theirs, strict=True):
        # The tracker keeps memories in bfloat16.
        assert (mine - product).abs().max() < 0.03 * product.abs().max()
    assert (ours[2] - ours[3]).abs().max() > 0.03 * ours[2].abs().max(), "the correction does nothing"
    model.requires_grad_(True)


@torch.no_grad()
def test_large_features_do_not_drown_a_mask_that_is_given_as_a_prompt():
    torch.manual_seed(0)
    model = sam2.make_model().eval()
    for parameter in model.vision_encoder.neck.parameters():
        parameter.mul_(40)
    stills = sam2_train.make_stills(0, 4, 2, 0)
    pixels, logits = sam2.to_pixels(stills["rgb"]), 20 * F.avg_pool2d(torch.from_numpy(stills["masks"]), 2) - 10
    features = sam2.encode(model, pixels)

    def change() -> float:
        """How much another object's mask changes the answer, over the answer's own size."""
        plain = sam2.without_memory(model, features)
        told = [sam2.decode(model, features, plain, None, None, False, logits[:, n]).masks_BNMSS for n in (0, 1)]
        return float((told[0] - told[1]).std() / told[0].std())

    before = change()
    sam2.open_mask_prompts(model, pixels, logits[:, 0])
    assert before < 0.05
    assert change() > 0.1
    whole = torch.nn.functional.interpolate(logits[:, :1], scale_factor=4) > 0
    assert torch.allclose(model.mask_downsample(whole.float()), 20 * F.avg_pool2d(whole.float(), 4) - 10, atol=1e-4)
