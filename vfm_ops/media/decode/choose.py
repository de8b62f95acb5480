"""Which decoder costs least for a plan. Costs come from measurement (`measure_backends`), not from taste."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.decode.dense import DecordDecoder, OpenCVDecoder, dense_backend_reads
from vfm_ops.media.decode.pyav import PyAVDecoder
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import DecodePlan, plan_decode
from vfm_ops.media.probe import Probe, probe_video
from vfm_ops.media.source import MediaSource

BACKENDS = ("pyav", "decord", "opencv")


class Decoder(Protocol):
    """What every backend does."""

    def frames(self, tick: Callable[[], None] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(frame index, upright uint8 RGB (H, W, 3)), ascending."""
        ...


@dataclass(frozen=True)
class BackendCost:
    """CPU milliseconds: to open a file; per megapixel of a decoded, a skippable and a converted (wanted) frame."""

    open_ms: float
    decode_ms: float
    skip_ms: float
    convert_ms: float

    def of(self, plan: DecodePlan, probe: Probe, seeks: bool) -> float:
        """Estimated cost of a plan in ms. seeks: whether the backend follows it, or decodes all up to the last frame."""
        megapixels = probe.width * probe.height / 1e6
        wanted = len(plan.wanted)
        fed = plan.packets_fed if seeks else (int(plan.wanted[-1]) + 1 if wanted else 0)
        per_frame = wanted * (self.decode_ms + self.convert_ms) + (fed - wanted) * self.skip_ms
        return self.open_ms + per_frame * megapixels


# Measured with `measure_backends` on H.264 at 640x272 to 960x540, one thread, x86-64 with AVX-512.
# Absolute figures differ between machines; the ratios, which decide, hardly do.
COSTS: dict[str, BackendCost] = {
    "pyav": BackendCost(open_ms=4.0, decode_ms=2.6, skip_ms=1.9, convert_ms=1.9),
    "opencv": BackendCost(open_ms=4.5, decode_ms=2.6, skip_ms=3.0, convert_ms=1.9),
    "decord": BackendCost(open_ms=20.0, decode_ms=3.5, skip_ms=4.5, convert_ms=2.7),
}
_CLASSES: dict[str, Any] = {"pyav": PyAVDecoder, "decord": DecordDecoder, "opencv": OpenCVDecoder}


def choose_backend(
    plan: DecodePlan, probe: Probe, source: MediaSource, costs: dict[str, BackendCost] | None = None
) -> str:
    """The cheapest backend that numbers this video's frames exactly; PyAV always does."""
    costs = costs or COSTS
    able = [name for name in BACKENDS if name == "pyav" or dense_backend_reads(name, source, probe) is None]
    return min(able, key=lambda name: costs[name].of(plan, probe, seeks=name == "pyav"))


def open_decoder(source: MediaSource, probe: Probe, plan: DecodePlan, limits: Limits, decoder: str = "auto") -> Decoder:
    """The decoder named, or the one that `choose_backend` picks.

    Raises UsageError for an unknown name and MediaError('unsupported') where the one forced can't read this video.
    """
    if decoder not in ("auto", *BACKENDS):
        raise UsageError(f"decoder: {decoder!r} is unknown; use auto, {', '.join(BACKENDS)}.")
    name = choose_backend(plan, probe, source) if decoder == "auto" else decoder
    reason = None if name == "pyav" else dense_backend_reads(name, source, probe)
    if reason is not None:
        raise MediaError("unsupported", f"{source.name}: decoder {name} can't be used, as {reason}; use decoder: auto.")
    return _CLASSES[name](source, probe, plan, limits)


def measure_backends(source: MediaSource, limits: Limits | None = None) -> dict[str, BackendCost]:
    """Measure every able backend's costs on one whole local video, in CPU milliseconds.

    All frames, every tenth frame, and the first frame alone are decoded: open, decode + convert, and skip follow.
    """
    limits = limits or Limits()
    probe = probe_video(source, limits)
    megapixels, count = probe.width * probe.height / 1e6, probe.frame_count
    measured = {}
    for name in BACKENDS:
        if name != "pyav" and dense_backend_reads(name, source, probe) is not None:
            continue
        every = range(0, count, 10)
        # A reading that does not count comes first: it imports the backend, which may cost more than the whole video.
        _, first, dense, sparse = (
            _cpu_ms(name, source, probe, plan_decode(probe, np.array(wanted)), limits)
            for wanted in ([0], [0], range(count), every)
        )
        full = (dense - first) / max(1, count - 1) / megapixels
        skip = max(0.0, (sparse - first) / megapixels - (len(every) - 1) * full) / max(1, count - len(every))
        share = COSTS[name]
        decode = full * share.decode_ms / (share.decode_ms + share.convert_ms)
        measured[name] = replace(share, open_ms=first, decode_ms=decode, skip_ms=skip, convert_ms=full - decode)
    return measured


def _cpu_ms(name: str, source: MediaSource, probe: Probe, plan: DecodePlan, limits: Limits) -> float:
    start = time.process_time()
    for _ in _CLASSES[name](source, probe, plan, limits).frames():
        pass
    return (time.process_time() - start) * 1e3
