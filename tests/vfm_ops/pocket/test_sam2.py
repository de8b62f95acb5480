"""If these fail, pocket-sam2 is trained through steps that transformers' own inference does not take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vfm_ops.pocket import sam2, sam2_train
from vfm_ops.pocket.score_masks import track
from vfm_ops.world.clips import clip
from vfm_ops.world.scene import World


def test_first_mask_logits_are_of_the_order_of_one(model):
    features = sam2.encode(model, sam2.to_pixels(np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)))
    points, labels = (
        torch.tensor([[[[20.0, 20.0], [90.0, 90.0]]]]).repeat(2, 1, 1, 1),
        torch.tensor([[[2, 3]]]).repeat(2, 1, 1),
    )
    with torch.no_grad():
        decoded = sam2.decode(model, features, sam2.without_memory(model, features), points, labels, multimask=False)
    assert 0.05 < decoded.masks_BNMSS.std() < 5


@torch.no_grad()
def test_batched_steps_equal_the_librarys_session(model):
    """Two clips at once, frame by frame, against transformers' session one by one."""
    clips = [clip(World(seed=1, objects=(2, 3)), i, frames=9) for i in range(2)]
    rgb = np.stack([np.stack([scene.rgb for scene in c]) for c in clips])
    boxes = np.stack([c.frame(0).boxes_N4[0] for c in clips])
    expected = [track(model, list(rgb[b]), boxes[b]) for b in range(2)]
    features = [sam2.encode(model, sam2.to_pixels(rgb[:, t])) for t in range(9)]
    points, labels = torch.from_numpy(boxes - 0.5).view(2, 1, 2, 2), torch.tensor([[[2, 3]]]).repeat(2, 1, 1)
    memories, pointers = [], []
    for t in range(9):
        if t == 0:
            decoded = sam2.decode(
                model, features[0], sam2.without_memory(model, features[0]), points, labels, multimask=False
            )
        else:
            past = [(0, memories[0])] + [(t - j, memories[j]) for j in range(max(1, t - 6), t)]
            recent = range(t - 1, max(0, t - sam2.MAX_POINTERS), -1)
            places = [(t, pointers[0])] + [(t - j, pointers[j]) for j in recent]
            decoded = sam2.decode(
                model, features[t], sam2.with_memory(model, features[t].low_BCHW, past, places), None, None, False
            )
        masks = decoded.masks_BNMSS[:, 0, 0]
        full = (
            torch.nn.functional.interpolate(masks[:, None], (128, 128), mode="bilinear", align_corners=False)[:, 0] > 0
        )
        for b in range(2):
            # The session keeps memories in bfloat16: a pixel whose logit is almost zero may tip over.
            assert np.mean(full[b].numpy() != expected[b][t]) < 0.02, f"clip {b}, frame {t}"
        memory = sam2.encode_memory(model, features[t].low_BCHW, masks, decoded.present_BN[:, 0], binarise=t == 0)
        memories.append(memory.to(torch.bfloat16).float())
        pointers.append(sam2.pointer_of(model, decoded.pointers_BNMC[:, 0, 0], decoded.present_BN[:, 0]))


def test_best_of_several_masks_is_the_one_that_learns():
    target = torch.zeros(1, 1, sam2_train.SIDE, sam2_train.SIDE)
    target[..., 16:48, 16:48] = 1
    small = torch.nn.functional.interpolate(target, (32, 32), mode="area") * 20 - 10
    masks = torch.stack([-small[0, 0], small[0, 0], small[0, 0] * 0]).view(1, 1, 3, 32, 32).requires_grad_()
    decoded = sam2.Decoded(masks, torch.tensor([[[0.0, 1.0, 0.0]]]), torch.zeros(1, 1, 3, 4), torch.tensor([[8.0]]))
    losses = sam2_train.mask_losses(decoded, target, torch.ones(1, 1, dtype=torch.bool))
    assert losses["iou"] > 0.97
    assert losses["dice"] < 0.05
    (20 * losses["focal"] + losses["dice"]).backward()
    assert masks.grad[0, 0, 0].abs().sum() == 0
    assert masks.grad[0, 0, 1].abs().sum() > 0


def test_absent_objects_teach_presence_only():
    masks = torch.randn(1, 2, 1, 32, 32, requires_grad=True)
    decoded = sam2.Decoded(masks, torch.zeros(1, 2, 1), torch.zeros(1, 2, 1, 4), torch.tensor([[4.0, -4.0]]))
    losses = sam2_train.mask_losses(decoded, torch.zeros(1, 2, 64, 64), torch.tensor([[False, False]]))
    assert losses["focal"] == 0
    assert losses["dice"] == 0
    assert losses["present"] == pytest.approx((np.log1p(np.exp(4)) + np.log1p(np.exp(-4))) / 2, rel=1e-5)


def test_clip_batches_start_with_a_visible_object():
    batch = sam2_train.make_clips(0, 2, 2, 4, 0, 0, 1)
    assert batch["rgb"].shape == (2, 4, 128, 128, 3)
    assert batch["present"][:, :, 0].all()
    assert ((batch["masks"].sum((3, 4)) > 0) == batch["present"]).all()


def test_losses_of_a_clip_reach_every_memory_parameter(model):
    batch = sam2_train.make_clips(0, 1, 1, 3, 0, 0, 0)
    model.zero_grad()
    sam2_train.total(sam2_train.clip_losses(model, batch, 3)).backward()
    without = [n for n, p in model.named_parameters() if n.startswith(("memory_", "object_pointer")) and p.grad is None]
    assert not without
    model.zero_grad()


def test_prompts_seem_older_than_they_are_by_up_to_an_age(model):
    ages = [int(sam2_train.make_clips(0, 1, 1, 3, 0, 1000, index)["age"]) for index in range(60)]
    assert min(ages) == 0
    assert 500 < max(ages) <= 1000
    assert 20 <= sum(age < 31 for age in ages) <= 40  # half of them, in a scale of octaves
    batch = sam2_train.make_clips(0, 1, 1, 3, 0, 0, 0)
    assert batch["age"] == 0
    seen: list[int] = []
    through = sam2.with_memory

    def spy(model, low, memories, pointers):
        seen.extend(ago for ago, _ in pointers)
        return through(model, low, memories, pointers)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(sam2, "with_memory", spy)
        sam2_train.clip_losses(model, batch | {"age": np.array(100)}, 3)
    assert seen == [101, 102, 1]  # the prompted frame, 100 frames older; the one before, as it is


def test_frames_before_the_last_ones_are_tracked_but_teach_nothing(model):
    """However long the rollout, gradients come from the prompted frame and the last ones: 3 of these 9."""
    batches = (sam2_train.make_clips(0, 1, 1, 3, 6, 0, index) for index in range(20))
    batch = next(b for b in batches if b["rgb"].shape[1] == 9)
    learnt: list[bool] = []
    hook = model.mask_decoder.register_forward_hook(lambda *_: learnt.append(torch.is_grad_enabled()))
    losses = sam2_train.clip_losses(model, batch, 3)
    hook.remove()
    assert learnt == [True, *[False] * 6, True, True]
    masks = batch["masks"].copy()
    masks[:, :, 1:7] = 1 - masks[:, :, 1:7]
    again = sam2_train.clip_losses(model, batch | {"masks": masks}, 3)
    assert sam2_train.total(losses).item() == sam2_train.total(again).item()


@torch.no_grad()
def test_large_features_do_not_drown_what_a_memory_says_of_its_object():
    """What stage 1 leaves: features a hundred times as large as masks' embeddings. A mask must still change what is read."""
    torch.manual_seed(0)
    model = sam2.make_model().eval()
    for parameter in model.vision_encoder.neck.parameters():
        parameter.mul_(40)
    stills = sam2_train.make_stills(0, 4, 2, 0)
    pixels, logits = sam2.to_pixels(stills["rgb"]), 20 * torch.from_numpy(stills["masks"]) - 10

    def change() -> float:
        """How much another object's mask changes what is made of the same frame, over that frame's own size."""
        low, pointer = sam2.encode(model, pixels).low_BCHW, torch.zeros(4, sam2.HIDDEN)
        read = [
            sam2.with_memory(
                model, low, [(0, sam2.encode_memory(model, low, logits[:, n], torch.ones(4), True))], [(1, pointer)]
            )
            for n in (0, 1)
        ]
        return float((read[0] - read[1]).std() / read[0].std())

    before = change()
    sam2.open_memory(model, pixels, logits[:, 0])
    assert before < 0.02
    assert change() > 0.05
