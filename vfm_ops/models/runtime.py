"""A module and an example -> the fastest faithful callable on this device.

Every op that has an encoder goes through `compile_module` and never knows which runtime answers. `auto` measures the
candidates on calibration frames once, keeps the fastest whose outputs agree with float32, and remembers the choice and
the converted graph on disk, so that the next process loads them in well under a second and never imports torch.
`openvino_runtime.py` and `torch_runtime.py` hold the two runtimes; both cut every batch into static batches, so that a
frame's result does not depend on its neighbours.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.models import openvino_runtime, torch_runtime
from vfm_ops.models.cache import cache_root, digest_of, read_json, say_once, versions, write_once
from vfm_ops.models.calibration import dead_leaves, min_cosine
from vfm_ops.models.compiled import Batch, CompiledModule, ConversionFailed, Request
from vfm_ops.models.device import PRECISIONS, resolve_device

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

RuntimeName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "exact", "bf16", "fp16"]
RUNTIMES = ("auto", "torch", "openvino")
FAITHFUL = 0.995  # least cosine to float32, frame by frame, of a candidate that `auto` may take
SANE = 0.9  # least cosine of a reduced precision that the user asked for by name: below it the conversion is wrong
CONVERTED = 0.9999  # least cosine of a float32 conversion: anything below is a conversion gone wrong
CALIBRATION_FRAMES = 16


@dataclass(frozen=True)
class Candidate:
    """One runtime at one precision."""

    runtime: str
    precision: str


@dataclass(frozen=True)
class Choice:
    """What was taken. cosine: least over calibration frames, to float32; rates: items/s of each candidate measured."""

    runtime: str
    precision: str
    cosine: float
    rates: dict[str, float]


def compile_module(
    module_or_loader: Any,
    example: Batch,
    *,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
    cache_key: str | None = None,
    calibration: Batch | None = None,
    static_batch: int | None = None,
    streams: int | None = None,
    threads: int | None = None,
    torch_compile: bool = False,
) -> CompiledModule:
    """The fastest faithful callable for a module on a device.

    module_or_loader: an nn.Module in eval mode, or a function that returns one, called only when nothing is cached. Its
        forward takes arrays as the callable will (uint8 NHWC for images: fold mean and std into the module) and returns a
        tensor or a tuple of tensors, batch first.
    example: array or tuple of arrays with a leading batch axis (its length does not matter; shapes and dtypes do).
    cache_key: names the weights and the architecture; None keeps nothing on disk.
    calibration: frames on which `auto` judges fidelity and rate; by default synthetic frames with natural statistics
        where the input is an image, else the example.
    static_batch: what every batch is cut into, padded at the end; by default what measured best for the runtime.
    streams, threads: OpenVINO's; by default one stream per processor. torch_compile: on CUDA, compile the forward.
    Raises UsageError for settings that this machine can't honour.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"unknown runtime {runtime!r}: use one of {', '.join(RUNTIMES)}")
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    inputs = example if isinstance(example, tuple) else (example,)
    device = resolve_device(device)
    folder = _folder(cache_key, inputs, static_batch)
    request = Request(
        _once(module_or_loader),
        inputs,
        device,
        static_batch,
        streams,
        threads,
        folder,
        torch_compile and device != "cpu",
    )
    candidates = _candidates(device, runtime, precision)
    return _choose(request, candidates, calibration, runtime, precision)


def compile_for_tensors(
    module: Any,
    example: np.ndarray,
    *,
    device: str,
    runtime: RuntimeName = "auto",
    precision: Precision = "exact",
    cache_key: str | None = None,
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """`compile_module` for the part of a network that sees the pictures, where torch goes on with what it returns.

    Returns a callable of one tensor (B, ...), any B, which gives a tuple of tensors on the device. On a CPU, one picture is
    spread over as many threads as torch has: whoever waits for its masks waits for one picture.
    """
    import torch

    compiled = compile_module(
        module,
        example,
        device=device,
        runtime=runtime,
        precision=precision,
        cache_key=cache_key,
        calibration=_few_pictures(example),
        static_batch=1,
        streams=1,
        threads=torch.get_num_threads(),
    )
    if isinstance(compiled, torch_runtime.TorchModule) and compiled.device.type != "cpu":
        return compiled.on_device  # what it returns stays on the card

    def call(pictures: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(out) for out in _as_tuple(compiled(pictures.cpu().numpy())))

    return call


def remembered(
    example: Batch,
    *,
    cache_key: str,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
    static_batch: int | None = None,
) -> tuple[str, str] | None:
    """The (runtime, precision) that `compile_module` with these arguments would load, or None when it would measure."""
    device = resolve_device(device)
    folder = _folder(cache_key, example if isinstance(example, tuple) else (example,), static_batch)
    known = read_json(_choice_path(folder, device, runtime, precision)) if folder is not None else None
    return (known["runtime"], known["precision"]) if known else None


def _folder(cache_key: str | None, inputs: tuple[np.ndarray, ...], static_batch: int | None) -> Path | None:
    if cache_key is None:
        return None
    shapes = [(str(a.dtype), a.shape[1:]) for a in inputs]
    made_by = versions("torch", "openvino", "transformers", "timm", "vfm-pipelines")
    return cache_root() / "ir" / digest_of(cache_key, shapes, static_batch, made_by)


def _choice_path(folder: Path, device: str, runtime: str, precision: str) -> Path:
    return folder / f"choice-{device.replace(':', '')}-{runtime}-{precision}.json"


def _once(module_or_loader: Any) -> Callable[[], Any]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(module_or_loader, torch.nn.Module):
        return lambda: module_or_loader
    loaded: list[Any] = []

    def load() -> Any:
        if not loaded:
            loaded.append(module_or_loader().eval())
        return loaded[0]

    return load


def _candidates(device: str, runtime: str, precision: str) -> list[Candidate]:
    """Candidates in the order of expected speed. OpenVINO is for CPUs; a card is torch's."""
    if device != "cpu":
        if runtime == "openvino":
            raise UsageError(f"runtime openvino serves device cpu, not {device}: use runtime=torch or auto")
        return [Candidate("torch", p) for p in (("bf16", "fp16", "exact") if precision == "auto" else (precision,))]
    found: list[Candidate] = []
    if runtime in ("auto", "openvino"):
        native = openvino_runtime.native_precisions()
        if not native:
            say_once("openvino can't be imported: the torch runtime is used instead, which is slower on a CPU")
        found += [Candidate("openvino", p) for p in native if precision in ("auto", p)]
    wanted = ("bf16", "exact") if precision == "auto" else (precision,)
    return found + [Candidate("torch", p) for p in wanted]


def _build(request: Request, candidate: Candidate) -> CompiledModule:
    if candidate.runtime == "openvino":
        return openvino_runtime.build(request, candidate.precision)
    return torch_runtime.build(request, candidate.precision)


def _choose(
    request: Request, candidates: list[Candidate], calibration: Batch | None, runtime: str, precision: str
) -> CompiledModule:
    """Take the remembered choice, or measure, choose and remember."""
    path = None
    if request.folder is not None:
        path = _choice_path(request.folder, request.device, runtime, precision)
        known = read_json(path)
        if known is not None and Candidate(known["runtime"], known["precision"]) in candidates:
            return _build(request, Candidate(known["runtime"], known["precision"]))
    frames = _calibration(request.example, calibration)
    choice, compiled = _measure(request, candidates, frames, FAITHFUL if precision == "auto" else SANE)
    if path is not None:
        kept = write_once(path, vars(choice))
        if (kept["runtime"], kept["precision"]) != (choice.runtime, choice.precision):
            return _build(request, Candidate(kept["runtime"], kept["precision"]))
    return compiled


def _measure(
    request: Request, candidates: list[Candidate], frames: tuple[np.ndarray, ...], faithful: float
) -> tuple[Choice, CompiledModule]:
    """Fidelity and rate of the candidates on frames. torch on a CPU is tried only when no OpenVINO candidate is faithful:
    it was slower on every backbone measured, and converting twice would delay the first result. Only a precision the
    user named skips the judgement."""
    reference = _as_tuple(torch_runtime.reference(request)(*frames))
    rates: dict[str, float] = {}
    best: tuple[float, float, Candidate, CompiledModule] | None = None
    for candidate in candidates:
        if best is not None and candidate.runtime != best[2].runtime and request.device == "cpu":
            break
        try:
            compiled = _build(request, candidate)
        except ConversionFailed as error:
            say_once(f"OpenVINO could not take this model ({error}): the torch runtime is used instead")
            continue
        cosine = min_cosine(_as_tuple(compiled(*frames)), reference)
        floor = CONVERTED if candidate.precision == "exact" else faithful
        if cosine < floor and candidate != candidates[-1]:
            log.info("%s: cosine %.4f to float32, below %.4f: not taken", candidate, cosine, floor)
            continue
        rate = _rate(compiled, frames)
        rates[f"{candidate.runtime}-{candidate.precision}"] = round(rate, 2)
        if best is None or rate > best[0]:
            best = (rate, cosine, candidate, compiled)
    if best is None:
        raise UsageError("no runtime could run this model: use runtime=torch and precision=exact to see the error")
    return Choice(best[2].runtime, best[2].precision, round(float(best[1]), 6), rates), best[3]


def _rate(compiled: CompiledModule, frames: tuple[np.ndarray, ...], seconds: float = 0.25) -> float:
    """Items/s of a candidate, best of repeated passes within a short time (the best is the least disturbed)."""
    best, end = 0.0, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        compiled(*frames)
        now = time.perf_counter()
        best = max(best, len(frames[0]) / (now - start))
        if now > end:
            return best


def _few_pictures(example: np.ndarray) -> np.ndarray:
    """Two synthetic frames like an example of pictures, uint8 (B, H, W, 3) or normalised (B, 3, H, W): they may be large."""
    if example.dtype == np.uint8:
        return dead_leaves(2, example.shape[1], example.shape[2])
    frames = dead_leaves(2, example.shape[2], example.shape[3]).astype(np.float32)
    return np.ascontiguousarray((frames / 255 - 0.45).transpose(0, 3, 1, 2) / 0.225)


def _calibration(example: tuple[np.ndarray, ...], calibration: Batch | None) -> tuple[np.ndarray, ...]:
    if calibration is not None:
        given = calibration if isinstance(calibration, tuple) else (calibration,)
        return tuple(a[:CALIBRATION_FRAMES] for a in given)
    first = example[0]
    if len(example) == 1 and first.dtype == np.uint8 and first.ndim == 4 and first.shape[-1] == 3:
        return (dead_leaves(CALIBRATION_FRAMES, first.shape[1], first.shape[2]),)
    return example


def _as_tuple(value: Batch) -> tuple[np.ndarray, ...]:
    return value if isinstance(value, tuple) else (value,)
