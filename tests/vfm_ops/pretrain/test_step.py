"""A run that was interrupted, split or moved is the same run; a broken one stops and says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.vfm_ops.pretrain.tiny import build, samples, tokenizer, training
from vfm_ops.errors import UsageError, VfmError
from vfm_ops.pretrain.accumulate import backward_step
from vfm_ops.pretrain.data import Samples, batch_positions
from vfm_ops.pretrain.fit import fit, make_batch, newest_checkpoint, write_checkpoint
from vfm_ops.pretrain.monitor import CollapseAlarm, effective_rank, spread
from vfm_ops.pretrain.registry import OBJECTIVES
from vfm_ops.pretrain.step import CollapseStop, Stepper, TrainingDiverged, clip_gradients, clip_groups


@pytest.mark.parametrize("name", OBJECTIVES)
def test_resumed_run_has_the_losses_of_an_uninterrupted_one(name, tmp_path):
    tok, config = tokenizer(), training(name, weight_decay_end=0.2)
    whole = fit(build(name), samples(), config, tok)
    parts = [fit(build(name), samples(), config, tok, folder=tmp_path, until_step=stop) for stop in (2, 5, None)]
    resumed = [log for part in parts for log in part]
    assert [log["step"] for log in resumed] == list(range(6))
    for one, two in zip(whole, resumed, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert (two["lr"], two["weight_decay"]) == (one["lr"], one["weight_decay"])


@pytest.mark.parametrize(("name", "step"), [*((name, 1) for name in OBJECTIVES), ("beit", 0)])
def test_micro_batches_give_the_gradient_of_the_whole_batch(name, step):
    """Of BEiT, step 0 is the tokenizer's, step 1 the backbone's."""
    import contextlib

    plain = {"mixup": 0.0, "cutmix": 0.0} if name == "supervised" else {}
    results = []
    for parts in (1, 4):
        objective = build(name, **plain).double().train()
        objective.prepare(10, 10, 8)
        objective.set_step(step)
        batch = make_batch(objective.view_plan(objective.config), samples(), 0, training(name), tokenizer())
        tensors = {key: torch.as_tensor(value) for key, value in batch.items()}
        logs, _ = backward_step(objective, tensors, parts, contextlib.nullcontext)
        grads = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
        results.append((logs["loss"].item(), grads, dict(objective.named_buffers())))
    (loss, grads, buffers), (split_loss, split_grads, split_buffers) = results
    assert split_loss == pytest.approx(loss, rel=1e-9)
    assert grads.keys() == split_grads.keys()
    for key in grads:
        assert float((grads[key] - split_grads[key]).norm()) <= 1e-6 * float(grads[key].norm()) + 1e-12, key
    for key in buffers:
        torch.testing.assert_close(split_buffers[key], buffers[key], msg=key)


def test_every_sample_is_seen_once_an_epoch_whatever_the_batch():
    places = [place for step in range(25) for place in batch_positions(step, 8, 20, seed=3)]
    for epoch in range(10):
        assert sorted(i for e, i in places if e == epoch) == list(range(20))
    assert places[:20] != places[20:40]
    assert batch_positions(7, 8, 20, seed=3) == places[56:64], "a step's samples follow from its number alone"


def test_shards_of_a_batch_make_up_the_batch_of_fewer_workers():
    objective, config = build("simclr"), training("simclr")
    plan = objective.view_plan(objective.config)
    alone = make_batch(plan, samples(), 1, config)["image"]
    from vfm_ops.pretrain.augment import collate, make_views

    places = batch_positions(1, 8, 24, config.seed)
    halves = [
        collate([make_views(plan, samples()[i], config.seed, epoch) for epoch, i in places[rank::2]])["image"]
        for rank in range(2)
    ]
    assert np.array_equal(alone[0::2], halves[0])
    assert np.array_equal(alone[1::2], halves[1])


def test_nan_stops_before_weights_are_touched_and_keeps_the_checkpoint(tmp_path):
    objective, config = build("simclr"), training("simclr")
    fit(objective, samples(), config, folder=tmp_path, until_step=2)
    good = newest_checkpoint(tmp_path).read_bytes()
    again = build("simclr")
    stepper = Stepper(again, config, 24)
    again.projector[0].weight.data.fill_(float("nan"))
    before = again.backbone.blocks[0].attn.qkv.weight.clone()
    with pytest.raises(TrainingDiverged, match=r"loss became nan at step 0 .* lower base_lr"):
        stepper.step(make_batch(again.view_plan(again.config), samples(), 0, config))
    assert torch.equal(before, again.backbone.blocks[0].attn.qkv.weight)
    assert newest_checkpoint(tmp_path).read_bytes() == good


def test_checkpoint_of_another_config_is_refused_by_name(tmp_path):
    fit(build("simclr"), samples(), training("simclr"), folder=tmp_path, until_step=1)
    with pytest.raises(UsageError, match=r"objective_config.temperature was 0.1, now 0.3"):
        fit(build("simclr", temperature=0.3), samples(), training("simclr"), folder=tmp_path)
    with pytest.raises(UsageError, match=r"train_config.base_lr was 0.001, now 0.5"):
        fit(build("simclr"), samples(), training("simclr", base_lr=0.5), folder=tmp_path)
    with pytest.raises(UsageError, match="objective was 'simclr', now 'mae'"):
        fit(build("mae"), samples(), training("mae"), folder=tmp_path)


def test_every_differing_setting_is_named_with_what_it_was(tmp_path):
    fit(build("mae"), samples(), training("mae"), folder=tmp_path, until_step=1)
    with pytest.raises(UsageError, match=r"go on with what it was \(base_lr=0.001 weight_decay=0.05\)"):
        fit(build("mae"), samples(), training("mae", base_lr=0.5, weight_decay=0.1), folder=tmp_path)


@pytest.mark.parametrize("name", ["mae", "dinov2", "simclr"])
def test_checkpoint_from_before_a_key_existed_goes_on_with_what_was_done_then(name, tmp_path):
    """Written without the newer keys and grouped as of old; with the settings that the refusal names, training goes on."""
    then = {
        "drop_path": 0.0, "interpolation": "area", "fixed_positions": False, "saturation": 0.5, "layer_scale": 0.0,
        "projection_layers": 2, "projection_norm": False,
    }  # fmt: skip
    keys = type(build(name).config).model_fields
    old = {key: value for key, value in then.items() if key in keys}
    config = training(name, no_decay="vectors_and_tokens", clip_by="all", optimizer="adamw", min_lr=0.0)
    whole = fit(build(name, **old), samples(), config, tokenizer(), folder=tmp_path / "whole")
    fit(build(name, **old), samples(), config, tokenizer(), folder=tmp_path, until_step=2)
    path = newest_checkpoint(tmp_path)
    state = torch.load(path, weights_only=True)
    for key in old:
        del state["objective_config"][key]
    for key in ("no_decay", "clip_by", "eps", "sgd_momentum", "warmup_steps"):
        del state["train_config"][key]
    groups = state["optimizer"]["param_groups"]
    groups[0]["names"], groups[0]["params"] = groups[0]["names"][::-1], groups[0]["params"][::-1]
    groups.reverse()
    torch.save(state, path)
    with pytest.raises(UsageError, match="go on with what it was") as refusal:
        fit(build(name, **{**old, "interpolation": "bicubic"}), samples(), config, tokenizer(), folder=tmp_path)
    assert 'interpolation="area"' in str(refusal.value)
    rest = fit(build(name, **old), samples(), config, tokenizer(), folder=tmp_path)
    assert [log["loss"] for log in rest] == pytest.approx([log["loss"] for log in whole[2:]], rel=1e-5)


def test_dino_clips_each_parameter_by_itself():
    """Float64, by the authors' rule: limit / (norm + 1e-6) where that is less than 1."""
    objective = build("dino").double()
    generator = torch.Generator().manual_seed(0)
    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.grad = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    before = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    for parameters in clip_groups(objective, "parameter"):
        clip_gradients(parameters, 3.0)
    norms = {name: float(gradient.square().sum()) ** 0.5 for name, gradient in before.items()}
    assert min(norms.values()) < 3 < max(norms.values())
    for name, parameter in objective.named_parameters():
        if name in before:
            want = before[name] * min(1.0, 3.0 / (norms[name] + 1e-6))
            torch.testing.assert_close(parameter.grad, want, rtol=1e-12, atol=0, msg=name)


def test_dinov2_clips_backbone_and_heads_apart_and_the_rest_clip_all_together():
    objective = build("dinov2")
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    groups = clip_groups(objective, "module")
    for parameters in groups:
        clip_gradients(parameters, 1.0)
    norm = lambda ps: sum(float(p.grad.square().sum()) for p in ps if p.grad is not None) ** 0.5  # noqa: E731
    assert [norm(g) for g in groups if norm(g)] == pytest.approx([1.0, 1.0, 1.0], rel=1e-4)
    assert any(p is objective.mask_token for p in groups[0])
    clip_gradients(clip_groups(objective, "all")[0], 0.5)
    assert norm(objective.parameters()) == pytest.approx(0.5, rel=1e-4)


def test_lars_moves_each_layer_by_its_own_norm_and_vectors_by_plain_momentum():
    """Two steps in float64 against the closed form: v = 0.9 v + 0.001 |w| / |g + wd w| (g + wd w), w = w - lr v."""
    objective = build("simclr").double()
    config = training("simclr", weight_decay=1e-6)
    stepper = Stepper(objective, config, 24)
    names = ["projector.0.weight", "projector.1.bias"]
    parameters = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    gradients = [
        {n: torch.randn(p.shape, generator=generator).double() for n, p in parameters.items()} for _ in range(2)
    ]
    want = {n: parameters[n].detach().clone() for n in names}
    velocity = {n: torch.zeros_like(want[n]) for n in names}
    for gradient in gradients:
        for group in stepper.optimizer.param_groups:
            group["lr"], group["weight_decay"] = 4.8, 1e-6 * group["wd_scale"]
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].clone()
        stepper.optimizer.step()
        for name in names:
            pull = gradient[name]
            if name.endswith("0.weight"):
                pull = pull + 1e-6 * want[name]
                pull = pull * 0.001 * want[name].norm() / pull.norm()
            velocity[name] = 0.9 * velocity[name] + pull
            want[name] = want[name] - 4.8 * velocity[name]
    for name in names:
        # timm divides by |g| + wd |w|, which differs by at most 2 wd |w| / |g|.
        torch.testing.assert_close(parameters[name].detach(), want[name], rtol=1e-6, atol=1e-8, msg=name)


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    state = Stepper(build("simclr"), training("simclr"), 24).state_dict()
    write_checkpoint(state, tmp_path)

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(VfmError, match=r"No space left .* free space and resume"):
        write_checkpoint({**state, "step": 9}, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000000.pt"]


def test_old_checkpoints_are_removed_only_beyond_the_number_kept(tmp_path):
    fit(build("simclr"), samples(), training("simclr"), folder=tmp_path, checkpoint_every=1, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005.pt", "step-00000006.pt"]


def test_missing_columns_and_wrong_batches_are_named():
    nothing = Samples(samples().images)
    with pytest.raises(UsageError, match="clip needs captions"):
        fit(build("clip"), nothing, training("clip"), tokenizer())
    with pytest.raises(UsageError, match="no tokenizer"):
        fit(build("clip"), samples(), training("clip"))
    with pytest.raises(UsageError, match="supervised needs labels"):
        fit(build("supervised"), nothing, training("supervised"))
    with pytest.raises(UsageError, match=r"label 2 is outside 0 .. 1"):
        fit(build("supervised", classes=2), samples(), training("supervised"))
    with pytest.raises(UsageError, match="batch_size 8 is not divisible by accumulate 3"):
        training("mae", accumulate=3)
    with pytest.raises(UsageError, match="selection is empty"):
        fit(build("mae"), Samples(samples().images[:0]), training("mae"))


def test_alarm_names_a_collapsing_run_within_an_epoch():
    # What collapses DINO: no centring and a hundred times the learning rate. 24 samples, so that an epoch here is 192 of them.
    wild = {
        "base_lr": 0.1,
        "clip_grad": None,
        "epochs": 16,
        "warmup_epochs": 0,
        "monitor_every": 1,
        "on_collapse": "stop",
    }
    objective = build("dino", centring=False, momentum=0.5, freeze_last_layer_epochs=0)
    with pytest.raises(CollapseStop, match=r"dino at step \d+: (features collapsed|the loss stays|all targets choose)"):
        fit(objective, samples(), training("dino", **wild), until_step=24)
    calm = training("dino", base_lr=1e-4, monitor_every=1, on_collapse="stop", epochs=8)
    healthy = fit(build("dino", momentum=0.99), samples(), calm, until_step=24)
    assert len(healthy) == 24


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ({"loss": 3.4657, "target_entropy": 3.4657, "mean_target_entropy": 3.4657}, r"ln K = 3.466"),
        ({"loss": 0.001, "target_entropy": 0.0, "mean_target_entropy": 0.001}, "one prototype"),
        ({"loss": 1.0, "spread": 0.001}, "point"),
        ({"loss": 1.0, "effective_rank": 1.01}, "effective rank 1.01"),
    ],
)
def test_alarm_waits_for_patience_and_forgets_after_recovery(logs, message):
    import re

    alarm = CollapseAlarm(prototypes=32, patience=3)
    fine = {"loss": 2.0, "target_entropy": 1.0, "mean_target_entropy": 3.0, "spread": 0.5, "effective_rank": 9.0}
    assert [alarm.observe(x) for x in (logs, logs, fine, logs, logs)] == [None] * 5
    assert re.search(message, alarm.observe(logs))


def test_effective_rank_and_spread_equal_their_closed_forms():
    basis = torch.linalg.qr(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))[0]
    flat = torch.cat([basis, -basis])  # centred, eight equal singular values
    assert effective_rank(flat) == pytest.approx(8, rel=1e-4)
    assert effective_rank(torch.ones(10, 4)) == 0
    assert effective_rank(torch.arange(10.0)[:, None] * torch.ones(1, 4)) == pytest.approx(1, rel=1e-4)
    sphere = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1))
    assert spread(sphere) == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(10, 4)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bf16_steps_stay_near_fp32_ones(name):
    losses = []
    for precision in ("fp32", "bf16"):
        settings = {"tokenizer_share": 0.0} if name == "beit" else {}
        config = training(name, precision=precision, accumulate=2, grad_checkpointing=True)
        torch.manual_seed(0)
        losses.append(
            [log["loss"] for log in fit(build(name, **settings), samples(), config, tokenizer(), until_step=2)]
        )
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0], "bf16 must have been used"
