"""Gradients of one step from micro-batches, exact also for losses that compare samples (Gao et al. 2021, GradCache).

For such a loss, the mean of the micro-batches' losses is another loss: each sample meets fewer negatives. So features are
first computed without graph, the loss on all of them gives their gradients, and each micro-batch is then encoded again,
with the same random state, to carry its share of those gradients down to the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from vfm_ops.pretrain.objective import Batch, Objective

Autocast = Callable[[], AbstractContextManager]


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Equal micro-batches along dimension 0."""
    chunks = {key: value.chunk(parts) for key, value in batch.items()}
    return [{key: chunk[i] for key, chunk in chunks.items()} for i in range(parts)]


def backward_step(
    objective: Objective, batch: Batch, accumulate: int, autocast: Autocast
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adds the gradients of this rank's share to the parameters. Returns (loss and logs, features of the last forward)."""
    if accumulate == 1 or not objective.batch_coupled:
        return _mean_of_micro_batches(objective, split_batch(batch, accumulate), autocast)
    return _cached_features(objective, split_batch(batch, accumulate), autocast)


def _mean_of_micro_batches(objective: Objective, parts: list[Batch], autocast: Autocast) -> tuple[dict, dict]:
    totals: dict[str, Tensor] = {}
    features: dict[str, Tensor] = {}
    for part in parts:
        with autocast():
            features = objective.encode(part)
            logs = objective.loss(features)
        (logs["loss"] / len(parts)).backward()
        for key, value in logs.items():
            totals[key] = totals.get(key, torch.zeros_like(value)).detach() + value.detach() / len(parts)
    return totals, features


def _cached_features(objective: Objective, parts: list[Batch], autocast: Autocast) -> tuple[dict, dict]:
    states, cached = [], []
    for part in parts:
        states.append(_random_state())
        with torch.no_grad(), autocast():
            cached.append(objective.encode(part))
    whole = {key: torch.cat([c[key] for c in cached]) for key in cached[0]}
    for value in whole.values():
        if value.is_floating_point():
            value.requires_grad_()
    with autocast():
        logs = objective.loss(whole)
    logs["loss"].backward()
    final = _random_state()
    gradients = {key: value.grad.chunk(len(parts)) for key, value in whole.items() if value.grad is not None}
    for i, part in enumerate(parts):
        _set_random_state(states[i])
        with autocast():
            again = objective.encode(part)
        paths = [(again[key], grads[i]) for key, grads in gradients.items() if again[key].requires_grad]
        torch.autograd.backward([x for x, _ in paths], [g for _, g in paths])
    _set_random_state(final)
    return {key: value.detach() for key, value in logs.items()}, {k: v.detach() for k, v in whole.items()}


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])
