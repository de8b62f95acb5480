"""The OpenVINO runtime: a traced module becomes an IR on disk; a pool of infer requests keeps every stream busy.

    CACHE/ir/KEY/model.xml, model.bin   the graph and its weights, float32
    CACHE/ir/KEY/choice-*.json          what `auto` took (runtime.py)

A warm process reads the IR and never imports torch.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from vfm_ops.models.cache import publish_folder, say_once
from vfm_ops.models.compiled import Batch, CompiledModule, ConversionFailed, Request, tile
from vfm_ops.models.device import cpu_count

STATIC_BATCH = 4  # best of 1..32 on two cores with one stream each: small enough for the cache, large enough for GEMM
REQUESTS_PER_STREAM = 4  # queued work, so that a stream never waits for the caller
HINT = {"exact": "f32", "bf16": "bf16", "fp16": "f16"}
# Rounding the pixels' first two layers to bfloat16 costs most of the fidelity and saves little time: they stay float32.
# EfficientNet-Lite0 over 43 pictures: least cosine 0.9941 -> 0.9977, mean 0.9986 -> 0.9995, for 2 % of the rate.
FLOAT32_STEM = 2


@cache
def core() -> Any:
    """The process's OpenVINO core, or None when the package is absent."""
    try:
        import openvino
    except ImportError:
        return None
    return openvino.Core()


@cache
def native_precisions() -> tuple[str, ...]:
    """Precisions that this CPU computes natively, fastest first; empty when OpenVINO is absent."""
    if core() is None:
        return ()
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(p for p, c in (("bf16", "BF16"), ("fp16", "FP16"), ("exact", "FP32")) if c in capabilities)


def build(request: Request, precision: str) -> OpenVinoModule:
    """Compile a request's module, converting it first unless its IR is cached. Raises ConversionFailed."""
    folder = request.folder
    if folder is not None and (folder / "model.xml").exists() and (folder / "model.bin").exists():
        try:
            return OpenVinoModule(folder / "model.xml", request, precision)
        except RuntimeError as error:
            say_once(f"the converted model in {folder} is damaged ({str(error).splitlines()[0][:80]}): it is made anew")
    if folder is not None:
        try:
            publish_folder(lambda work: _convert(request, work), folder)
            return OpenVinoModule(folder / "model.xml", request, precision)
        except OSError as error:
            say_once(f"the cache {folder} can't be written ({error.strerror}): the model is converted at every start")
    with tempfile.TemporaryDirectory(prefix="vfm-ir-") as work:
        _convert(request, Path(work))
        return OpenVinoModule(Path(work) / "model.xml", request, precision)


def _convert(request: Request, folder: Path) -> None:
    """Trace the module at the static batch, and save it as an IR whose first layers are marked to stay float32."""
    import openvino
    import torch

    batch = request.static_batch or STATIC_BATCH
    example = tuple(torch.from_numpy(tile(a, batch)) for a in request.example)
    module = request.load()
    try:
        with torch.inference_mode(False), torch.no_grad(), _importer_kept_to_itself():
            traced = torch.jit.trace(module, example, check_trace=False, strict=False)
            shapes = [tuple(a.shape) for a in example]
            model = openvino.convert_model(traced, example_input=example, input=shapes)
    except Exception as error:  # the tracer, the importer and the model's own code each raise families of their own
        raise ConversionFailed(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
    openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
    mark_float32_stem(folder / "model.xml", FLOAT32_STEM)


@contextmanager
def _importer_kept_to_itself() -> Iterator[None]:
    """OpenVINO's importer sets the root logger to ERROR and leaves it so when it fails, and reports usage over the network
    except where CI=true; tracers warn of constant shapes, and static shapes are the intention here."""
    root, ci = logging.getLogger(), os.environ.get("CI")
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    os.environ["CI"] = "true"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers
        del os.environ["CI"]
        if ci is not None:
            os.environ["CI"] = ci


def mark_float32_stem(path: Path, count: int) -> None:
    """Mark an IR's first `count` convolutions or matrix products as precise: the CPU plugin computes them in float32
    whatever its precision hint. Layers of an IR are in topological order."""
    tree = ElementTree.parse(path)
    products = [e for e in tree.iter("layer") if e.get("type") in ("Convolution", "GroupConvolution", "MatMul")]
    for layer in products[:count]:
        info = layer.find("rt_info")
        if info is None:
            info = ElementTree.Element("rt_info")
            layer.insert(1 if layer.find("data") is not None else 0, info)
        ElementTree.SubElement(info, "attribute", name="precise", version="0")
    tree.write(path, xml_declaration=True, encoding="utf-8")


class OpenVinoModule(CompiledModule):
    """A compiled IR and its pool of infer requests. Safe to call from several threads.

    There are no completion callbacks: they would run Python in OpenVINO's threads, and such a thread that meets a
    finishing interpreter aborts the process. The caller collects the oldest request instead, which keeps the order too.
    """

    runtime = "openvino"

    def __init__(self, path: Path, request: Request, precision: str) -> None:
        threads = request.threads or cpu_count()
        streams = request.streams or min(threads, 32)
        settings = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": HINT[precision],
            # Several actors on one node would all be pinned to the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = core().compile_model(str(path), "CPU", settings)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self._depth = REQUESTS_PER_STREAM * streams
        self.precision = precision
        self.batch = int(self._compiled.inputs[0].shape[0])
        self._outputs = [(tuple(o.shape)[1:], o.element_type.to_dtype()) for o in self._compiled.outputs]

    def map(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """See CompiledModule.map. At most REQUESTS_PER_STREAM x streams static batches are in flight."""
        pending: deque[_Pending] = deque()
        flying: deque[_Part] = deque()
        try:
            for batch in batches:
                inputs = batch if isinstance(batch, tuple) else (batch,)
                pending.append(_Pending(len(inputs[0]), -(-len(inputs[0]) // self.batch), self._outputs))
                for start in range(0, len(inputs[0]), self.batch):
                    while len(flying) >= self._depth:
                        self._collect(flying.popleft())
                    flying.append(self._start(inputs, start, pending[-1]))
                while flying and flying[0].request.wait_for(0):
                    self._collect(flying.popleft())
                while pending and pending[0].left == 0:
                    yield pending.popleft().result()
            while pending:
                while pending[0].left:
                    self._collect(flying.popleft())
                yield pending.popleft().result()
        finally:
            for part in flying:  # the consumer stopped early: its memory must outlive the requests that read it
                part.request.wait()
                self._idle.put(part.request)

    def _start(self, inputs: tuple[np.ndarray, ...], start: int, pending: _Pending) -> _Part:
        arrays = tuple(a[start : start + self.batch] for a in inputs)
        count = len(arrays[0])
        if count < self.batch or not all(a.flags.c_contiguous for a in arrays):
            arrays = tuple(tile(a, self.batch) for a in arrays)
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        request.start_async(dict(enumerate(arrays)), share_inputs=True)  # reads the caller's memory: no copy
        return _Part(request, arrays, pending, start, count)

    def _collect(self, part: _Part) -> None:
        part.request.wait()  # raises what went wrong inside
        for index, out in enumerate(part.pending.outputs):
            out[part.start : part.start + part.count] = part.request.get_output_tensor(index).data[: part.count]
        part.pending.left -= 1
        self._idle.put(part.request)


class _Pending:
    """One batch under way: its outputs, filled part by part, and how many parts are still missing."""

    def __init__(self, size: int, parts: int, outputs: list[tuple[tuple[int, ...], np.dtype]]) -> None:
        self.outputs = tuple(np.empty((size, *shape), dtype) for shape, dtype in outputs)
        self.left = parts

    def result(self) -> Batch:
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]


@dataclass(frozen=True)
class _Part:
    """One static batch in flight; `arrays` keeps alive the memory that the request reads."""

    request: Any
    arrays: tuple[np.ndarray, ...]
    pending: _Pending
    start: int
    count: int
