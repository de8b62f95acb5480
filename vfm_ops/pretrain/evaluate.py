"""How good features are: weighted kNN, linear probe, zero-shot classification, retrieval, on features in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.augment import CropPlan, one_crop
from vfm_ops.pretrain.monitor import effective_rank
from vfm_ops.pretrain.objective import Objective

__all__ = [
    "effective_rank", "extract_features", "knn_accuracy", "linear_probe", "retrieval_recall", "ridge_probe",
    "zero_shot_accuracy",
]  # fmt: skip


@torch.no_grad()
def extract_features(objective: Objective, images: Sequence[np.ndarray] | np.ndarray, batch: int = 512) -> Tensor:
    """Features of every image, in order, none dropped: (N, D) float32 on the CPU.

    images: uint8 (H, W, C) each; those of another size than the objective's are squashed to it.
    """
    device = objective.pixel_mean.device
    parts = [
        objective.embed(torch.tensor(np.stack(evaluation_views(objective, images[i : i + batch]))).to(device)).cpu()
        for i in range(0, len(images), batch)
    ]
    return torch.cat(parts)


def evaluation_views(objective: Objective, images: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    """Each image at the objective's size, whole and unchanged otherwise: uint8 (size, size, C)."""
    whole = CropPlan(size=objective.config.image_size, scale=None, flip_p=0.0)
    rng = np.random.default_rng(0)  # unused: nothing in this plan is random
    return [one_crop(image, whole, 0, rng) for image in images]


@torch.no_grad()
def knn_accuracy(
    train_ND: Tensor,
    train_label_N: Tensor,
    test_MD: Tensor,
    test_label_M: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of a vote of the k nearest by cosine, each weighing exp(cosine / T) (Wu et al. 2018; DINO uses k 20, T 0.07)."""
    if k > len(train_ND):
        raise UsageError(f"k = {k} neighbours are wanted of {len(train_ND)} samples: lower k")
    bank_ND = F.normalize(train_ND, dim=-1)
    classes = int(torch.cat([train_label_N, test_label_M]).max()) + 1
    right = 0
    for query_QD, label_Q in zip(F.normalize(test_MD, dim=-1).split(1024), test_label_M.split(1024)):
        cosine_Qk, index_Qk = (query_QD @ bank_ND.T).topk(k, dim=1)
        # Relative to the nearest, which is the same vote and can't overflow.
        weight_Qk = ((cosine_Qk - cosine_Qk[:, :1]) / temperature).exp()
        votes_QC = weight_Qk.new_zeros(len(query_QD), classes).scatter_add_(1, train_label_N[index_Qk], weight_Qk)
        right += int((votes_QC.argmax(1) == label_Q).sum())
    return right / len(test_MD)


def _standardise(train_ND: Tensor, test_MD: Tensor) -> tuple[Tensor, Tensor]:
    mean_D, std_D = train_ND.double().mean(0), train_ND.double().std(0).clamp(min=1e-6)
    return (train_ND.double() - mean_D) / std_D, (test_MD.double() - mean_D) / std_D


def ridge_probe(
    train_ND: Tensor, train_label_N: Tensor, test_MD: Tensor, test_label_M: Tensor, penalty: float = 1e-3
) -> float:
    """Accuracy of ridge regression onto one-hot labels, in closed form: (X'X / N + penalty I) W = X'Y / N."""
    x_ND, z_MD = _standardise(train_ND, test_MD)
    y_NC = F.one_hot(train_label_N).double()
    offset_C = y_NC.mean(0)
    gram_DD = x_ND.T @ x_ND / len(x_ND) + penalty * torch.eye(x_ND.shape[1], dtype=torch.float64)
    weight_DC = torch.linalg.solve(gram_DD, x_ND.T @ (y_NC - offset_C) / len(x_ND))
    return float(((z_MD @ weight_DC + offset_C).argmax(1) == test_label_M).double().mean())


def linear_probe(
    train_ND: Tensor,
    train_label_N: Tensor,
    test_MD: Tensor,
    test_label_M: Tensor,
    penalty: float = 1e-4,
    iterations: int = 100,
) -> float:
    """Accuracy of multinomial logistic regression on standardised features, by L-BFGS: convex, so there is no lr to tune.

    penalty: of the squared weights, added to the mean cross-entropy.
    """
    x_ND, z_MD = (x.float() for x in _standardise(train_ND, test_MD))
    classes = int(train_label_N.max()) + 1
    weight_DC = torch.zeros(x_ND.shape[1], classes, requires_grad=True)
    bias_C = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight_DC, bias_C], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x_ND @ weight_DC + bias_C, train_label_N) + penalty * weight_DC.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return float(((z_MD @ weight_DC + bias_C).argmax(1) == test_label_M).double().mean())


@torch.no_grad()
def zero_shot_accuracy(image_ND: Tensor, class_text_CPD: Tensor, label_N: Tensor) -> float:
    """Accuracy of the class whose mean prompt embedding is nearest. class_text_CPD: P prompts for each of C classes."""
    class_CD = F.normalize(F.normalize(class_text_CPD, dim=-1).mean(1), dim=-1)
    return float(((F.normalize(image_ND, dim=-1) @ class_CD.T).argmax(1) == label_N).double().mean())


@torch.no_grad()
def retrieval_recall(
    query_ND: Tensor, target_MD: Tensor, match_N: Sequence[set[int]], ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """recall@k: share of queries with a right target among the k nearest by cosine. match_N: right targets of each query."""
    cosine_NM = F.normalize(query_ND, dim=-1) @ F.normalize(target_MD, dim=-1).T
    ranked = cosine_NM.topk(min(max(ks), len(target_MD)), dim=1).indices.tolist()
    return {k: float(np.mean([bool(match & set(row[:k])) for match, row in zip(match_N, ranked)])) for k in ks}
