"""Nearest-centroid kernels: which of K centroids is nearest to each of N rows, at the speed of matrix products.

    argmin_k |x - c_k|^2  =  argmax_k  (x - m).(c_k - m) - |c_k - m|^2 / 2        for any shift m

With m near the mean the scores are small numbers, so that bfloat16 products (twice as fast where the CPU has them)
pick a centroid whose distance is the least one to within a few thousandths; 'exact' uses float32 throughout.
The offset travels as two extra columns, its high and its low half, so that it loses nothing to bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vfm_ops.curate.blocks import Block
from vfm_ops.errors import UsageError

PRECISIONS = ("auto", "exact", "bf16")


def resolve_device(device: str = "auto") -> str:
    """'cuda' or 'cpu'; 'auto' takes CUDA where there is a card."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but this machine has no CUDA card: use device=cpu or auto")
    return device


def resolve_precision(precision: str = "auto", device: str = "cpu") -> str:
    """'bf16' or 'exact'; 'auto' takes bf16 where the hardware multiplies it natively."""
    import torch

    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "auto":
        return precision
    if device != "cpu":
        return "bf16"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bf16" if native is not None and native() else "exact"


def normalised(x_ND: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float32."""
    x_ND = np.asarray(x_ND, dtype=np.float32)
    norm_N1 = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND, dtype=np.float64))[:, None]
    # A float64 divisor would make the quotient float64 too: four times the memory traffic, for half a unit in the last place.
    return x_ND / np.maximum(norm_N1, 1e-30).astype(np.float32)


def rows_of(block: Block, metric: str) -> np.ndarray:
    """The block's rows as float32, L2-normalised under cosine."""
    if metric == "cosine":
        return normalised(block.x_ND)
    return np.asarray(block.x_ND, dtype=np.float32)


def _dtype(precision: str) -> Any:
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


def shifted_rows(x_ND: np.ndarray, shift_D: np.ndarray, precision: str, device: str) -> Any:
    """Tensor (N, D + 2): x - m, followed by two ones."""
    import torch

    out = torch.ones(len(x_ND), x_ND.shape[1] + 2, dtype=_dtype(precision), device=device)
    out[:, :-2] = torch.from_numpy(x_ND - shift_D).to(device)
    return out


def shifted_centroids(centroids_KD: np.ndarray, shift_D: np.ndarray, precision: str, device: str) -> Any:
    """Tensor (K, D + 2): c - m, followed by the high and the low half of -|c - m|^2 / 2."""
    import torch

    c_KD = torch.from_numpy(np.asarray(centroids_KD, np.float32) - shift_D).to(device=device, dtype=_dtype(precision))
    offset_K = -0.5 * c_KD.double().square().sum(dim=1)
    high_K = offset_K.to(c_KD.dtype)
    low_K = (offset_K - high_K.double()).to(c_KD.dtype)
    return torch.cat([c_KD, high_K[:, None], low_K[:, None]], dim=1)


def _argmax(score_NK: Any) -> np.ndarray:
    """Row-wise argmax. CPU: numpy's vectorised one, on the bits of bfloat16 (they order like int16 when positive)."""
    import torch

    if score_NK.device.type != "cpu":
        return score_NK.argmax(dim=1).cpu().numpy()
    if score_NK.dtype != torch.bfloat16:
        return score_NK.numpy().argmax(axis=1)
    bits_NK = score_NK.view(torch.int16).numpy()
    best_N = bits_NK.argmax(axis=1)
    negative = np.flatnonzero(bits_NK[np.arange(len(best_N)), best_N] < 0)
    if len(negative):
        best_N[negative] = score_NK[torch.from_numpy(negative)].float().numpy().argmax(axis=1)
    return best_N


def nearest(rows: Any, centroids: Any) -> np.ndarray:
    """Index of the nearest centroid of each row, int64 (N,): rows and centroids as `shifted_*` made them.

    Works in tiles whose scores stay in the second-level cache.
    """
    tile = max(128, min(2048, (1 << 20) // max(1, len(centroids))))
    if rows.device.type != "cpu":
        tile = 1 << 16
    picks = [_argmax(rows[i : i + tile] @ centroids.T) for i in range(0, len(rows), tile)]
    return np.concatenate(picks) if picks else np.zeros(0, np.int64)


def distances_to(x_ND: np.ndarray, centroids_KD: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Squared distance of each row to its labelled centroid, float32: differences first, so that equal rows give 0."""
    import torch

    out_N = np.empty(len(x_ND), np.float32)
    c_KD = torch.from_numpy(centroids_KD)
    for i in range(0, len(x_ND), 2048):
        part = slice(i, i + 2048)
        gap_ND = torch.from_numpy(x_ND[part]) - c_KD[torch.from_numpy(labels_N[part])]
        out_N[part] = torch.linalg.vecdot(gap_ND, gap_ND).numpy()
    return out_N


def assign_block(
    x_ND: np.ndarray,
    centroids_KD: np.ndarray,
    *,
    metric: str = "l2",
    shift_D: np.ndarray | None = None,
    precision: str = "exact",
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid of each row of a block.

    x_ND, centroids_KD: float16 or float32. metric: 'l2', or 'cosine' (rows are normalised; centroids are taken as they
    are). shift_D: any vector near the data's mean. Returns labels int64 (N,) and squared Euclidean distances float32
    (N,), computed in float32 whatever the precision of the search. Raises UsageError when dimensions differ.
    """
    if x_ND.shape[1] != centroids_KD.shape[1]:
        raise UsageError(f"vectors have dimension {x_ND.shape[1]}, but the centroids have {centroids_KD.shape[1]}")
    x_ND = np.ascontiguousarray(rows_of(Block(0, x_ND), metric))
    centroids_KD = np.ascontiguousarray(centroids_KD, dtype=np.float32)
    shift_D = centroids_KD.mean(axis=0) if shift_D is None else shift_D
    precision = resolve_precision(precision, device)
    labels_N = nearest(
        shifted_rows(x_ND, shift_D, precision, device), shifted_centroids(centroids_KD, shift_D, precision, device)
    )
    return labels_N, distances_to(x_ND, centroids_KD, labels_N)
