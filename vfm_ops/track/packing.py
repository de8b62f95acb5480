"""Banks of several objects -> one padded batch of memory tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_ops.track.memory_attention import PackedMemory
from vfm_ops.track.memory_bank import BankPolicy, ObjectBank, select_memory_frames, select_pointer_frames
from vfm_ops.track.network import Sam2Network


def pack_memories(
    network: Sam2Network, banks: list[ObjectBank], frame_index: int, reverse: bool, policy: BankPolicy
) -> PackedMemory:
    """What each object's frame attends to, padded to the longest; see `select_memory_frames`, `select_pointer_frames`."""
    spatial, positions = [], []
    pointers, distances = [], []
    for bank in banks:
        held = [t for t, m in bank.recent.items() if m.features_LM is not None]
        memory_frames = select_memory_frames(frame_index, bank.prompted, held, reverse, policy)
        spatial.append([_features(bank, t) for _, t in memory_frames])
        positions.append([position for position, _ in memory_frames])
        pointer_frames = select_pointer_frames(frame_index, bank.prompted, bank.recent, reverse, policy)
        pointers.append([_pointer(bank, t) for _, t in pointer_frames])
        distances.append([float(distance) for distance, _ in pointer_frames])
    alike = all(p == positions[0] for p in positions) and all(d == distances[0] for d in distances)
    if alike:  # objects that were there all along: what they remember lies at the same times
        positions, distances = positions[:1], distances[:1]
    spatial_NSM, spatial_position, valid_NF = _pack_spatial(network, spatial, positions)
    pointer_NPM, pointer_position, valid_NQ = _pack_pointers(network, pointers, distances, policy.max_pointers)
    count = spatial_NSM.shape[1]
    tokens_NKM = pointer_NPM.new_empty(len(banks), count + pointer_NPM.shape[1], network.memory_width)
    tokens_NKM[:, :count], tokens_NKM[:, count:] = spatial_NSM, pointer_NPM
    length, splits = (x.shape[1] // max(1, v.shape[1]) for x, v in ((spatial_NSM, valid_NF), (pointer_NPM, valid_NQ)))
    valid_NK = torch.cat([valid_NF.repeat_interleave(length, 1), valid_NQ.repeat_interleave(splits, 1)], 1)
    return PackedMemory(
        tokens_NKM,
        torch.cat([spatial_position, pointer_position], 1),
        pointer_NPM.shape[1],
        None if bool(valid_NF.all() and valid_NQ.all()) else valid_NK.to(network.device),
    )


def _features(bank: ObjectBank, t: int) -> Tensor:
    features = (bank.prompted.get(t) or bank.recent[t]).features_LM
    assert features is not None  # selected among the frames that hold them
    return features


def _pointer(bank: ObjectBank, t: int) -> Tensor:
    return (bank.prompted.get(t) or bank.recent[t]).pointer_C


def _pack_spatial(
    network: Sam2Network, spatial: list[list[Tensor]], positions: list[list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, F * L, M) tokens as they are stored, positions of as many objects as `positions` has rows, and a CPU bool (N, F) of
    what is not padding."""
    longest = max(map(len, spatial))
    blank = torch.zeros_like(spatial[0][0])
    frames = [t for row in spatial for t in [*row, *[blank] * (longest - len(row))]]
    tokens_NFLM = torch.stack(frames)
    index = torch.tensor([row + [0] * (longest - len(row)) for row in positions], device=network.device)
    n = len(spatial)
    position_NFLM = network.memory_position_TLM[index]
    valid = torch.tensor([[i < len(row) for i in range(longest)] for row in spatial])
    return tokens_NFLM.reshape(n, -1, tokens_NFLM.shape[-1]), position_NFLM.flatten(1, 2), valid


def _pack_pointers(
    network: Sam2Network, pointers: list[list[Tensor]], distances: list[list[float]], max_pointers: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, P, M) pointer tokens, positions of as many objects as `distances` has rows, and a CPU bool (N, Q) of what is not
    padding."""
    longest = max(map(len, pointers))
    n, m = len(pointers), network.memory_width
    if longest == 0:
        empty = torch.zeros(n, 0, m, device=network.device, dtype=network.dtype)
        return empty, empty[: len(distances)], torch.zeros(n, 0, dtype=torch.bool)
    blank = torch.zeros_like(network.model.no_object_pointer[0], dtype=network.dtype)
    rows = [t for row in pointers for t in [*row, *[blank] * (longest - len(row))]]
    pointers_NQC = torch.stack(rows).view(n, longest, -1)
    distances_NQ = torch.tensor([row + [0.0] * (longest - len(row)) for row in distances], device=network.device)
    tokens, position = network.pointer_tokens(pointers_NQC, distances_NQ, max_pointers)
    return tokens, position, torch.tensor([[i < len(row) for i in range(longest)] for row in pointers])
