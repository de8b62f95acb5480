"""Where units run: on a Ray Data graph, or in this process where that is done before Ray would have started.

On CPUs one actor decodes, embeds and writes (pixels stay in one process and its decoder children); on GPUs decode actors feed
model actors. The ops are always the same (`chain`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.cluster import (
    MOST_CPUS,
    Placement,
    Pool,
    connect,
    explaining,
    has_ray,
    hush,
    no_worker,
    place,
    wait_for_nodes,
)
from pipelines.lake import Lake, Work
from pipelines.process.chain import DECODE, OPS, WRITE, Chain
from pipelines.process.recipe import Recipe, Resources
from pipelines.process.units import LARGEST_UNIT, share_out
from vfm_ops.errors import VfmError
from vfm_ops.models.device import cpu_count, resolve_device
from vfm_ops.scheduling import use_batch_scheduling

if TYPE_CHECKING:
    import ray

DEATHS = 3  # of workers, until a unit is given up; nodes vanish, too
SHORT_UNIT = 128.0  # images' worth of work that may come before Ray starts


def build_dataset(
    lake: Lake,
    recipe: Recipe,
    units: list[pa.Table],
    where: Placement,
    work: Work,
    alone: bool = False,
) -> ray.data.Dataset:
    """The graph: units of assets to RESULT rows. alone: an actor holds one unit at a time. work: see `Chain`."""
    import ray

    version = lake.table("assets").version
    ds = ray.data.from_arrow(units)

    def stage(names: tuple[str, ...], pool: Pool, at_once: int, cpus: float, gpus: float) -> None:
        nonlocal ds
        with warnings.catch_warnings():  # Ray has no other way to bound how often a task is tried
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            ds = ds.map_batches(
                Chain,
                fn_constructor_args=(names, lake, version, recipe, where.threads, work),
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(
                    min_size=pool[0],
                    max_size=pool[1],
                    initial_size=max(pool[0], min(at_once, len(units))),
                    # A unit that waits at a busy actor is one that an actor on a node that comes later can't take.
                    max_tasks_in_flight_per_actor=at_a_time,
                    max_concurrent_calls_per_actor=at_a_time,
                ),
                num_cpus=cpus,
                num_gpus=gpus,
                max_task_retries=DEATHS - 1,
            )

    # The next unit is decoded while the last frames of the one before are embedded and written; but for an item that may kill
    # its worker, and would take that unit along.
    at_a_time = 1 if alone else 2
    if where.fused or work.op is not None:
        stage((DECODE, OPS, WRITE), where.actors, where.at_once, where.cpus, where.gpus)
    else:
        stage((DECODE,), where.decode_actors, where.decode_at_once, 1, 0)
        stage((OPS, WRITE), where.actors, where.at_once, where.cpus, where.gpus)
    return ds


def units_here(recipe: Recipe, units: list[pa.Table], heavy: bool) -> int:
    """How many units run in this process: Ray takes longer to start than a small corpus takes to process.

    heavy: whether an op takes seconds to load.

    All of them where there is but one, or the corpus is small and one actor would hold the whole machine anyway; else a short
    first one, so that the first rows are there while Ray starts. None on a cluster, on a GPU, or where the recipe says how to
    place the stages.
    """
    if has_ray() or recipe.resources != Resources() or resolve_device(recipe.resources.device) != "cpu":
        return 0
    costs = [sum(u["cost"].to_pylist()) for u in units]
    if len(units) == 1 or (sum(costs) <= LARGEST_UNIT and cpu_count() < 2 * MOST_CPUS):
        return len(units)
    return int(costs[0] <= SHORT_UNIT and not heavy)


def run_here(lake: Lake, recipe: Recipe, units: list[pa.Table], work: Work) -> Iterator[pa.Table]:
    """RESULT rows of units, one after another, in this process."""
    version, threads = lake.table("assets").version, min(cpu_count(), MOST_CPUS)
    chain = Chain((DECODE, OPS, WRITE), lake, version, recipe, threads, work)
    try:
        for unit in units:
            yield from chain(unit)
    finally:
        chain.close()


def run_on_ray(
    lake: Lake, recipe: Recipe, units: list[pa.Table], work: Work, alone: bool = False
) -> Iterator[pa.Table]:
    """RESULT rows of units, as Ray Data streams them. Of a unit whose worker died DEATHS times, nothing comes."""
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
    where = place(recipe.resources)
    if not alone:
        units = share_out(units, where.at_once if where.fused else where.decode_at_once)
    try:
        with explaining(lambda: no_worker(where.cpus, where.gpus)):
            yield from build_dataset(lake, recipe, units, where, work, alone).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
    except ray.exceptions.RayError as e:
        reason = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__).strip()
        raise VfmError(f"Ray ended the run: {reason}; what was committed stays, and the same command goes on") from e
