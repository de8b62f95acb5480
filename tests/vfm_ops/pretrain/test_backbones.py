"""Backbones by name, masked forwards, optimiser groups, heads and schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.vfm_ops.pretrain.tiny import VIT, build
from vfm_ops.errors import UsageError
from vfm_ops.pretrain.backbones import (
    build_backbone,
    masked_tokens,
    set_drop_path,
    set_grad_checkpointing,
    visible_tokens,
)
from vfm_ops.pretrain.heads import projector
from vfm_ops.pretrain.param_groups import layer_index, param_groups
from vfm_ops.pretrain.positions import sine_positions
from vfm_ops.pretrain.schedules import Cosine, Warmup
from vfm_ops.pretrain.train_config import train_config


def images(size: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "args", "size", "channels"),
    [
        ("vit_tiny_patch16_224", VIT, 16, 1),
        ("timm:vit_tiny_patch16_224", {**VIT, "reg_tokens": 2}, 24, 3),
        ("naflexvit_base_patch16_gap", {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}, 32, 3),
        ("resnet18", {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)}, 32, 4),
        ("beit_base_patch16_224", VIT, 16, 3),
    ],
)
def test_any_timm_backbone_at_any_size_and_channels(name, args, size, channels):
    backbone = build_backbone(name, size, channels, args).eval()
    assert backbone(images(size, channels)).shape == (2, backbone.num_features)


def test_naflex_takes_other_aspect_ratios_and_vits_other_sizes():
    args = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
    naflex = build_backbone("naflexvit_base_patch16_gap", 32, 3, args).eval()
    assert naflex(torch.randn(1, 3, 64, 24)).shape == (1, 24)
    vit = build_backbone("vit_tiny_patch16_224", 16, 3, VIT).eval()
    assert vit(images(8)).shape == vit(images(24)).shape == (2, 24)


def test_arguments_that_do_not_fit_are_a_usage_error():
    with pytest.raises(UsageError, match="can't be built"):
        build_backbone("vit_tiny_patch16_224", 16, 3, {"patch": 4})


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_token_forward_is_the_librarys_when_nothing_is_masked(name):
    backbone = build_backbone(name, 16, 3, VIT).eval()
    prefix, patches = masked_tokens(backbone, images())
    torch.testing.assert_close(torch.cat([prefix, patches], 1), backbone.forward_features(images()))


def test_visible_forward_over_all_patches_is_the_whole_encoder():
    backbone = build_backbone("vit_tiny_patch16_224", 16, 3, {**VIT, "reg_tokens": 2}).eval()
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    prefix, visible = visible_tokens(backbone, images(), order)
    whole = backbone.forward_features(images())
    torch.testing.assert_close(prefix, whole[:, :3], rtol=1e-4, atol=1e-5)
    expected = whole[:, 3:].gather(1, order.unsqueeze(-1).expand(-1, -1, 24))
    torch.testing.assert_close(visible, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_stochastic_depth_has_timms_schedule_and_spares_the_evaluation(name):
    import timm

    args = {**VIT, "depth": 5}
    mine = build_backbone(name, 16, 3, args)
    set_drop_path(mine, 0.4)
    theirs = timm.create_model(name, num_classes=0, img_size=16, drop_path_rate=0.4, **args)
    rates = [[getattr(b.drop_path1, "drop_prob", 0.0) for b in net.blocks] for net in (mine, theirs)]
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    torch.manual_seed(0)
    assert not torch.equal(mine.train()(images()), mine(images()))
    assert torch.equal(mine.eval()(images()), mine(images()))
    set_drop_path(mine, 0.4, uniform=True)
    assert {b.drop_path2.drop_prob for b in mine.blocks} == {0.4}


def test_stochastic_depth_of_a_resnet_is_a_usage_error():
    with pytest.raises(UsageError, match="set drop_path=0"):
        set_drop_path(build_backbone("resnet18", 32, 3), 0.1)


def _flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_mae_encodes_a_vit_large_for_a_quarter_of_the_flops():
    # Blocks only: the patch embedding is 0.4 % of the whole and the same in both.
    with torch.device("meta"):
        backbone = build_backbone("vit_large_patch16_224", 224, 3).eval()
        picture, visible = torch.empty(1, 3, 224, 224), torch.empty(1, 49, dtype=torch.long)
    patch_embedding = _flops(lambda: backbone.patch_embed(picture))
    whole = _flops(lambda: masked_tokens(backbone, picture)) - patch_embedding
    quarter = _flops(lambda: visible_tokens(backbone, picture, visible)) - patch_embedding
    tokens = lambda t: 12 * 1024**2 * t + 2 * 1024 * t**2  # noqa: E731 - multiply-adds of one block over t tokens
    assert whole / quarter == pytest.approx(tokens(197) / tokens(50), rel=1e-3)
    assert whole / quarter == pytest.approx(4.03, rel=0.015)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        torch.manual_seed(0)
        backbone = build_backbone("vit_tiny_patch16_224", 16, 3, VIT)
        set_grad_checkpointing(backbone, on)
        masked_tokens(backbone, images())[1].square().sum().backward()
        gradients.append(backbone.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_no_decay_on_vectors_and_every_parameter_is_in_one_group():
    objective = build("dinov2")
    groups = objective.param_groups(layer_decay=0.9, patch_embed_lr_scale=0.2)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(n for n, p in objective.named_parameters() if p.requires_grad)
    assert not any("teacher" in name for name in names)
    by_name = {name: group for group in groups for name in group["names"]}
    for name in (
        "backbone.blocks.0.norm1.weight",
        "backbone.blocks.1.attn.qkv.bias",
        "backbone.pos_embed",
        "mask_token",
    ):
        assert by_name[name]["wd_scale"] == 0, name
    assert by_name["backbone.blocks.1.attn.qkv.weight"]["wd_scale"] == 1
    # Two blocks: embeddings are layer 0 of 0 .. 3.
    assert by_name["backbone.patch_embed.proj.weight"]["lr_scale"] == pytest.approx(0.9**3 * 0.2)
    assert by_name["backbone.pos_embed"]["lr_scale"] == pytest.approx(0.9**3)
    assert by_name["backbone.blocks.0.attn.qkv.weight"]["lr_scale"] == pytest.approx(0.9**2)
    assert by_name["backbone.norm.weight"]["lr_scale"] == by_name["head.last_layer.weight"]["lr_scale"] == 1


def test_layers_are_counted_as_timm_counts_them():
    from timm.optim import param_groups_layer_decay

    objective = build("simclr")
    theirs = {}
    for group in param_groups_layer_decay(objective.backbone, layer_decay=0.5):
        for parameter in group["params"]:
            theirs[id(parameter)] = group["lr_scale"]
    for group in param_groups(objective, "backbone", 0.5):
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name.startswith("backbone.") and "backbone.norm" not in name:
                # timm puts the final norm with the last block; BEiT and DINOv2 give it, and the heads, a layer of its own.
                assert group["lr_scale"] == theirs[id(parameter)] * 0.5, name
    assert [layer_index(f"layer{i}.0.conv1.weight", 4) for i in (1, 4)] == [1, 4]
    assert layer_index("conv1.weight", 4) == 0


def test_schedules_pass_through_their_named_points():
    lr = Cosine(1.0, 0.1, 100, warmup=10)
    assert [lr(s) for s in (0, 5, 10, 55, 100, 200)] == pytest.approx([0, 0.5, 1.0, 0.55, 0.1, 0.1])
    rising = Cosine(0.996, 1.0, 10)
    assert rising(0) == 0.996
    assert rising(10) == 1.0
    assert all(rising(s) < rising(s + 1) for s in range(10))
    assert [Warmup(0.04, 0.07, 30)(s) for s in (0, 15, 30, 99)] == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_learning_rate_follows_the_papers_rule_for_the_batch():
    assert train_config("mae", batch_size=4096).learning_rate() == pytest.approx(1.5e-4 * 16)
    assert train_config("dinov2", batch_size=256).learning_rate() == pytest.approx(4e-3 / 2)
    assert train_config("dino", batch_size=512).learning_rate() == pytest.approx(1e-3)
    assert train_config("mae").betas == (0.9, 0.95)
    assert (train_config("dino").weight_decay, train_config("dino").weight_decay_end) == (0.04, 0.4)
    with pytest.raises(UsageError, match="did you mean 'base_lr'"):
        train_config("mae", baselr=1.0)


@pytest.mark.parametrize(("grid", "dim"), [((3, 5), 8), ((14, 14), 192)])
def test_fixed_positions_follow_their_formula(grid, dim):
    table = sine_positions(dim, grid).double()
    for y, x, pair in [(0, 0, 0), (1, 2, 1), (grid[0] - 1, grid[1] - 1, dim // 4 - 1)]:
        angle = 10000 ** (-pair / (dim / 4))
        row, quarter = table[y * grid[1] + x], dim // 4
        want = [math.sin(x * angle), math.cos(x * angle), math.sin(y * angle), math.cos(y * angle)]
        assert [float(row[i * quarter + pair]) for i in range(4)] == pytest.approx(want, abs=1e-6)
    with pytest.raises(UsageError, match="multiple of 4"):
        sine_positions(6, (2, 2))


def test_fixed_positions_do_not_move_and_other_sizes_interpolate_them():
    objective = build("mae")
    assert "backbone.pos_embed" not in [n for g in objective.param_groups() for n in g["names"]]
    learnt = build("mae", fixed_positions=False)
    assert learnt.state_dict().keys() == objective.state_dict().keys(), "checkpoints of both load in both"
    assert learnt.backbone.pos_embed.requires_grad
    assert objective.backbone.eval()(images(24)).isfinite().all()


@pytest.mark.parametrize(
    ("no_decay", "spared"),
    [
        ("nothing", set()),
        ("vectors", {"norm", "bias"}),
        ("vectors_and_positions", {"norm", "bias", "pos_embed", "cls_token"}),
        ("vectors_and_tokens", {"norm", "bias", "pos_embed", "cls_token", "mask_token"}),
    ],
)
def test_weight_decay_spares_what_the_authors_spare(no_decay, spared):
    groups = build("dinov2").param_groups(no_decay=no_decay)
    decays = {name: group["wd_scale"] for group in groups for name in group["names"]}
    named = {
        "norm": "backbone.norm.weight", "bias": "backbone.blocks.0.attn.qkv.bias", "pos_embed": "backbone.pos_embed",
        "cls_token": "backbone.cls_token", "mask_token": "mask_token",
    }  # fmt: skip
    assert {sort for sort, name in named.items() if not decays[name]} == spared
    assert decays["backbone.blocks.0.attn.qkv.weight"] == decays["head.last_layer.weight"] == 1


def test_mask_token_learns_at_the_rate_of_the_embeddings():
    groups = build("dinov2").param_groups(layer_decay=0.5)
    rates = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert rates["mask_token"] == rates["backbone.cls_token"] == 0.5**3


def test_projector_has_the_layers_of_its_paper():
    kinds = lambda m: [type(layer).__name__.replace("GlobalBatchNorm1d", "norm").lower() for layer in m]  # noqa: E731
    assert kinds(projector(8, 8, 4)) == ["linear", "norm", "relu", "linear"]
    assert kinds(projector(8, 8, 4, norm=False)) == ["linear", "relu", "linear"]
    assert kinds(projector(8, 8, 4, layers=3, last_norm=True))[-2:] == ["linear", "norm"]
    assert math.isclose(
        float(projector(8, 8, 4, last_norm=True)(torch.randn(64, 8)).detach().std(0, correction=0).mean()),
        1,
        rel_tol=1e-2,
    )


def test_attention_pictures_are_the_shares_that_the_model_itself_uses():
    from timm.utils import AttentionExtract

    from vfm_ops.pretrain.pictures import class_attention

    backbone = build_backbone("vit_tiny_patch16_224", 16, 3, {**VIT, "reg_tokens": 2}).eval()
    extract = AttentionExtract(backbone, method="hook", names=["blocks.1.attn.attn_drop"])
    backbone.blocks[1].attn.fused_attn = False
    shares = next(iter(extract(images()).values()))  # (B, heads, T, T)
    got = class_attention(backbone, images())
    assert got.shape == (2, 2, 4, 4)
    torch.testing.assert_close(got.flatten(2), shares[:, :, 0, 3:])
