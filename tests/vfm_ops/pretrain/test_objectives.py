"""Each objective trains, keeps its memory in its state, and avoids the traps that its paper's readers fall into."""

from __future__ import annotations

import math

import pytest
import torch

from tests.vfm_ops.pretrain.tiny import TINY, build, samples, tokenizer, training
from vfm_ops.errors import UsageError
from vfm_ops.pretrain.ema import ema_update, momentum_copy
from vfm_ops.pretrain.fit import fit, make_batch
from vfm_ops.pretrain.losses import dino as dino_losses
from vfm_ops.pretrain.registry import OBJECTIVES, build_objective, objective_class, objective_config
from vfm_ops.pretrain.step import Stepper


def tensors(name: str, step: int = 0) -> dict[str, torch.Tensor]:
    objective = build(name)
    batch = make_batch(objective.view_plan(objective.config), samples(), step, training(name), tokenizer())
    return {key: torch.as_tensor(value) for key, value in batch.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_lowers_its_loss(name):
    objective = build(name, **({"tokenizer_share": 0.0} if name == "beit" else {}))
    objective.prepare(40, 40, 8)
    # In eval mode nothing but the weights moves: no queue, no centre, no mixup.
    objective.eval().set_step(1)
    optimiser = torch.optim.AdamW(objective.param_groups(), lr=3e-3)
    batch, losses = tensors(name), []
    for _ in range(12):
        optimiser.zero_grad()
        out = objective(batch)
        out["loss"].backward()
        optimiser.step()
        losses.append(out["loss"].item())
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_setting_is_documented(name):
    undocumented = [key for key, field in objective_class(name).Config.model_fields.items() if not field.description]
    assert not undocumented


def test_wrong_names_are_met_with_the_right_ones():
    with pytest.raises(UsageError, match="did you mean dinov2"):
        objective_class("dinov22")
    with pytest.raises(UsageError, match=r"no such model; did you mean .*vit_base_patch16_224"):
        build_objective("supervised", backbone="vit_base_patch16_22")
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        objective_config("simclr", temprature=0.1)
    with pytest.raises(UsageError, match="temperature"):
        objective_config("simclr", temperature=-1)
    with pytest.raises(UsageError, match="needs a ViT"):
        build("mae", backbone="resnet18", backbone_args={})


def test_moco_refuses_a_queue_that_the_batch_does_not_divide():
    with pytest.raises(UsageError, match=r"queue of 32 keys is not divisible by the global batch 12: set queue=36"):
        Stepper(build("moco"), training("moco", batch_size=12), 24)


def test_moco_queue_holds_the_newest_keys_and_travels_in_the_checkpoint():
    objective = build("moco").train()
    keys = torch.nn.functional.normalize(torch.randn(40, 8), dim=-1)
    for start in range(0, 40, 8):
        objective.enqueue(keys[start : start + 8])
    torch.testing.assert_close(objective.queue_KD[:8], keys[32:])
    torch.testing.assert_close(objective.queue_KD[8:], keys[8:32])
    state = objective.state_dict()
    assert int(state["pointer"]) == 8
    torch.testing.assert_close(state["queue_KD"], objective.queue_KD)


def test_moco_v3_has_no_queue_and_leaves_the_patch_embedding_random():
    objective = build("moco", version="v3")
    assert "queue_KD" not in objective.state_dict()
    before = objective.backbone.patch_embed.proj.weight.clone()
    fit(objective, samples(), training("moco"), until_step=2)
    assert torch.equal(before, objective.backbone.patch_embed.proj.weight)
    assert not torch.equal(
        objective.key_backbone.blocks[0].attn.qkv.weight, objective.backbone.blocks[0].attn.qkv.weight
    )


def test_teacher_never_shares_storage_with_the_student():
    student = torch.nn.Linear(2, 2)
    teacher = momentum_copy(student)
    before = teacher.weight.clone()
    with torch.no_grad():
        student.weight += 1
    assert torch.equal(teacher.weight, before)
    ema_update(teacher, student, 0.75)
    torch.testing.assert_close(teacher.weight, before + 0.25)

    class Stubborn(torch.nn.Linear):
        def __deepcopy__(self, memo):
            return self

    with pytest.raises(RuntimeError, match="shares storage"):
        momentum_copy(Stubborn(2, 2))


def test_dino_targets_are_centred_by_earlier_batches_only(monkeypatch):
    order = []
    monkeypatch.setattr(
        dino_losses.Centre, "probabilities", _recording(dino_losses.Centre.probabilities, order, "targets")
    )
    monkeypatch.setattr(dino_losses.Centre, "update", _recording(dino_losses.Centre.update, order, "centre"))
    objective = build("dino").train()
    objective(tensors("dino"))
    assert order == ["targets", "centre"]
    moved = objective.centre.centre_1K.clone()
    assert moved.abs().sum() > 0
    objective.eval()(tensors("dino"))
    assert torch.equal(moved, objective.centre.centre_1K), "evaluation must not move the centre"


def _recording(function, order, name):
    def wrapper(*args, **kwargs):
        order.append(name)
        return function(*args, **kwargs)

    return wrapper


def test_dino_prototypes_rest_in_the_first_epoch_after_clipping():
    objective = build("dino")
    stepper = Stepper(objective, training("dino", weight_decay=0.5, epochs=4), 24)
    frozen = objective.head.last_layer.weight.clone()
    plan = objective.view_plan(objective.config)
    for step in range(4):
        assert torch.equal(frozen, objective.head.last_layer.weight), f"moved before step {step}"
        stepper.step(make_batch(plan, samples(), step, stepper.config))
    assert not torch.equal(frozen, objective.head.last_layer.weight)


def test_prototype_logits_stay_bounded_so_that_a_sharp_teacher_gives_no_nan():
    objective = build("dino")
    with torch.no_grad():
        objective.head.last_layer.weight.mul_(1e6)
        logits = objective.head(torch.randn(4, 24) * 1e4)
    assert logits.abs().max() <= 1 + 1e-5
    assert objective.centre.probabilities(logits, 0.04).isfinite().all()


def test_dinov2_student_meets_the_teachers_other_crop_and_koleo_takes_each_crop_apart():
    objective = build("dinov2", target="centring").eval()
    batch = tensors("dinov2")
    features = objective.encode(batch)
    logs = objective.loss(features)
    twin = dict(features, student=features["student"].clone())
    twin["student"][:, 1] = twin["student"][:, 0] + 1e-3  # an image's two crops nearly alike
    close = objective.loss(twin)["koleo"]
    # Neighbours are other images, so nearly equal crops of one image do not send KoLeo up to -ln 1e-3 = 6.9.
    assert close.item() < logs["koleo"].item() + 3


def test_ibot_hides_masked_pixels_from_the_student():
    objective = build("dinov2").eval()
    batch = tensors("dinov2")
    batch["mask"] = torch.zeros_like(batch["mask"])
    batch["mask"][:, :, 5] = True
    changed = {**batch, "global": batch["global"].clone()}
    changed["global"][:, :, 4:8, 4:8] = 255 - changed["global"][:, :, 4:8, 4:8]  # exactly patch 5 of a 4 x 4 grid
    with torch.no_grad():
        one, two = objective.encode(batch), objective.encode(changed)
    torch.testing.assert_close(one["student_patches"], two["student_patches"])
    assert not torch.allclose(one["teacher_patches"], two["teacher_patches"])


def test_mae_encoder_never_sees_what_it_has_to_reconstruct():
    objective = build("mae").eval()
    batch = tensors("mae")
    changed = {**batch, "image": batch["image"].clone()}
    hidden = batch["mask"].reshape(8, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    changed["image"][:, 0][hidden] = 255 - changed["image"][:, 0][hidden]
    with torch.no_grad():
        torch.testing.assert_close(objective.encode(batch)["tokens"], objective.encode(changed)["tokens"])


def test_mae_reconstruction_keeps_visible_pixels():
    objective = build("mae").eval()
    batch = tensors("mae")
    drawn = objective.reconstruct(batch)
    seen = ~batch["mask"].reshape(8, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert drawn.dtype == torch.uint8
    assert (drawn[seen].int() - batch["image"][:, 0][seen].int()).abs().max() <= 1
    assert not torch.equal(drawn[~seen], batch["image"][:, 0][~seen])


def test_beit_learns_its_tokenizer_first_and_then_leaves_it_alone():
    objective = build("beit", tokenizer_share=0.5)
    logs = fit(objective, samples(), training("beit"), until_step=3)
    assert all("codebook_perplexity" in log for log in logs)
    before = objective.tokenizer.codebook_VD.clone()
    rest = Stepper(objective, training("beit"), 24)
    rest.step_index = 3
    plan = objective.view_plan(objective.config)
    log = rest.step(make_batch(plan, samples(), 3, rest.config))
    assert "token_accuracy" in log
    assert torch.equal(before, objective.tokenizer.codebook_VD)


def test_clip_scale_starts_at_its_temperature_and_is_clamped_after_the_step():
    objective = build("clip")
    assert objective.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    for wild, tame in ((9.0, math.log(100)), (-3.0, 0.0)):
        objective.logit_scale.data.fill_(wild)
        objective.after_step()
        assert objective.logit_scale.item() == pytest.approx(tame)


def test_siglip_bias_is_the_papers_unless_the_batch_is_small():
    assert build("siglip", bias=-10.0).logit_bias.item() == -10
    objective = build("siglip", bias=None)
    objective.prepare(1, 1, 64)
    assert objective.logit_bias.item() == pytest.approx(-math.log(63))
    assert objective.logit_scale.item() == pytest.approx(math.log(10))


def test_tiny_settings_cover_all_objectives():
    assert set(TINY) == set(OBJECTIVES)
