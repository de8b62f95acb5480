"""What the pocket models' training loops share: pixels, schedule, optimiser, streams of items, the model card.

Legend: B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)


def to_pixels(rgb_BHWC: np.ndarray) -> Tensor:
    """uint8 RGB (B, H, W, 3) to float32 (B, 3, H, W) with mean = std = 0.5."""
    return torch.from_numpy(np.ascontiguousarray(rgb_BHWC)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


class Stream(IterableDataset):
    """Batches made by make(index) for index = start, start + 1, ...; each worker makes its own residue class."""

    def __init__(self, make: Callable[[int], Any], start: int, stop: int) -> None:
        self.make, self.start, self.stop = make, start, stop

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        yield from (self.make(i) for i in range(self.start + first, self.stop, step))


def stream(make: Callable[[int], Any], steps: int, workers: int, start: int = 0) -> Iterator[Any]:
    """make(0), make(1), ... in order, prefetched by `workers` processes (0: in this one)."""
    extra = {"prefetch_factor": 3} if workers else {}
    return iter(
        DataLoader(Stream(make, start, steps), batch_size=None, collate_fn=_as_is, num_workers=workers, **extra)
    )


def replayed(items: Iterator[Any], steps: int, times: int, seed: int) -> Iterator[Any]:
    """`steps` items, each seen about `times` times, far apart: every times-th is new, the others are drawn from the past."""
    rng, past = np.random.default_rng((seed, 23)), []
    for step in range(steps):
        if step % times == 0:
            past.append(next(items))
            yield past[-1]
        else:
            yield past[rng.integers(len(past))]


def _as_is(item: Any) -> Any:
    return item


def optimisers(
    module: nn.Module, lr: float, weight_decay: float = 0.05, b2: float = 0.98
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan et al. 2024) on the weights of linear layers, AdamW on everything else (embeddings, convolutions, vectors).

    Muon's updates are scaled to AdamW's size (Liu et al. 2025), so that both take one rate. On pocket-clip it needs a third of
    AdamW's steps to the same loss. AdamW decays what has two dimensions or more.
    """
    linear = [m.weight for m in module.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    taken = {id(p) for p in linear}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(linear, lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(groups, lr=lr, betas=(0.9, b2))


def scheduled_lr(step: int, steps: int, peak: float, warmup: int = 100, decay: float = 0.3) -> float:
    """Linear warm-up, constant, and linear decay towards zero over the last share `decay` of the steps (Hägele et al. 2024)."""
    return peak * min(1.0, (step + 1) / warmup, (1 - step / steps) / max(decay, 1e-9))


def quick_attention(model: Any) -> None:
    """Attention for training takes half the time of the fused kernels, whose bfloat16 backward is slow on CPUs at a few dozen
    tokens."""
    model.set_attn_implementation("eager")


class Average:
    """The exponential moving average of a model's parameters; its horizon grows to 1 / (1 - decay) steps."""

    def __init__(self, module: nn.Module, decay: float = 0.99) -> None:
        self.module, self.decay, self.n = module, decay, 0
        self.average = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """After each step."""
        self.n += 1
        weight = 1 - min(self.decay, self.n / (self.n + 9))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.module.parameters()], weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged parameters inside the block."""
        kept = [p.detach().clone() for p in self.module.parameters()]
        self.adopt()
        try:
            yield
        finally:
            torch._foreach_copy_([p.data for p in self.module.parameters()], kept)

    def adopt(self) -> None:
        """The model takes the averaged parameters for good."""
        torch._foreach_copy_([p.data for p in self.module.parameters()], self.average)


def descend(
    module: nn.Module, optimisers: tuple[torch.optim.Optimizer, ...], loss: Tensor, lr: float, clip: float = 1.0
) -> float:
    """One step: gradients of loss, clipped to this norm, at this rate. Returns the norm before clipping."""
    module.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
    return float(norm)


class Log:
    """Prints running means every `every` steps, as one JSON line."""

    def __init__(self, every: int, say: Callable[[str], None] = print) -> None:
        self.every, self.say, self.n = every, say, 0
        self.sums: dict[str, float] = {}
        self.started = time.perf_counter()

    def add(self, step: int, **values: float) -> None:
        """Adds one step's values; says their means when `every` have come together."""
        self.n += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        if self.n == self.every:
            means = {name: round(total / self.n, 4) for name, total in self.sums.items()}
            self.say(json.dumps({"step": step, "s": round(time.perf_counter() - self.started), **means}))
            self.sums, self.n = {}, 0


def save_half(model: Any, directory: Path) -> None:
    """save_pretrained in float16 safetensors; transformers loads it to float32 on request, with equal values."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(directory, state_dict=state, safe_serialization=True)


def write_card(
    directory: Path,
    title: str,
    about: str,
    command: str,
    seed: int,
    minutes: float,
    metrics: dict[str, float],
    start: str = "random weights",
) -> None:
    """Writes README.md: what the model is, the command and seed that make it, how long that took, held-out metrics."""
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in metrics.items())
    size = sum(f.stat().st_size for f in directory.glob("*.safetensors")) / 2**20
    text = f"""# {title}

{about}

Trained from {start} on images that `vfm_ops.world` generates; no other weights or labels went into it.

- Command: `{command}`
- Seed: {seed}
- Time: {minutes:.0f} minutes on one CPU thread
- Size: {size:.1f} MB, float16 safetensors (compute in float32)
- Licence: Apache-2.0, as the package

Measured on held-out kinds (colour x texture x shape) over held-out backgrounds:

| metric | value |
|---|---|
{rows}
"""
    (directory / "README.md").write_text(text)
