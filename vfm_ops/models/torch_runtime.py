"""The torch runtime: channels-last and a frozen trace on a CPU, autocast below float32; on a card, optionally compiled."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vfm_ops.models.compiled import Batch, CompiledModule, Request, tile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

# On a CPU, EfficientNet-Lite0 in float32 on one thread: 38, 33, 34, 25, 28, 22 images/s at 1, 2, 4, 8, 16, 32.
STATIC_BATCH = {"cpu": 4, "cuda": 64}
AHEAD = 2  # batches queued on a card before the oldest is read back

Outputs = tuple[Any, ...]


def build(request: Request, precision: str) -> TorchModule:
    """A callable over the request's module. The module is moved to the device and to channels-last, in place."""
    return TorchModule(request, precision)


def reference(request: Request) -> TorchModule:
    """The module as it is, in float32: what other callables are judged by."""
    return TorchModule(request, "exact", as_it_is=True)


class TorchModule(CompiledModule):
    """A module under inference mode at one precision and one static batch."""

    runtime = "torch"

    def __init__(self, request: Request, precision: str, as_it_is: bool = False) -> None:
        import torch

        self.precision = precision
        self.device = torch.device(request.device)
        self.batch = request.static_batch or STATIC_BATCH[self.device.type]
        self._dtype = {"exact": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._copies = _CardCopies(self.device) if self.device.type == "cuda" else _NoCopies()
        self._forward: Any = request.load().to(self.device)
        if as_it_is:
            return
        # In float32 on a CPU, 1.7 times as fast, and equal to 2e-6; a card's convolutions may round TF32 in between.
        if precision != "exact" or self.device.type == "cpu":
            _use_channels_last(self._forward)
            self._forward = self._frozen(request) if self.device.type == "cpu" else self._forward
        if request.torch_compile:
            self._forward = torch.compile(self._forward, mode="max-autotune-no-cudagraphs", dynamic=False)

    def _frozen(self, request: Request) -> Any:
        """The module traced under autocast and frozen; the module itself where the tracer can't follow it."""
        import torch

        example = tuple(torch.from_numpy(tile(a, self.batch)) for a in request.example)
        try:
            with torch.no_grad(), self._autocast(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                traced = torch.jit.trace(self._forward, example, check_trace=False, strict=False)
                return torch.jit.freeze(traced.eval())
        except RuntimeError as error:
            log.info("the tracer can't follow this module (%s): it runs eagerly", str(error).splitlines()[0])
            return self._forward

    def _autocast(self) -> Any:
        import torch

        # Autocast's weight cache must be off while a tracer records, or casts of weights become constants of no graph.
        on = self._dtype is not None
        return torch.autocast(self.device.type, dtype=self._dtype or torch.bfloat16, enabled=on, cache_enabled=False)

    def map(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """See CompiledModule.map. On a card, copies and kernels of AHEAD batches are queued before a result is read."""
        queued: deque[list[Callable[[], Outputs]]] = deque()
        for batch in batches:
            queued.append(self._launch(batch if isinstance(batch, tuple) else (batch,)))
            if len(queued) > self._copies.ahead:
                yield _read(queued.popleft())
        while queued:
            yield _read(queued.popleft())

    def on_device(self, *tensors: Tensor) -> Outputs:
        """The forward of one static batch that lies on the module's device, and its outputs there: nothing is copied."""
        import torch

        with torch.inference_mode(), self._autocast():
            out = self._forward(*tensors)
        return tuple(o.float() if o.is_floating_point() else o for o in (out if isinstance(out, tuple) else (out,)))

    def _launch(self, inputs: tuple[np.ndarray, ...]) -> list[Callable[[], Outputs]]:
        import torch

        parts = []
        for start in range(0, max(len(inputs[0]), 1), self.batch):
            part = tuple(a[start : start + self.batch] for a in inputs)
            count = len(part[0])
            fixed = (
                part
                if count == self.batch
                else tuple(tile(a if count else np.zeros_like(a, shape=(1, *a.shape[1:])), self.batch) for a in part)
            )
            tensors = self._copies.upload([torch.from_numpy(np.ascontiguousarray(a)) for a in fixed])
            parts.append(self._copies.download(tuple(o[:count] for o in self.on_device(*tensors))))
        return parts


class _NoCopies:
    """Of a CPU: a batch is computed where it lies, and is there when its forward returns."""

    ahead = 0

    def upload(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors, where the module is."""
        return tensors

    def download(self, outputs: Outputs) -> Callable[[], Outputs]:
        """What gives the outputs on the host."""
        return lambda: outputs


class _CardCopies:
    """Of a card: both ways through pinned memory, and neither in the way of its kernels.

    Batches go up on a stream of their own, while earlier ones are computed. Results come back on the computing stream, right
    behind their batch, and a reader waits for that batch alone: a copy that is asked for later would stand behind the kernels
    of all batches launched since, and leave the card with nothing to do while the host goes on.
    """

    ahead = AHEAD

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device, self.stream = device, torch.cuda.Stream(device)

    def upload(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors on the card; what is launched next waits for them, the host does not."""
        import torch

        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            moved = [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]
        computing.wait_stream(self.stream)
        for tensor in moved:
            tensor.record_stream(computing)  # or its memory is given to the next copy while kernels still read it
        return moved

    def download(self, outputs: Outputs) -> Callable[[], Outputs]:
        """What waits for the outputs, and gives them on the host."""
        import torch

        on_host = tuple(o.to("cpu", non_blocking=True) for o in outputs)  # torch makes the target pinned
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))

        def read() -> Outputs:
            done.synchronize()
            return on_host

        return read


def _use_channels_last(module: Any) -> None:
    """Weights of convolutions over pictures and over videos, each in the layout that their kernels are fastest in."""
    import torch

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in module.parameters():
        if weight.dim() in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])


def _read(parts: list[Callable[[], Outputs]]) -> Batch:
    """The parts of one batch, joined."""
    joined = tuple(
        np.concatenate([o.numpy() for o in column]) for column in zip(*(part() for part in parts), strict=True)
    )
    return joined if len(joined) > 1 else joined[0]
