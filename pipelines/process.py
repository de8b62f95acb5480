"""The whole way of the data: pending assets -> decode -> embed -> write -> commit, in one streaming pass over Ray Data.

On CPUs one actor decodes, embeds and writes (pixels stay in one process and its decoder children); on GPUs decode actors feed
model actors; a small corpus on a small machine is done before Ray would have started, in this process. The ops are always the
same, and the driver commits what they wrote every few seconds.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.backfill import fill_column
from pipelines.cluster import MOST_CPUS, Placement, connect, has_ray, place
from pipelines.commit import Committer
from pipelines.frames import Outcome
from pipelines.lake import (
    SCHEMAS,
    Lake,
    Lease,
    new_run_id,
    pending_assets,
    quarantined_assets,
    sweep,
)
from pipelines.recipe import Recipe, Resources
from pipelines.stages import Chain, model_fields
from pipelines.units import LARGEST_UNIT, cut_units
from vfm_ops.errors import VfmError
from vfm_ops.runtime import cpu_count, resolve_device
from vfm_ops.scheduling import take_long_turns

if TYPE_CHECKING:
    import ray

SHORT_UNIT = 128.0  # images' worth of work that may come before Ray starts

Progress = Callable[[Committer, int], None]
logger = logging.getLogger(__name__)


@dataclass
class RunSummary:
    """What a run did."""

    run_id: str
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    first_commit_at: float | None = None  # UNIX time of the first committed rows
    stages: dict[str, float] = field(default_factory=dict)  # busy seconds
    efficiency: float | None = None
    steady_rate: float | None = None  # frames/s between the first result and the last

    @property
    def bottleneck(self) -> str | None:
        """The stage that was busy longest."""
        return max(self.stages, key=self.stages.__getitem__) if self.stages else None


def process(lake: Lake, recipe: Recipe, *, retry: bool = False, progress: Progress | None = None) -> RunSummary:
    """Settles every pending asset of a lake under a recipe (with `retry`, the quarantined ones instead).

    Raises UsageError (wrong model, busy lake, full disk) before anything is written.
    """
    started, run_id = time.time(), new_run_id()
    fields = model_fields(recipe)
    lake.check_space()
    with Lease(lake, run_id):
        sweep(lake)
        for table in SCHEMAS:
            lake.ensure(table, fields if table == "frames" else ())
        committer = Committer(lake, run_id, replacing=retry or _has_other_rows(lake, recipe.hash))
        # A unit that killed its worker did not settle: its assets run once more, each alone in a task.
        for largest in (None, 0.0):
            if units := list(_units(lake, recipe, retry, largest)):
                _run_units(lake, recipe, units, committer, progress)
            if units and not committer.counts["assets"]:
                raise VfmError(
                    "no worker got through a single unit of work: the messages above or Ray's logs in "
                    "/tmp/ray/session_latest/logs say why"
                )
            if retry:
                break
        else:
            _give_up(lake, recipe, committer)
        for model in recipe.embed:  # a model that the recipe gained: frames of earlier runs get its column
            committer.counts["backfilled"] += fill_column(lake, model, recipe.resources)
        summary = _summarise(run_id, committer, started)
        _record(lake, recipe, fields, summary, started)
    return summary


def build_dataset(lake: Lake, recipe: Recipe, units: list[pa.Table], where: Placement) -> ray.data.Dataset:
    """The graph: units of assets to RESULT rows."""
    import ray

    version = lake.table("assets").version
    ds = ray.data.from_arrow(units)

    def stage(names: tuple[str, ...], actors: tuple[int, int], cpus: float, gpus: float) -> None:
        nonlocal ds
        ds = ds.map_batches(
            Chain,
            fn_constructor_args=(names, lake, version, recipe, where.threads),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=actors[0], max_size=actors[1]),
            num_cpus=cpus,
            num_gpus=gpus,
            # The next unit is decoded while the last frames of the one before are embedded and written.
            max_concurrency=2,
        )

    decode, *rest = _stages(recipe)
    if where.fused:
        stage((decode, *rest), where.actors, where.cpus, where.gpus)
    else:
        stage((decode,), where.decode_actors, 1, 0)
        stage(tuple(rest), where.actors, where.cpus, where.gpus)
    return ds


def _stages(recipe: Recipe) -> tuple[str, ...]:
    return ("decode", "embed", *(["detect"] if recipe.detect else []), *(["track"] if recipe.track else []), "write")


def _units(lake: Lake, recipe: Recipe, retry: bool, largest: float | None) -> Iterator[pa.Table]:
    batches = quarantined_assets(lake, recipe.hash) if retry else pending_assets(lake, recipe.hash)
    return cut_units(batches) if largest is None else cut_units(batches, largest, largest)


def _run_units(
    lake: Lake, recipe: Recipe, units: list[pa.Table], committer: Committer, progress: Progress | None
) -> None:
    total = committer.counts["assets"] + sum(u.num_rows for u in units)
    here = _units_here(recipe, units)

    def results() -> Iterator[pa.Table]:
        if here:
            yield from _run_here(lake, recipe, units[:here])
        if here and here < len(units):
            committer.restart_clock()
        if here < len(units):
            yield from _run_on_ray(lake, recipe, units[here:])

    for rows in results():
        for result in rows.to_pylist():
            committer.add(result)
        if progress:
            progress(committer, total)
    committer.flush()
    if progress:
        progress(committer, total)


def _units_here(recipe: Recipe, units: list[pa.Table]) -> int:
    """How many units run in this process: Ray takes longer to start than a small corpus takes to process.

    All of them where there is but one, or the corpus is small and one actor would hold the whole machine anyway; else a short
    first one, so that the first rows are there while Ray starts. None on a cluster, on a GPU, or where the recipe says how to
    place the stages.
    """
    if has_ray() or recipe.resources != Resources() or resolve_device(recipe.resources.device) != "cpu":
        return 0
    costs = [sum(u["cost"].to_pylist()) for u in units]
    if len(units) == 1 or (sum(costs) <= LARGEST_UNIT and cpu_count() < 2 * MOST_CPUS):
        return len(units)
    return int(costs[0] <= SHORT_UNIT and not recipe.detect)


def _run_here(lake: Lake, recipe: Recipe, units: list[pa.Table]) -> Iterator[pa.Table]:
    """RESULT rows of units, one after another, in this process. A unit that fails stays pending, as on Ray."""
    ops = Chain(_stages(recipe), lake, lake.table("assets").version, recipe, min(cpu_count(), MOST_CPUS))
    try:
        for unit in units:
            try:
                yield from ops(unit)
            except (VfmError, OSError):
                raise
            except Exception:
                logger.warning("a unit of %d items failed; each is tried again alone", unit.num_rows, exc_info=True)
    finally:
        ops.close()


def _run_on_ray(lake: Lake, recipe: Recipe, units: list[pa.Table]) -> Iterator[pa.Table]:
    """RESULT rows of units, as Ray Data streams them."""
    take_long_turns()  # so does a Ray that is started here, whose idle processes wake a hundred times a second
    connect()
    import ray

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # a unit whose worker died stays pending, its neighbours go on
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # a walk through all pages of the actor, every second
    yield from build_dataset(lake, recipe, units, place(recipe.resources)).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )


def _give_up(lake: Lake, recipe: Recipe, committer: Committer) -> None:
    """Quarantines what is still pending: alone in its task, and the task never came back."""
    for batch in pending_assets(lake, recipe.hash):
        version = lake.table("assets").version
        for asset in lake.take("assets", batch["_rowid"].to_pylist(), version).to_pylist():
            outcome = Outcome.of({**asset, "attempt": 1}, recipe.hash)
            outcome.fail(
                "process",
                "worker_died",
                "the worker died each time it ran this item; look at Ray's logs, then vfm retry",
            )
            committer.add_outcome(asdict(outcome))
    committer.flush()


def _has_other_rows(lake: Lake, recipe: str) -> bool:
    return any(lake.count(t, filter=f"recipe <> '{recipe}'") for t in ("ledger", "quarantine"))


def _summarise(run_id: str, committer: Committer, started: float) -> RunSummary:
    return RunSummary(
        run_id,
        dict(committer.counts),
        time.time() - started,
        committer.first_commit_at,
        dict(committer.seconds),
        committer.efficiency,
        committer.steady_rate,
    )


def _record(lake: Lake, recipe: Recipe, fields: list[pa.Field], summary: RunSummary, started: float) -> None:
    models = {
        f.metadata[b"spec"].decode(): {k.decode(): v.decode() for k, v in f.metadata.items()}
        for f in fields
        if f.metadata
    }
    row: dict[str, Any] = {
        "run_id": summary.run_id,
        "command": "process",
        "recipe": recipe.hash,
        "recipe_yaml": recipe.to_yaml(),
        "code_version": version("vfm-pipelines"),
        "models": json.dumps(models),
        "started_at": datetime.fromtimestamp(started, UTC),
        "ended_at": datetime.now(UTC),
        "counts": json.dumps(summary.counts),
        "efficiency": summary.efficiency,
    }
    lake.append("runs", pa.Table.from_pylist([row], SCHEMAS["runs"]))
