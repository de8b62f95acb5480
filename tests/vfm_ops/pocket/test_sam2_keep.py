"""If these fail, pocket-sam2 that is taught corrections forgets how to track."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from vfm_ops.pocket import sam2_keep, sam2_train


@pytest.fixture(scope="module")
def teacher(model):
    return copy.deepcopy(model).requires_grad_(False)


@pytest.fixture(scope="module")
def known(teacher):
    return sam2_keep.known_frames(teacher, [teacher], 1, 3, say=lambda _: None)


TAUGHT = ("mask_decoder", "prompt_encoder", "object_pointer_proj")


def without_margin(model):
    made = copy.deepcopy(model)
    sam2_train.doubt_presence(made, -sam2_train.PRESENCE_MARGIN)
    return made


def test_what_is_kept_are_boxed_first_frames_and_all_the_tracked_ones(known):
    boxed, tracked = known
    assert len(boxed) == 8
    assert len(tracked) >= 5 * 8
    assert len(tracked) % 8 == 0
    assert boxed.labels[:, 0].tolist() == [[2, 3]] * 8
    assert tracked.points is None
    assert tracked.logits_FSS.shape[1:] == (32, 32)
    assert tracked.fine_F.dtype == torch.float16


@pytest.mark.parametrize("which", [0, 1])
def test_a_model_is_where_its_teacher_is_and_not_where_another_is(teacher, known, which):
    frames = sam2_keep.random_frames(np.random.default_rng(0), known[which], 16)
    spread = float(frames.pointers_FC.var())
    with torch.no_grad():
        same = sam2_keep.kept_losses(without_margin(teacher), frames, spread)
        other, generator = without_margin(teacher), torch.Generator().manual_seed(0)
        for parameter in other.mask_decoder.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
        changed = sam2_keep.kept_losses(other, frames, spread)
        doubting = sam2_keep.kept_losses(teacher, frames, spread)
    assert all(v < 0.01 for v in same.values()), same
    assert all(changed[name] > 2 * same[name] + 1e-4 for name in same), (same, changed)
    assert doubting["kept presence"] > 1, "the margin is taken off what the teacher says of presence"


def test_what_is_kept_pulls_a_model_back_to_its_teacher(teacher, known):
    model = without_margin(teacher).requires_grad_(True)
    tracked, losses, generator = known[1].of(torch.arange(16)), [], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(sam2_keep.TAUGHT):
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    updates = torch.optim.Adam([p for n, p in model.named_parameters() if n.startswith(sam2_keep.TAUGHT)], 1e-3)
    for _ in range(12):
        loss = sam2_keep.kept_total(sam2_keep.kept_losses(model, tracked, float(tracked.pointers_FC.var())))
        updates.zero_grad()
        loss.backward()
        updates.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_halfway_is_amid_both_decoders_and_leaves_the_rest(teacher):
    model = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    sam2_keep.halfway(model, teacher)
    old = dict(teacher.named_parameters())
    moved = {name: float((p - old[name]).mean()) for name, p in model.named_parameters()}
    assert moved["mask_decoder.mask_tokens.weight"] == pytest.approx(0.5, abs=1e-4)
    assert moved["object_pointer_proj.proj_in.weight"] == pytest.approx(0.5, abs=1e-4)
    assert moved["prompt_encoder.point_embed.weight"] == pytest.approx(1, abs=1e-4)
    assert moved["memory_attention.layer_norm.weight"] == pytest.approx(1, abs=1e-4)


def test_a_short_stage_teaches_decoder_and_prompts_and_puts_the_margin_back(teacher):
    model = copy.deepcopy(teacher).requires_grad_(True)
    sam2_keep.teach_corrections(model, 1, 1, say=lambda _: None)
    old = dict(teacher.named_parameters())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, old[name])}
    assert {name.split(".")[0] for name in changed} == {*TAUGHT, "mask_downsample"}
    bias = model.mask_decoder.pred_obj_score_head.proj_out.bias.item()
    assert bias == pytest.approx(5, abs=0.2)
