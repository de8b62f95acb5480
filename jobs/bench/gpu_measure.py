"""Clocks, counters and floors of `vfm bench gpu`. Its parts (`gpu_embed`, ...) hold what is measured, `gpu` runs them.

A floor is the least time that a card could take: its products' FLOPs over the peak of a large matrix product, or the bytes of
their operands and results over the bandwidth of a large copy, whichever is more (the roofline: Williams, Waterman, Patterson,
"Roofline", CACM 2009). Both are measured on the card that runs, in the same run. Nothing here starts CUDA on import.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Row = dict[str, Any]
Task = tuple[Row, Callable[[], Row]]  # what names a row, and what measures the rest of it
PEAK, BANDWIDTH = "peak: a bf16 matrix product, TFLOP/s", "memory: a copy, read and written, GB/s"
PASSES = 3  # of a measurement; the median counts


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# Attention on a CPU, of which torch has no formula.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@dataclass(frozen=True)
class Work:
    """What a call computes. flops: of its products. bytes: of their operands, weights among them, and results."""

    flops: float
    bytes: float

    def times(self, factor: float) -> Work:
        """That much of it."""
        return Work(self.flops * factor, self.bytes * factor)


@dataclass(frozen=True)
class Floors:
    """A card's measured peaks, a second."""

    flops: float
    bytes: float

    def seconds(self, work: Work) -> float:
        """The least that the work could take."""
        return max(work.flops / self.flops, work.bytes / self.bytes)

    def bound(self, work: Work) -> str:
        """Which of the two floors it meets first."""
        return "FLOPs" if work.flops / self.flops >= work.bytes / self.bytes else "bytes"


@dataclass(frozen=True)
class Timed:
    """seconds: of one call. busy: share of the time in which the card ran a kernel (NVML), of a CPU's processors that computed;
    None where nobody tells. megabytes: most that torch held on the card meanwhile."""

    seconds: float
    busy: float | None
    megabytes: float | None


@dataclass
class Session:
    """What a part is given. folder: for its files. quick: tiny sizes. known: rows that are there already. seconds: how long one
    measurement goes on at least."""

    device: torch.device
    folder: Path
    quick: bool = False
    known: list[Row] = field(default_factory=list)

    @property
    def is_card(self) -> bool:
        """Whether it runs on CUDA."""
        return self.device.type == "cuda"

    def named(self, name: str) -> str:
        """A model's name in rows, which says where it is but a toy of that architecture."""
        return f"{name} (toy)" if self.quick else name

    @property
    def seconds(self) -> float:
        """Of one measurement: NVML's utilisation is a mean over up to a second."""
        return 0.02 if self.quick else 1.5

    @property
    def floors(self) -> Floors:
        """As the part `floors` measured them. KeyError where it did not."""
        found: dict[str, float] = {row["what"]: row["ours"] for row in self.known if row.get("ours")}
        return Floors(found[PEAK] * 1e12, found[BANDWIDTH] * 1e9)

    def synchronize(self) -> None:
        """Waits until the card has nothing to do."""
        if self.is_card:
            torch.cuda.synchronize(self.device)

    def time(self, run: Callable[[], object], warm: int = 2) -> Timed:
        """A call's time, over many calls in a row: the host may run ahead of the card in between, as in a real loop."""
        for _ in range(warm):
            run()
        if self.is_card:
            torch.cuda.reset_peak_memory_stats(self.device)
        calls = max(1, math.ceil(self.seconds / PASSES / max(self._pass(run, 1), 1e-9)))
        with Busy(self.device) as busy:
            passes = [self._pass(run, calls) for _ in range(PASSES)]
        held = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.is_card else None
        return Timed(statistics.median(passes), busy.share, held)

    def _pass(self, run: Callable[[], object], calls: int) -> float:
        self.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            run()
        self.synchronize()
        return (time.perf_counter() - started) / calls

    def row(self, items: float, timed: Timed, work: Work | None = None, note: str | None = None) -> Row:
        """items: a call's. Their rate, that of the floor, and how much of the peak was used (MFU)."""
        row: Row = {"ours": items / timed.seconds}
        if work is not None:
            floor = self.floors.seconds(work)
            row |= {"floor": items / floor, "ratio": floor / timed.seconds, "bound by": self.floors.bound(work)}
            row["MFU"] = work.flops / timed.seconds / self.floors.flops
        return row | {"busy": timed.busy, "MB": timed.megabytes, "note": note}


class Busy:
    """How busy a device is while this is entered; `share` is a mean between 0 and 1, or None."""

    def __init__(self, device: torch.device, every_s: float = 0.05) -> None:
        self.device, self.every_s = device, every_s
        self.share: float | None = None
        self._samples: list[float] = []
        self._stop = threading.Event()

    def __enter__(self) -> Busy:
        self._started = time.perf_counter(), time.process_time()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if self.device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self._stop.set()
            self._thread.join()
            self.share = statistics.fmean(self._samples) if self._samples else None
            return
        from vfm_ops.models.device import cpu_count

        wall, computing = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        self.share = computing / max(wall, 1e-9) / cpu_count()

    def _sample(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self._samples.append(torch.cuda.utilization(self.device) / 100)
            except Exception:  # no NVML, or none for this card (MIG): the column stays empty, and `card` says why
                return


class _ProductBytes(TorchDispatchMode):
    """Bytes that products (matrices, convolutions, attention, and their gradients) take and give, counted as they run.

    What stands between them (norms, activations) counts nothing: fused into them, it moves nothing of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry or func._overloadpacket in _CPU_ATTENTION:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return out


def count(run: Callable[[], object]) -> Work:
    """What one call computes, eagerly. Compiled code and CUDA graphs show nothing of it: count the same call without them."""
    moved, flops = _ProductBytes(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with moved, flops:  # the inner one takes composite operations apart first
        run()
    return Work(float(flops.get_total_flops()), float(moved.total))


def count_batches(run: Callable[[int], object]) -> Callable[[int], Work]:
    """The work of any batch, from those of one and of two: weights are read once, all else grows with the batch."""
    one, two = count(lambda: run(1)), count(lambda: run(2))

    def of(batch: int) -> Work:
        return Work(
            one.flops + (batch - 1) * (two.flops - one.flops), one.bytes + (batch - 1) * (two.bytes - one.bytes)
        )

    return of


def graphed(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A call that is launched as one CUDA graph, by one word of the host instead of hundreds. For inputs of one shape; each
    answer lies where the one before it lay. CUDA only."""
    captured: list[tuple[torch.cuda.CUDAGraph, Tensor, Any]] = []

    def capture(x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Any]:
        given, side = x.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries take their workspaces before the capture, which allows none
            for _ in range(3):
                run(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(given)
        return graph, given, out

    def replay(x: Tensor) -> Any:
        if not captured:
            captured.append(capture(x))
        graph, given, out = captured[0]
        given.copy_(x)
        graph.replay()
        return out

    return replay


def rate(items: Iterator[object], warm: int, seconds: float) -> float:
    """Items a second of a stream, once `warm` of them have passed; it is left where the time is over."""
    for _ in range(warm):
        next(items)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(items)
        done += 1
    return done / (time.perf_counter() - started)


def forever(items: Iterable[Any]) -> Iterator[Any]:
    """Again and again; the items are held."""
    held = list(items)
    while True:
        yield from held
