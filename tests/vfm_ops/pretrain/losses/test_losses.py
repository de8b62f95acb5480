"""Every loss against an oracle that shares no code with it, in float64, value and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import optional_package
from vfm_ops.pretrain.losses.beit import beit_loss
from vfm_ops.pretrain.losses.dino import Centre, dino_loss
from vfm_ops.pretrain.losses.ibot import ibot_loss
from vfm_ops.pretrain.losses.info_nce import info_nce
from vfm_ops.pretrain.losses.koleo import koleo_loss
from vfm_ops.pretrain.losses.mae import mae_loss, patch_statistics, patchify, unpatchify
from vfm_ops.pretrain.losses.moco import moco_queue_loss, moco_v3_loss
from vfm_ops.pretrain.losses.nt_xent import nt_xent
from vfm_ops.pretrain.losses.siglip import siglip_loss
from vfm_ops.pretrain.losses.sinkhorn import sinkhorn
from vfm_ops.pretrain.losses.soft_target import soft_cross_entropy


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(rand(*shape, seed=seed), dim=-1)


def assert_same(ours, oracle, *inputs: Tensor, rel: float = 1e-6) -> None:
    """Values and gradients with respect to every input agree to `rel`."""
    results = []
    for function in (ours, oracle):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        results.append((value.detach(), torch.autograd.grad(value, leaves)))
    (value, grads), (want, want_grads) = results
    assert float((value - want).abs()) <= rel * float(want.abs())
    for got, expected in zip(grads, want_grads, strict=True):
        assert float((got - expected).norm()) <= rel * float(expected.norm())


@pytest.mark.parametrize("exchange", ["local", "global"])
def test_info_nce_equals_open_clip(exchange):
    ClipLoss = optional_package("open_clip.loss").ClipLoss

    inputs = unit(6, 4, seed=1), unit(6, 4, seed=2), torch.tensor(14.0, dtype=torch.float64)
    assert_same(lambda i, t, s: info_nce(i, t, s, exchange), ClipLoss(), *inputs)
    assert info_nce(torch.ones(5, 1), torch.ones(5, 1), torch.tensor(1.0)).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize(("exchange", "chunk"), [("ring", 1024), ("ring", 4), ("ring", 1), ("gather", 1024)])
def test_siglip_equals_open_clip(exchange, chunk):
    SigLipLoss = optional_package("open_clip.loss").SigLipLoss

    inputs = unit(6, 4, seed=1), unit(6, 4, seed=2), *(torch.tensor(x, dtype=torch.float64) for x in (10.0, -2.0))
    assert_same(lambda i, t, s, b: siglip_loss(i, t, s, b, exchange, chunk), SigLipLoss(), *inputs)


def test_siglip_gradients_scale_with_what_comes_after():
    inputs = unit(4, 3, seed=1), unit(4, 3, seed=2), *(torch.tensor(x, dtype=torch.float64) for x in (5.0, -1.0))
    ring, gather = (lambda *x, e=e: siglip_loss(*x, exchange=e).square() * 3 for e in ("ring", "gather"))
    assert_same(ring, gather, *inputs)


@pytest.mark.parametrize("bias", [-10.0, 0.0, -math.log(63)])
def test_siglip_loss_at_initialisation_shows_why_small_batches_want_another_bias(bias):
    # Orthogonal pairs: 1 positive and 63 negatives an image, all with logit = bias.
    closed = math.log1p(math.exp(-bias)) + 63 * math.log1p(math.exp(bias))
    blank = torch.zeros(64, 2, dtype=torch.float64)
    got = siglip_loss(blank, blank, torch.tensor(10.0).double(), torch.tensor(bias).double())
    assert got.item() == pytest.approx(closed, rel=1e-9)


def test_nt_xent_equals_lightly_and_half_the_reference_sum():
    NTXentLoss = optional_package("lightly.loss").NTXentLoss

    inputs = rand(6, 4, seed=1), rand(6, 4, seed=2)
    assert_same(lambda a, b: nt_xent(a, b, 0.3), NTXentLoss(temperature=0.3), *inputs)
    a, b = (F.normalize(x, dim=-1) for x in inputs)
    ones = torch.eye(6, dtype=torch.float64) * 1e9
    one_way = [torch.cat([x @ y.T, x @ x.T - ones], 1) / 0.3 for x, y in ((a, b), (b, a))]
    reference = sum(F.cross_entropy(logits, torch.arange(6)) for logits in one_way)
    assert nt_xent(*inputs, 0.3).item() == pytest.approx(reference.item() / 2, rel=1e-9)
    same = torch.ones(4, 2)
    assert nt_xent(same, same).item() == pytest.approx(math.log(7), rel=1e-5)


def test_moco_queue_loss_equals_its_equation():
    queue = unit(8, 4, seed=3)

    def by_hand(q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k.detach(), dim=-1)
        rows = []
        for i in range(len(q)):
            positive = (q[i] @ k[i] / 0.07).exp()
            rows.append(-(positive / (positive + sum((q[i] @ n / 0.07).exp() for n in queue))).log())
        return torch.stack(rows).mean() + 0 * k.sum()

    query, key = rand(5, 4, seed=1), rand(5, 4, seed=2)
    assert_same(lambda q: moco_queue_loss(q, key, queue), lambda q: by_hand(q, key), query)
    with_grad = key.clone().requires_grad_()
    moco_queue_loss(query.clone().requires_grad_(), with_grad, queue).backward()
    assert with_grad.grad is None, "keys are targets"


def test_moco_v3_is_symmetric_and_scaled_by_two_t():
    q, k = rand(6, 4, seed=1), rand(6, 4, seed=2)
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).T / 0.2
    by_hand = -(logits.diagonal() - logits.exp().sum(1).log()).mean() * 0.4
    assert moco_v3_loss(q, k, 0.2).item() == pytest.approx(by_hand.item(), rel=1e-9)
    assert_same(
        lambda x: moco_v3_loss(x, k, 0.2),
        lambda x: 0.4 * F.cross_entropy(F.cosine_similarity(x[:, None], k[None], dim=-1) / 0.2, torch.arange(6)),
        q,
    )


def test_dino_equals_lightly_with_crops_and_centre():
    DINOLoss = optional_package("lightly.loss").DINOLoss

    student, teacher = rand(5, 3, 6, seed=1), rand(2, 3, 6, seed=2)
    oracle = DINOLoss(output_dim=6, teacher_temp=0.04, student_temp=0.1, center_momentum=0.9).double()
    centre = Centre(6).double()
    for _ in range(2):  # the second call sees the centre of the first

        def theirs(s: Tensor) -> Tensor:
            return oracle(list(teacher.unbind(0)), list(s.unbind(0)), teacher_temp=0.04)

        targets = centre.probabilities(teacher, 0.04)
        assert_same(lambda s, t=targets: dino_loss(s, t, 0.1), theirs, student)
        centre.update(teacher)


def test_dino_skips_the_pairs_that_show_both_the_same_crop():
    student, target = rand(2, 1, 4, seed=1), F.softmax(rand(2, 1, 4, seed=2), -1)
    log_p = F.log_softmax(student / 0.1, -1)
    crossed = -(target[0, 0] @ log_p[1, 0] + target[1, 0] @ log_p[0, 0]) / 2
    assert dino_loss(student, target, 0.1).item() == pytest.approx(crossed.item(), rel=1e-9)
    assert dino_loss(student, target, 0.1, skip_same_view=False).item() != pytest.approx(crossed.item(), rel=1e-3)


def test_uniform_outputs_cost_exactly_ln_k():
    blank = torch.zeros(3, 2, 1000, dtype=torch.float64)
    assert dino_loss(blank, F.softmax(blank[:2], -1)).item() == pytest.approx(math.log(1000), rel=1e-12)


def test_centre_follows_its_equation_and_survives_in_the_state_dict():
    centre, rows = Centre(3, momentum=0.9).double(), rand(2, 4, 3)
    centre.update(rows)
    centre.update(rows)
    mean = rows.reshape(8, 3).mean(0)
    torch.testing.assert_close(centre.state_dict()["centre_1K"][0], (0.9 * 0.1 + 0.1) * mean)


def test_ibot_equals_lightly():
    IBOTPatchLoss = optional_package("lightly.loss").IBOTPatchLoss

    mask = torch.tensor([[[1, 0], [1, 1]], [[0, 0], [0, 1]], [[1, 1], [0, 0]]]) > 0
    teacher = rand(int(mask.sum()), 5, seed=2)
    weight = (1 / mask.sum((1, 2), keepdim=True)).expand(mask.shape)[mask].double()
    oracle = IBOTPatchLoss(output_dim=5, teacher_temp=0.04, student_temp=0.1).double()
    ours = F.softmax(teacher / 0.04, -1)
    assert_same(
        lambda s: ibot_loss(s, ours, weight, 3, 0.1),
        lambda s: (
            IBOTPatchLoss.forward(oracle, teacher, s, mask) * 1.0 if oracle.center.value.abs().sum() == 0 else None
        ),
        rand(int(mask.sum()), 5, seed=1),
    )


def test_images_without_a_mask_weigh_on_the_average():
    empty = ibot_loss(torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0), 4)
    assert empty.item() == 0
    one = rand(1, 5), F.softmax(rand(1, 5, seed=1), -1), torch.ones(1).double()
    assert ibot_loss(*one, 4).item() == pytest.approx(ibot_loss(*one, 1).item() / 4, rel=1e-9)


def test_sinkhorn_equals_the_published_iteration():
    logits, temperature = rand(6, 4), 0.3
    q = (logits / temperature).exp().T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * 4
        q /= q.sum(0, keepdim=True) * 6
    torch.testing.assert_close(sinkhorn(logits, temperature), (q * 6).T, rtol=1e-9, atol=1e-12)


def test_dinov2_balances_the_class_tokens_of_both_crops_together():
    """Against the joint iteration in float64; crop by crop, targets differ by a fifth of their mass."""
    from tests.vfm_ops.pretrain.tiny import build

    objective = build("dinov2", target="sinkhorn")
    logits, temperature = rand(2, 6, 32).clamp(-1, 1), 0.07

    def balanced(rows: Tensor) -> Tensor:
        q = (rows / temperature).exp().T
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / q.shape[0]
            q = q / q.sum(0, keepdim=True) / q.shape[1]
        return (q * q.shape[1]).T

    got = objective._targets(logits, objective.centre, temperature)
    torch.testing.assert_close(got, balanced(logits.reshape(12, 32)).reshape(2, 6, 32), rtol=1e-9, atol=1e-12)
    apart = torch.stack([balanced(crop) for crop in logits])
    assert 0.5 * (got - apart).abs().sum(-1).mean() > 0.1


def test_a_single_view_is_refused_instead_of_giving_nan():
    from vfm_ops.errors import UsageError

    alone = rand(1, 3, 6), F.softmax(rand(1, 3, 6, seed=1), -1)
    with pytest.raises(UsageError, match="at least two crops of each image"):
        dino_loss(*alone)
    assert dino_loss(*alone, skip_same_view=False).isfinite()


def test_sinkhorn_stays_finite_where_exponentials_overflow():
    extreme = rand(6, 4).float() * 50
    assert (extreme / 0.04).exp().isinf().any(), "the naive form must overflow here"
    got = sinkhorn(extreme, 0.04)
    assert got.isfinite().all()
    torch.testing.assert_close(got.sum(1), torch.ones(6))


def test_koleo_equals_lightly_and_its_closed_forms():
    KoLeoLoss = optional_package("lightly.loss").KoLeoLoss

    assert_same(koleo_loss, KoLeoLoss(), rand(7, 4))
    assert koleo_loss(torch.tensor([[1.0, 0], [-1, 0]])).item() == pytest.approx(-math.log(2), rel=1e-6)
    assert koleo_loss(torch.tensor([[1.0, 0], [0, 1]])).item() == pytest.approx(-math.log(math.sqrt(2)), rel=1e-6)
    assert koleo_loss(torch.ones(3, 2)).isfinite(), "identical features must not give infinity"


def _vit_mae(norm_pix_loss: bool):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4,
        decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=1, decoder_intermediate_size=8,
        norm_pix_loss=norm_pix_loss,
    )  # fmt: skip
    return ViTMAEForPreTraining(config).double()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_mae_equals_transformers(norm_pix_loss):
    oracle, images = _vit_mae(norm_pix_loss), rand(2, 3, 8, 8)
    torch.testing.assert_close(patchify(images, 4), oracle.patchify(images))
    out = oracle(images, noise=rand(2, 4, seed=1))
    (want,) = torch.autograd.grad(out.loss, out.logits)
    predicted = out.logits.detach().requires_grad_()
    loss = mae_loss(predicted, patchify(images, 4), out.mask.bool(), norm_pix_loss)
    (got,) = torch.autograd.grad(loss, predicted)
    assert loss.item() == pytest.approx(out.loss.item(), rel=1e-6)
    assert float((got - want).norm()) <= 1e-6 * float(want.norm())


def test_mae_loss_moves_only_with_masked_patches():
    predicted, target = rand(2, 4, 12).requires_grad_(), rand(2, 4, 12, seed=1)
    mask = torch.tensor([[True, False, True, True], [False, True, False, True]])
    mae_loss(predicted, target, mask).backward()
    moved = predicted.grad.abs().sum(-1) > 0
    assert torch.equal(moved, mask)


def test_reconstructions_are_drawn_in_the_pixels_of_the_image():
    images = rand(2, 3, 8, 12)
    patches = patchify(images, 4)
    torch.testing.assert_close(unpatchify(patches, 4, 8, 12), images)
    mean, std = patch_statistics(patches)
    torch.testing.assert_close(((patches - mean) / std) * std + mean, patches)
    torch.testing.assert_close(std[..., 0], (patches.var(-1, correction=1) + 1e-6).sqrt())


def test_beit_and_soft_labels_equal_their_equations():
    logits, ids = rand(5, 7), torch.tensor([0, 6, 3, 3, 1])
    by_hand = lambda x: -(x.exp() / x.exp().sum(-1, keepdim=True)).log()[torch.arange(5), ids].mean()  # noqa: E731
    assert_same(lambda x: beit_loss(x, ids), by_hand, logits)
    assert_same(
        lambda x: soft_cross_entropy(x, ids, 0.1), lambda x: F.cross_entropy(x, ids, label_smoothing=0.1), logits
    )
    soft = F.softmax(rand(5, 7, seed=3), -1)
    assert_same(lambda x: soft_cross_entropy(x, soft), lambda x: F.cross_entropy(x, soft), logits)
