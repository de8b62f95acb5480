"""Curation of a lake, the whole way: every item is kept or dropped for a stated reason.

    frames ▶ quality ▶ exact ▶ videos ▶ perceptual ▶ semantic ▶ aligned ▶ reconsidered ▶ decontaminate
           ▶ cluster ▶ retrieve ▶ prune ▶ sample

A first run decides all items. A later one with the same recipe decides the new ones only: they meet the clusters and the
items that stood before, which stay as they were decided. All follows from pinned table versions, the recipe and the run before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation import clusters, duplicates, selections
from pipelines.curation.chains import settle_chains
from pipelines.curation.clusters import ClusterState
from pipelines.curation.decisions import Decisions
from pipelines.curation.incremental import Base, keep_earlier_decisions, load_base
from pipelines.curation.items import choose_column, load_items
from pipelines.curation.outside import drop_contaminated
from pipelines.curation.pool import Pool, check_usable
from pipelines.curation.quality import drop_low_quality
from pipelines.curation.recipe import CurationRecipe
from pipelines.curation.rows import CurationResult, selection_rows, settle_kept
from pipelines.curation.selections import Manifest
from pipelines.curation.vectors import Actors, Vectors, VectorSource, choose_backend, vector_dim
from pipelines.curation.videos import drop_video_copies
from pipelines.lake import SCHEMAS, Lake, Lease, new_run_id
from pipelines.progress import callback, shows_progress
from pipelines.search.columns import Column
from vfm_ops.allocator import give_back_memory
from vfm_ops.errors import UsageError

Progress = Callable[[str, int], None]


@dataclass
class CurationSummary:
    """What a run did. manifest: the selection's newest; unchanged: nothing was new, so nothing was written."""

    manifest: Manifest
    seconds: float = 0.0
    unchanged: bool = False
    stages: dict[str, float] = field(default_factory=dict)


@shows_progress("curate", lambda step, left: (left, None, f"items at {step}"))
def curate(
    lake: Lake,
    recipe: CurationRecipe | None = None,
    name: str = "curated",
    *,
    full: bool = False,
    progress: Progress | bool | None = None,
) -> CurationSummary:
    """Curates a lake into a selection: every item is kept or dropped, for a stated reason.

    Args:
        lake: An open lake that has embeddings.
        recipe: What is dropped and how the rest is balanced; None is the default recipe.
        name: Of the selection. Where it exists with this recipe, only what is new is decided.
        full: Decides every item anew.
        progress: A bar in a notebook (None), anywhere (True), nowhere (False); or what is called with each step's name and
            the items that are left when it begins.

    Returns:
        The selection's manifest, with counts by reason, and seconds by step.

    Raises:
        UsageError: With nothing written: a busy or empty lake, unusable vectors, another model's seed set, too large a target.

    Example:
        >>> curate(Lake.open("lake")).manifest.kept
    """
    started, run_id = time.time(), new_run_id()
    recipe = recipe or CurationRecipe()
    selections.check_name(name)
    column = choose_column(lake, recipe.column)
    lake.check_space()
    clock = Clock(callback(progress))
    with Lease(lake, run_id):
        selections.recover(lake, name)
        selections.refuse_by_hand(lake, name)
        previous = selections.load_manifest(lake, name)
        versions = {table: int(lake.table(table).version) for table in ("frames", "assets")}
        same = previous is not None and _same_plan(previous, recipe, column)
        base = load_base(lake, previous) if previous is not None and same and not full else None
        result = decide(lake, recipe, column, versions, base, clock, work=name)
        if base is not None and not result.pool.fresh.any() and not base.removed:
            return CurationSummary(base.manifest, time.time() - started, unchanged=True)
        manifest = describe(lake, name, recipe, column, versions, result, previous)
        rows = selection_rows(name, manifest.key, result)
        _count(lake, manifest, result, previous)
        state = result.state.to_bytes() if result.state is not None and base is None else None
        selections.commit(lake, manifest, rows, state)
        _record(lake, run_id, manifest, started)
    return CurationSummary(manifest, time.time() - started, stages=clock.seconds)


class Clock:
    """Tells progress which step begins and how many items are left, and adds up each step's seconds."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress, self.seconds = progress, dict[str, float]()

    @contextlib.contextmanager
    def step(self, name: str, pool: Pool, funnel: list[tuple[str, int]]) -> Iterator[None]:
        """Runs a step, and notes in the funnel how many items are left after it."""
        before = time.perf_counter()
        if self.progress:
            self.progress(name, int(pool.alive.sum()))
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - before
        funnel.append((name, int(pool.alive.sum())))


def decide(
    lake: Lake,
    recipe: CurationRecipe,
    column: Column,
    versions: dict[str, int],
    base: Base | None,
    clock: Clock | None = None,
    work: str | None = None,
) -> CurationResult:
    """What becomes of every item, as a function of pinned versions, the recipe and the run before. Writes nothing but, for
    `work`, the clusters of an unfinished run, so that one that was killed need not find them again."""
    clock = clock or Clock()
    items = load_items(lake, versions["frames"], versions["assets"], recipe.where)
    dim = vector_dim(lake.table("frames", versions["frames"]).schema.field(column.name))
    source = VectorSource(lake.root, versions["frames"], column.name, dim)
    with contextlib.ExitStack() as stack:
        ray = choose_backend(recipe.resources.backend, len(items)) == "ray"
        actors = stack.enter_context(Actors(recipe.resources.workers)) if ray else None
        count = len(items)
        pool = Pool(
            lake,
            recipe,
            column,
            items,
            Vectors(source, items.position, recipe.resources.workers, actors),
            fresh=np.ones(count, bool),
            standing=np.zeros(count, bool),
            label=np.full(count, -1, np.int64),
            decisions=Decisions(count),
        )
        if base is not None:
            keep_earlier_decisions(pool, base)
        funnel = [("items", int(pool.fresh.sum()))]
        if not pool.fresh.any():
            return CurationResult(pool, np.zeros(0, np.int64), None, base, funnel)
        for step, work_on in STEPS:
            with clock.step(step, pool, funnel):
                work_on(pool)
        give_back_memory()
        drawn, state = _choose(pool, base, clock, funnel, _key(recipe, column, versions, None), work)
    settle_kept(pool, drawn, state)
    give_back_memory()
    return CurationResult(pool, drawn, state, base, funnel)


STEPS: tuple[tuple[str, Callable[[Pool], None]], ...] = (
    ("usable vectors", check_usable),
    ("quality", drop_low_quality),
    ("exact", lambda pool: duplicates.drop_exact(pool) if pool.recipe.deduplicate.exact else None),
    ("video copies", drop_video_copies),
    ("perceptual", duplicates.drop_perceptual),
    ("semantic", duplicates.drop_semantic),
    ("aligned", duplicates.drop_aligned),
    ("reconsidered", settle_chains),
    ("decontaminate", drop_contaminated),
)


def _choose(
    pool: Pool, base: Base | None, clock: Clock, funnel: list[tuple[str, int]], key: str, work: str | None
) -> tuple[np.ndarray, ClusterState | None]:
    """Clusters, retrieves, prunes and samples. Returns the drawn items, and the clusters."""
    recipe = pool.recipe
    if base is None:
        _check_target(pool)
    state, hierarchy, rows = (base.state if base else None), None, np.zeros(0, np.int64)
    sqdist = np.zeros(len(pool.items), np.float32)
    if recipe.cluster is not None and (base is None or state is not None):
        with clock.step("cluster", pool, funnel):
            if state is None:
                state, hierarchy, rows = _clusters(pool, key, work)
            else:
                new = np.flatnonzero(pool.fresh & pool.has_vector)
                sqdist[new] = clusters.label_items(pool, state, new)
    with clock.step("retrieve", pool, funnel):
        floor, _ = clusters.retrieve(pool, state, base is not None)
    if state is not None and base is None:
        state.seed_floor_S = floor
    if state is not None:
        with clock.step("prune", pool, funnel):
            clusters.prune(pool, state)
    drawn = np.flatnonzero(pool.alive)
    if state is not None and recipe.sample is not None:
        with clock.step("sample", pool, funnel):
            if hierarchy is not None:
                drawn = clusters.sample(pool, state, hierarchy, rows)
            elif base is not None:
                drawn = clusters.sample_new(pool, state, base.kept_per_cluster(len(state.centroids[0])), sqdist)
        funnel[-1] = ("sample", len(np.unique(drawn)))
    return drawn, state


def _check_target(pool: Pool) -> None:
    """UsageError when more is wanted than is left: said before the clusters are built, not after."""
    settings, left = pool.recipe.sample, int(pool.alive.sum())
    if settings is None or settings.replacement or left == 0:
        return
    if clusters.wanted_items(settings.target, left) > left:
        raise UsageError(
            f"a sample of {settings.target} was asked for, but of {len(pool.items)} items only {left} are left: lower "
            "sample.target, or loosen the steps before"
        )


def _clusters(pool: Pool, key: str, work: str | None) -> tuple[ClusterState, Any, np.ndarray]:
    """Builds the clusters, or takes those that a killed run of the same plan had built."""
    stored = selections.read_file(pool.lake, f"{work}.work.npz") if work else None
    if stored is not None and (found := clusters.restore_work(pool, key, stored)) is not None:
        return found
    state, hierarchy, rows = clusters.build_clusters(pool)
    if work:
        selections.write_file(pool.lake, f"{work}.work.npz", clusters.work_bytes(pool, key, state, hierarchy, rows))
    return state, hierarchy, rows


# -- manifests ---------------------------------------------------------------------------------------------------------


def describe(
    lake: Lake,
    name: str,
    recipe: CurationRecipe,
    column: Column,
    versions: dict[str, int],
    result: CurationResult,
    previous: Manifest | None,
) -> Manifest:
    """The manifest of a result."""
    base = result.base.manifest if result.base else None
    generation = previous.generation + 1 if previous else 1
    clustered = generation if result.state is not None else None
    return Manifest(
        selection=name,
        generation=generation,
        key=_key(recipe, column, versions, base.key if base else None),
        mode="incremental" if base else "full",
        base=base.generation if base else None,
        state=base.state if base else clustered,
        recipe=recipe.hash,
        recipe_yaml=recipe.to_yaml(),
        seed=recipe.seed,
        column=column.name,
        model={
            "spec": column.spec,
            "digest": column.digest,
            "runtime": column.runtime,
            "precision": column.precision,
            "preprocess": column.preprocess,
        },
        versions=versions,
        tag=f"{name}.g{generation}",
        code_version=version("vfm-pipelines"),
        funnel=result.funnel,
        sets=result.pool.sets or (base.sets if base else {}),
    )


def _key(recipe: CurationRecipe, column: Column, versions: dict[str, int], base: str | None) -> str:
    plan = json.dumps([recipe.hash, column.name, column.digest, sorted(versions.items()), base])
    return hashlib.blake2b(plan.encode(), digest_size=8).hexdigest()


def _same_plan(previous: Manifest, recipe: CurationRecipe, column: Column) -> bool:
    return (previous.recipe, previous.column, previous.model["digest"]) == (recipe.hash, column.name, column.digest)


def _count(lake: Lake, manifest: Manifest, result: CurationResult, previous: Manifest | None) -> None:
    """Fills in what the selection holds, and what changed since the generation before."""
    fresh, base = result.pool.decisions.tally(), result.base
    untouched = base.tally() if base else {}
    manifest.tally = {
        k: fresh.get(k, 0) + untouched.get(k, 0) for k in [*untouched, *(k for k in fresh if k not in untouched)]
    }
    kept_now = pa.array(pc.take(result.pool.items.frame_id, pa.array(np.unique(result.drawn))))
    manifest.kept = len(kept_now) + (base.kept if base else 0)
    manifest.items = len(result.pool.items)
    if base is not None:
        manifest.changes = {
            "new": int(result.pool.fresh.sum()),
            "new_kept": len(kept_now),
            "removed": base.removed,
            "untouched": base.untouched.num_rows,
        }
    elif previous is not None:
        rows = selections.read_rows(lake, manifest.selection, columns=["frame_id", "kept"])
        before = pc.unique(rows.filter(rows["kept"])["frame_id"])
        stayed = pc.sum(pc.is_in(kept_now, value_set=before)).as_py() or 0
        manifest.changes = {"entered": len(kept_now) - stayed, "left": len(before) - stayed, "stayed": stayed}


def _record(lake: Lake, run_id: str, manifest: Manifest, started: float) -> None:
    row = {
        "run_id": run_id,
        "command": "curate",
        "recipe": manifest.recipe,
        "recipe_yaml": manifest.recipe_yaml,
        "code_version": manifest.code_version,
        "models": json.dumps({manifest.model["spec"]: manifest.model}),
        "started_at": datetime.fromtimestamp(started, UTC),
        "ended_at": datetime.now(UTC),
        "counts": json.dumps({"items": manifest.items, "kept": manifest.kept, **manifest.tally}),
        "efficiency": None,
    }
    lake.append("runs", pa.Table.from_pylist([row], SCHEMAS["runs"]))


def reproduce(lake: Lake, name: str) -> tuple[bool, Manifest]:
    """Decides a selection again from its manifest, at the pinned versions, and compares every row with the stored ones.

    Returns whether all are equal. Raises UsageError when there is no such selection.
    """
    import yaml

    from pipelines.settings import validate

    manifest = selections.load_manifest(lake, selections.check_name(name))
    if manifest is None:
        raise UsageError(
            f"{lake.root} has no selection {name!r}; it has {', '.join(selections.list_selections(lake)) or 'none'}"
        )
    recipe = validate(CurationRecipe, yaml.safe_load(manifest.recipe_yaml), f"the manifest of {name}")
    column = choose_column(lake, manifest.column)
    if manifest.model["digest"] != column.digest:
        raise UsageError(f"column {column.name} was embedded anew since {name} was made: its vectors are others")
    before = selections.load_manifest(lake, name, manifest.base) if manifest.base is not None else None
    base = load_base(lake, before, at_tag=True) if before is not None else None
    result = decide(lake, recipe, column, manifest.versions, base)
    again = pa.Table.from_batches(selection_rows(name, manifest.key, result), selections.ROWS)
    stored = selections.read_rows(lake, name, manifest.tag).select(selections.ROWS.names)
    order = [("frame_id", "ascending"), ("rank", "ascending")]
    return again.sort_by(order).combine_chunks().equals(stored.sort_by(order).combine_chunks()), manifest
