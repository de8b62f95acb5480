"""Metrics of runs for Prometheus: what each is called, and where it goes.

On Ray, workers and driver tell `ray.util.metrics`, and the metrics agent of their node exports that with `ray_` before the
name. Without Ray, or beside it, the driver writes a text file, as node exporter's textfile collector reads it (`TextFile`): a
run may be over before anybody scrapes it, and needs no port. Nothing is imported for metrics that nobody asked for.

`RunMetrics` takes both. Workers have one each; the driver's is `current()` while `process` or `embed_lake` run.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vfm_ops.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """name: without Ray's prefix; a counter's ends in `_total`, any other is a gauge. labels: besides `lake`."""

    name: str
    about: str
    labels: tuple[str, ...] = ()

    @property
    def is_counter(self) -> bool:
        """Whether it only grows."""
        return self.name.endswith("_total")


_OP = ("op", "device", "runtime")  # op: its name in the recipe, or decode, or write

# Counters and gauges only: of a histogram, Ray's agent knows the sum no better than to a bucket.
OP_ROWS = Metric("vfm_op_rows_total", "Frames that went through an op, a decoder or the writer", _OP)
OP_SECONDS = Metric("vfm_op_seconds_total", "Seconds that workers spent in an op, in decoding or in writing", _OP)
OP_FAILED = Metric("vfm_op_failed_rows_total", "Frames that an op gave no value for", _OP)
OP_DROPPED = Metric("vfm_op_dropped_rows_total", "Frames that a filter dropped", _OP)
DECODED_ASSETS = Metric("vfm_decoded_assets_total", "Images and videos that were decoded, or found to be bad")
DECODED_BYTES = Metric("vfm_decoded_bytes_total", "Encoded bytes of those assets")
COMMITTED_ASSETS = Metric("vfm_committed_assets_total", "Assets, or videos of an op, that were committed", ("op",))
COMMITTED_ROWS = Metric("vfm_committed_rows_total", "Rows that were committed for these assets", ("table",))
QUARANTINED = Metric("vfm_quarantined_assets_total", "Assets that were put in quarantine", ("stage", "kind"))
INTERRUPTED = Metric("vfm_interrupted_assets_total", "Assets that their store failed on: they are tried again")
PENDING = Metric("vfm_pending_assets", "Assets, or videos of an op, still to be done", ("op",))
PENDING_FRAGMENTS = Metric("vfm_pending_fragments", "Fragments of frames that still lack an op's values", ("op",))
COMMITS = Metric("vfm_commits_total", "Versions that were committed", ("table",))
COMMIT_SECONDS = Metric("vfm_commit_seconds_total", "Seconds that the driver spent committing")
IN_FLIGHT = Metric("vfm_units_in_flight", "Units, or fragments, that workers have")
WORKER_DEATHS = Metric("vfm_worker_deaths_total", "Workers that died and were replaced")

METRICS = (
    OP_ROWS, OP_SECONDS, OP_FAILED, OP_DROPPED, DECODED_ASSETS, DECODED_BYTES, COMMITTED_ASSETS, COMMITTED_ROWS, QUARANTINED,
    INTERRUPTED, PENDING, PENDING_FRAGMENTS, COMMITS, COMMIT_SECONDS, IN_FLIGHT, WORKER_DEATHS,
)  # fmt: skip


class Sink(Protocol):
    """What takes values. labels: `lake`, and those of the metric."""

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        """Adds to a counter; more than 0."""

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Sets a gauge."""


class _Ray:
    """The metrics agent of this node, by `ray.util.metrics`; where Ray collects no metrics, that does nothing."""

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        _ray_metric(metric).inc(amount, tags=dict(labels))

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        _ray_metric(metric).set(value, tags=dict(labels))


@cache
def _ray_metric(metric: Metric) -> Any:
    from ray.util.metrics import Counter, Gauge

    return (Counter if metric.is_counter else Gauge)(metric.name, metric.about, ("lake", *metric.labels))


def on_ray() -> bool:
    """Whether this process is part of a Ray by now. Imports nothing."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


class TextFile:
    """Metrics of one run in a file, in Prometheus' text format, replaced as a whole.

    UsageError where the file can't be written.
    """

    def __init__(self, path: str | Path) -> None:
        from prometheus_client import CollectorRegistry

        self.path = Path(path)
        folder = self.path.parent
        # Not tried: what an earlier run wrote stays, should this one not begin.
        if self.path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            why = "it is a folder" if self.path.is_dir() else f"{folder} is no folder that this user may write to"
            raise UsageError(f"cannot write the metrics file {self.path}: {why}")
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)  # type: ignore[arg-type]

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        """See Sink."""
        values = self._values.setdefault(metric, {})
        key = tuple(labels[name] for name in ("lake", *metric.labels))
        values[key] = values.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """See Sink."""
        self._values.setdefault(metric, {})[tuple(labels[name] for name in ("lake", *metric.labels))] = value

    def collect(self) -> Iterator[Family]:
        """What prometheus_client asks a collector for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric, values in self._values.items():
            kind = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
            family = kind(metric.name, metric.about, labels=("lake", *metric.labels))
            for key, value in values.items():
                family.add_metric(key, value)
            yield family

    def write(self) -> None:
        """Replaces the file, once there is something to say. A disk that is full costs the metrics, not the run."""
        from prometheus_client import write_to_textfile

        if not self._values:
            return
        try:
            write_to_textfile(str(self.path), self._registry)
        except OSError as e:
            logger.warning("cannot write the metrics file %s: %s", self.path, e)


@dataclass
class RunMetrics:
    """Where the metrics of a run on one lake go, of what this process does in it. lake: its root."""

    lake: str
    file: TextFile | None = None
    _at_work: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Adds to a counter."""
        if amount > 0:
            for sink in self._sinks():
                sink.add(metric, amount, {"lake": self.lake, **labels})

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets a gauge."""
        for sink in self._sinks():
            sink.set(metric, value, {"lake": self.lake, **labels})

    def _sinks(self) -> Sequence[Sink]:
        if not self.lake:
            return []
        ray: list[Sink] = [_RAY] if on_ray() else []
        return ray if self.file is None else [*ray, self.file]

    def add_to_file(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Adds to a counter what a worker said in a result, which on Ray it has told its own node's agent already."""
        if amount > 0 and self.file is not None:
            self.file.add(metric, amount, {"lake": self.lake, **labels})

    @contextmanager
    def unit_in_flight(self) -> Iterator[None]:
        """Around what a worker of Ray does with one unit, of which it may have two."""
        self._work_on(1)
        try:
            yield
        finally:
            self._work_on(-1)

    def _work_on(self, more: int) -> None:
        with self._lock:
            self._at_work += more
            self.set(IN_FLIGHT, self._at_work)

    def publish(self) -> None:
        """Writes the file, if there is one."""
        if self.file is not None:
            self.file.write()


_RAY = _Ray()
_current: ContextVar[RunMetrics | None] = ContextVar("run_metrics", default=None)
_NOWHERE = RunMetrics("")


def current() -> RunMetrics:
    """Of the run that this thread drives; what is told to that of no run, as by a worker's own workers, goes nowhere."""
    return _current.get() or _NOWHERE


@contextmanager
def metrics_of_run(lake: str, file: str | Path | None) -> Iterator[None]:
    """Makes `current` that of a run. file: where its metrics are written, after each commit and at the end, however it ends.

    UsageError where the file can't be written.
    """
    metrics = RunMetrics(lake, None if file is None else TextFile(file))
    token = _current.set(metrics)
    try:
        yield
    finally:
        _current.reset(token)
        metrics.publish()


def restarted() -> bool:
    """Whether this process is an actor of Ray that took the place of one that died."""
    if not on_ray():
        return False
    context = sys.modules["ray"].get_runtime_context()
    try:
        return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)
    except Exception:  # asks Ray's control store, which may be away for a while; that must cost no worker
        logger.debug("whether this worker took the place of another is not known", exc_info=True)
        return False
