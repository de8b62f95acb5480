"""Where units run: on a Ray Data graph, or in a worker without Ray where that fills the machine (`local`).

On CPUs one actor decodes, embeds and writes (pixels stay in one process and its decoder children); on GPUs decode actors feed
model actors; an op with resources of its own has actors of its own. The ops are always the same (`chain`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster import (
    MOST_CPUS,
    Placement,
    Pool,
    actors_that_fit,
    connect,
    explaining,
    has_ray,
    hush,
    no_worker,
    place,
    pool_of,
    telling_of_nodes,
    wait_for_nodes,
    within,
)
from pipelines.lake import Lake, Work
from pipelines.process.chain import Chain, Part
from pipelines.process.local import CAN_GO_ON, DEATHS, Careful, LocalWorkers, WorkerDied
from pipelines.process.ops import PlannedOp
from pipelines.process.recipe import Recipe
from pipelines.process.units import LARGEST_UNIT, read_unit, share_out
from pipelines.process.worker_process import drop_ahead
from pipelines.process.write import WORKER_DIED, UnitError, error_row
from vfm_ops.errors import VfmError
from vfm_ops.models.device import cpu_count, resolve_device
from vfm_ops.op import Resources as OpResources
from vfm_ops.scheduling import use_batch_scheduling

if TYPE_CHECKING:
    import ray

WORKER_BYTES = 2 << 30  # that one with a model of its own may need


@dataclass(frozen=True)
class ActorPool:
    """Actors of one kind, and what each of them gets. at_once: how many there are at first."""

    pool: Pool
    at_once: int
    cpus: int
    gpus: float = 0.0
    memory_mb: int | None = None
    custom: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, planned: PlannedOp, recipe: Recipe) -> ActorPool:
        """Of an op that runs by itself: its own resources, or the recipe's."""
        return cls.own(planned.resources) if planned.resources else cls.models(place(recipe.resources))

    @classmethod
    def own(cls, resources: OpResources) -> ActorPool:
        """Of an op's own."""
        r, pool = resources, pool_of(resources.actors)
        wanted = {"CPU": r.cpus, "GPU": r.gpus, "memory": (r.memory_mb or 0) << 20, **r.custom}
        return cls(pool, within(pool, actors_that_fit(wanted)), r.cpus, r.gpus, r.memory_mb, r.custom)

    @classmethod
    def models(cls, where: Placement) -> ActorPool:
        """Of all ops that have none of their own."""
        return cls(where.actors, where.at_once, where.cpus, where.gpus)

    def map(
        self, ds: ray.data.Dataset, actor: type, arguments: tuple[Any, ...], blocks: int, at_a_time: int = 1
    ) -> Any:
        """The dataset, its blocks (so many) given to these actors, each of which holds `at_a_time`."""
        from ray.data import ActorPoolStrategy

        with warnings.catch_warnings():  # Ray has no other way to bound how often a task is tried
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            return ds.map_batches(
                actor,
                fn_constructor_args=arguments,
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ActorPoolStrategy(
                    min_size=self.pool[0],
                    max_size=self.pool[1],
                    initial_size=max(self.pool[0], min(self.at_once, blocks)),
                    # A unit that waits at a busy actor is one that an actor on a node that comes later can't take.
                    max_tasks_in_flight_per_actor=at_a_time,
                    max_concurrent_calls_per_actor=at_a_time,
                ),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                memory=self.memory_mb and self.memory_mb << 20,
                resources=dict(self.custom) or None,
                max_task_retries=DEATHS - 1,
            )


def stages_of(planned: list[PlannedOp], recipe: Recipe, work: Work) -> list[tuple[Part, ActorPool]]:
    """What a run is spread over: which part of the way, by which actors.

    Neighbours in the recipe share an actor, unless one has resources of its own. UsageError where these leave no CPU to decode.
    """
    if work.op is not None:
        (one,) = [one for one in planned if one.title == work.op]
        return [(Part(), ActorPool.of(one, recipe))]
    on_frames = [one for one in planned if not one.op.on_videos]
    own = [one.resources.cpus for one in on_frames if one.resources]
    where = place(recipe.resources, reserved=[*own, 1] if own else ())
    groups: list[tuple[list[str], OpResources | None]] = [([], None)]
    for one in on_frames:
        if one.resources is None and groups[-1][1] is None and (where.fused or len(groups) > 1):
            groups[-1][0].append(one.title)
        else:
            groups.append(([one.title], one.resources))
    stages = []
    for i, (titles, resources) in enumerate(groups):
        if resources:
            actors = ActorPool.own(resources)
        elif i == 0 and not where.fused:
            actors = ActorPool(where.decode_actors, where.decode_at_once, 1)
        elif i == 0 or not where.fused:
            actors = ActorPool.models(where)
        else:  # after an op with actors of its own
            actors = ActorPool((1, None), 1, 1)
        stages.append((Part(i == 0, tuple(titles), i == len(groups) - 1), actors))
    return stages


def build_dataset(
    lake: Lake,
    recipe: Recipe,
    units: list[pa.Table],
    stages: list[tuple[Part, ActorPool]],
    work: Work,
    alone: bool = False,
) -> ray.data.Dataset:
    """The graph: units of assets to RESULT rows. alone: an actor holds one unit at a time, and runs it carefully. work: see
    `Chain`."""
    import ray

    version = lake.table("assets").version
    ds = ray.data.from_arrow(units)
    # The next unit is decoded while the last frames of the one before are embedded and written; but for an item that may kill
    # its worker, and would take that unit along.
    at_a_time = 1 if alone else 2
    for part, actors in stages:
        arguments = (part, lake, version, recipe, actors.cpus, work)
        # But for what only decodes, which ends nobody and streams more than one answer should hold.
        if alone and (part.write or not part.decode):
            careful = (Chain, arguments, actors.cpus, partial(_instead, lake, version))
            ds = actors.map(ds, Careful, careful, len(units), at_a_time)
        else:
            ds = actors.map(ds, Chain, arguments, len(units), at_a_time)
    return ds


def _instead(lake: Lake, version: int, block: pa.Table, why: Exception) -> list[pa.Table]:
    """The RESULT row of a unit, or of working tables, that was given up; of a unit of nothing, nothing."""
    if isinstance(why, VfmError):
        return [error_row(UnitError.of(why, []))]
    if not block.num_rows:
        return []
    assets = pc.unique((block if "asset_id" in block.column_names else read_unit(lake, version, block))["asset_id"])
    message = f"the worker died each of the {DEATHS} times that it ran this item alone: {why}; then vfm retry"
    return [error_row(UnitError(message, WORKER_DIED, None, "", assets.to_pylist()))]


def fits_here(recipe: Recipe, planned: list[PlannedOp], units: list[pa.Table]) -> bool:
    """Whether one worker fills this machine, or is done before Ray would have started; and nobody asked for a cluster, a card,
    or certain actors.

    planned: the ops that are to run.
    """
    if has_ray() or recipe.resources.say_where or any(one.resources for one in planned):
        return False
    small = cpu_count() < 2 * MOST_CPUS or sum(pc.sum(u["cost"]).as_py() for u in units) <= LARGEST_UNIT
    return small and resolve_device(recipe.resources.device) == "cpu"


def local_workers(ops: list[PlannedOp], units: int) -> tuple[int, int]:
    """How many workers are to fill this machine, and the threads of each. ops: what they run; units: how many there are."""
    cpus = min(cpu_count(), MOST_CPUS)
    room = psutil.virtual_memory().available // WORKER_BYTES
    workers = max(1, min(cpus, units, room)) if any(one.op.one_thread for one in ops) else 1
    return workers, cpus // workers


def run_here(
    lake: Lake, recipe: Recipe, planned: list[PlannedOp], units: list[pa.Table], work: Work, alone: bool = False
) -> Iterator[pa.Table]:
    """RESULT rows of units, from workers on this machine. planned: the recipe's ops.

    Of a unit whose worker died, nothing comes; but, of one that is tried `alone`, an error that says how."""
    version = lake.table("assets").version
    ops = [one for one in planned if work.op == (one.title if one.op.on_videos else None)]
    if not alone:
        units = share_out(units, local_workers(ops, sum(u.num_rows for u in units))[0])
    count, threads = local_workers(ops, len(units))
    with LocalWorkers(Chain, (Part(), lake, version, recipe, threads, work), count, threads) as workers:
        for unit, made in workers.run_carefully(units) if alone else workers.run(units):
            if not isinstance(made, WorkerDied):
                yield from made
            elif alone:
                yield from _instead(lake, version, unit, made)


def run_on_ray(
    lake: Lake, recipe: Recipe, planned: list[PlannedOp], units: list[pa.Table], work: Work, alone: bool = False
) -> Iterator[pa.Table]:
    """RESULT rows of units, as Ray Data streams them. planned: the recipe's ops.

    Of a unit whose actor died DEATHS times, nothing comes."""
    drop_ahead()
    use_batch_scheduling()  # so does a Ray that is started here, whose idle processes wake a hundred times a second
    connect()
    hush()
    import ray

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # a unit whose worker died stays pending, its neighbours go on
    context.memory_usage_poll_interval_s = None  # a walk through all pages of the actor, every second
    context.autoscaling_config.actor_pool_util_upscaling_threshold = (
        1.0  # every actor has all the units that it may hold
    )
    wait_for_nodes(recipe.resources)
    stages = stages_of(planned, recipe, work)
    (_, first), (_, last) = stages[0], stages[-1]
    if not alone:
        units = share_out(units, first.at_once)
    try:
        with explaining(lambda: no_worker(last.cpus, last.gpus)), telling_of_nodes():
            yield from build_dataset(lake, recipe, units, stages, work, alone).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
    except ray.exceptions.RayError as e:
        raise ended_by_ray("the run", e) from e


def ended_by_ray(what: str, error: Exception) -> VfmError:
    """What to raise where Ray gave up."""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    return VfmError(f"Ray ended {what}: {reason}; {CAN_GO_ON}")
