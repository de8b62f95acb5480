"""Values of ops for frames that a lake already holds: fragment by fragment, from the stored pictures.

What an op has covered, the lake's coverage says. Of the other assets, a frame is pending while it has a picture, no value, and
no word in `frames.error` that says why it can't have one. What is added to a fragment is a data file of its own, committed when
it is done: no JPEG is rewritten, and a killed run goes on with what is left.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.cluster import connect, hush
from pipelines.lake import Lake, Lease, new_run_id
from pipelines.lake.arrow import row_hashes
from pipelines.lake.coverage import AssetSet, asset_numbers, assets_in, cover, covered
from pipelines.lake.keys import op_keys
from pipelines.lake.lake import rows_by_fragment
from pipelines.lake.numbers import number_assets
from pipelines.lake.schema import ERROR, wants_value
from pipelines.lake.sql import equals
from pipelines.process.frames import WHY_DROPPED, picture_rows, put_column
from pipelines.process.graph import ActorPool, ended_by_ray, fits_here, local_workers
from pipelines.process.local import CAN_GO_ON, Blame, Careful, LocalWorkers, WorkerDied
from pipelines.process.measure import (
    DECODE,
    WRITE,
    Measure,
    StageStats,
    add_stages,
    from_json,
    seconds_by_name,
    to_json,
)
from pipelines.process.metrics import (
    COMMIT_SECONDS,
    COMMITS,
    PENDING_FRAGMENTS,
    WORKER_DEATHS,
    RunMetrics,
    current,
    metrics_of_run,
    restarted,
)
from pipelines.process.ops import PlannedOp, drop_op, forget_values, plan_ops, prepare
from pipelines.process.recipe import Recipe, Resources
from pipelines.process.stages import OpStage, views_of
from pipelines.process.worker_process import drop_ahead
from pipelines.process.write import UnitError, op_rows
from pipelines.settings import validate
from vfm_ops.embed.columns import patches_column
from vfm_ops.errors import MediaError, UsageError, VfmError
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.scheduling import use_batch_scheduling

ROWS, BLIND_ROWS = 32, 8192  # in a batch, of an op that looks at pictures and of one that does not
Row = dict[str, Any]


def embed_lake(
    lake: Lake,
    settings: Mapping[str, Any],
    resources: Resources | None = None,
    progress: Callable[[int, int], None] | None = None,
    metrics_file: str | Path | None = None,
) -> int:
    """Adds a model's column to `frames` where it is missing, and fills it. Returns how many frames got a vector.

    settings: of the op embed, such as {"model": "timm:tf_efficientnet_lite0"}. metrics_file: see `pipelines.process.metrics`.
    Raises UsageError (a model that can't be had, a busy lake, a lake without frames) before anything is written.
    """
    wanted = {"ops": [{"embed": dict(settings)}], "resources": resources or Resources()}
    recipe = validate(Recipe, wanted, "embed")
    (planned,) = plan_ops(recipe, lake.schema("frames"))
    if lake.count("frames") == 0:
        raise UsageError(f"{lake.root} has no frames yet: process it first")
    run_id = new_run_id()
    with metrics_of_run(lake.root, metrics_file), Lease(lake, run_id):
        number_assets(lake)
        prepare(lake, [planned])
        lacking = assets_in(lake, "frames").without(covered(lake, [planned.key])[planned.key])
        return fill_values(lake, recipe, planned, lacking, run_id, progress)


def drop_columns(lake: Lake, op: str | None = None, model: str | None = None) -> list[str]:
    """Removes what an op (by its name in the recipe) or a model (by spec) filled: columns of `frames`, rows of its table.
    Returns the names of the columns, or of the table.

    Raises UsageError when neither or both are named, or it filled nothing; VfmError when another run holds the lake.
    """
    if (op is None) == (model is None):
        raise UsageError("name an op or a model: one of the two")
    with Lease(lake, new_run_id()):
        stored = op_keys(lake)
        if op is not None and op in stored:
            drop_op(lake, stored[op])
            return [*(stored[op]["columns"] or []), *([stored[op]["table"]] if stored[op]["table"] else [])]
        names = columns_of(lake, op, model)
        for name in names:
            if name in stored:  # a model's column is its op's name
                drop_op(lake, stored[name])
        forget_values(lake, str(op or model), names)
    return names


def columns_of(lake: Lake, op: str | None = None, model: str | None = None) -> list[str]:
    """Columns of `frames` that an op (by name) or a model (by spec) filled. UsageError where there is none."""
    key, owner = (b"op", op) if op is not None else (b"spec", model)
    schema = lake.schema("frames")
    names = [f.name for f in schema if (f.metadata or {}).get(key) == str(owner).encode()]
    names += [tokens for name in names if (tokens := patches_column("", name)) in schema.names]
    if not names:
        known = ", ".join(filled_by(schema)) or "none that an op or a model filled"
        raise UsageError(f"{owner} filled no column of {lake.root}; there are {known}")
    return names


def filled_by(frames: pa.Schema) -> list[str]:
    """Names of the ops, and specs of the models, that filled columns of `frames`."""
    facts = [f.metadata or {} for f in frames]
    return sorted({(m.get(b"spec") or m[b"op"]).decode() for m in facts if b"spec" in m or b"op" in m})


def fill_values(
    lake: Lake,
    recipe: Recipe,
    planned: PlannedOp,
    wanted: AssetSet,
    run_id: str,
    progress: Callable[[int, int], None] | None = None,
    seconds: Counter[str] | None = None,
) -> int:
    """Fills the columns, or the table, of an op on frames where its values are missing. Returns how many frames got one.

    wanted: assets with frames that the op has not covered. seconds: of each stage, to be added to. The caller holds the lease
    and has made the columns exist. UsageError when the lake stores no pictures.
    """
    if not len(wanted):
        return 0
    schema = lake.schema("frames")
    pending = " OR ".join(f"({wants_value(schema, field.name)})" for field in planned.fields)
    _check_pictures(lake, planned)
    if planned.count is not None:
        _forget_half_done(lake, planned, pending)
    filled, done = 0, 0
    for row, total in run_on_fragments(lake, recipe, planned, pending, wanted, seconds):
        _commit(lake, planned, row)
        filled, done = filled + row["filled"], done + 1
        if progress:
            progress(done, total)
    cover(lake, {planned.key: planned.title}, wanted, run_id)
    return filled


def _commit(lake: Lake, planned: PlannedOp, row: Row) -> None:
    began, metrics = time.monotonic(), current()
    if row["rows"]:  # before the column that says how many they are
        name = planned.op.table.name  # type: ignore[union-attr]
        lake.commit(name, list(row["rows"]))
        metrics.add(COMMITS, table=name)
    lake.commit_columns("frames", row["written"])
    metrics.add(COMMITS, table="frames")
    metrics.add(COMMIT_SECONDS, time.monotonic() - began)


def _fragments_of(lake: Lake, assets: AssetSet) -> list[int]:
    """Fragments of `frames` with rows of these assets."""
    found: set[int] = set()
    scanner = lake.table("frames").scanner(columns=["asset_no"], with_row_address=True)
    for batch in scanner.to_batches():
        inside = assets.contains(asset_numbers(batch["asset_no"]))
        found.update(np.unique(batch["_rowaddr"].to_numpy()[inside] >> 32).tolist())
    return sorted(found)


def _check_pictures(lake: Lake, planned: PlannedOp) -> None:
    if planned.op.needs is None or lake.count("frames", "jpeg IS NOT NULL"):
        return
    if lake.count("frames", f"{planned.fields[0].name} IS NULL"):
        raise UsageError(
            f"the frames of {lake.root} were stored without JPEGs: process them again with {planned.says} in the recipe"
        )


def _forget_half_done(lake: Lake, planned: PlannedOp, pending: str) -> None:
    """Removes rows of an op's table whose frames still want them: of a run that was killed between the two commits."""
    table = planned.op.table
    assert table is not None
    if not lake.count(table.name, equals("op", planned.title)):
        return
    hashes = [row_hashes(b["frame_id"]) for b in lake.scan("frames", ["frame_id"], pending)]
    waiting = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
    stray: set[str] = set()
    for batch in lake.scan(table.name, ["frame_id"], equals("op", planned.title)):
        found = np.isin(row_hashes(batch["frame_id"]), waiting)
        stray.update(batch["frame_id"].filter(pa.array(found)).to_pylist())
    lake.delete(table.name, "frame_id", sorted(stray), equals("op", planned.title))


def run_on_fragments(
    lake: Lake,
    recipe: Recipe,
    planned: PlannedOp,
    pending: str,
    wanted: AssetSet,
    seconds: Counter[str] | None = None,
) -> Iterator[tuple[Row, int]]:
    """What an op gives for rows of `frames` that satisfy `pending` and are of `wanted` assets: FILLED rows, and of how many.

    seconds: see `fill_values`.
    """
    counts = rows_by_fragment(lake.table("frames"), pending)
    fragments = [f for f in _fragments_of(lake, wanted) if f in counts]
    if not fragments:
        return
    blocks = [pa.table({"fragment": [f], "cost": [float(counts[f])]}) for f in fragments]
    fill = _fill_here if fits_here(recipe, [planned], blocks) else _fill_on_ray
    metrics = current()
    for done, row in enumerate(fill(lake, recipe, planned, pending, wanted, blocks)):
        metrics.set(PENDING_FRAGMENTS, len(fragments) - done, op=planned.title)
        if row["error"]:
            error = UnitError(**json.loads(row["error"]))
            kind = UsageError if error.exit_code == UsageError.exit_code else VfmError
            raise kind(error.message if error.exit_code else f"{planned.says}: {error.kind}: {error.message}")
        add_stages(metrics.add_to_file, stages := from_json(row["stats"]))
        metrics.add_to_file(WORKER_DEATHS, row["deaths"])
        if seconds is not None:
            seconds.update(seconds_by_name(stages))
        metrics.publish()
        yield row, len(fragments)
    metrics.set(PENDING_FRAGMENTS, 0, op=planned.title)


def _fill_here(
    lake: Lake, recipe: Recipe, planned: PlannedOp, pending: str, wanted: AssetSet, blocks: list[pa.Table]
) -> Iterator[Row]:
    count, threads = local_workers([planned], len(blocks))
    arguments = (lake, recipe, planned.title, threads, pending, wanted)
    with LocalWorkers(FillFragment, arguments, count, threads) as workers:
        for block, made in workers.run_carefully(blocks):
            for rows in _instead(planned.says, block, made) if isinstance(made, WorkerDied) else made:
                yield from rows.to_pylist()


def _fill_on_ray(
    lake: Lake, recipe: Recipe, planned: PlannedOp, pending: str, wanted: AssetSet, blocks: list[pa.Table]
) -> Iterator[Row]:
    drop_ahead()
    connect()
    hush()
    import ray

    actors = ActorPool.of(planned, recipe)
    arguments: tuple[Any, ...] = (lake, recipe, planned.title, actors.cpus, pending, wanted)
    careful = (FillFragment, arguments, actors.cpus, partial(_instead, planned.says))
    left = {block["fragment"][0].as_py(): block for block in blocks}
    # A fragment whose actor died gives nothing; it comes again, and costs what ends an actor no more than its own values.
    for actor, given, may_lack in ((FillFragment, arguments, -1), (Careful, careful, 0)):
        ray.data.DataContext.get_current().max_errored_blocks = may_lack
        ds = actors.map(ray.data.from_arrow(list(left.values())), actor, given, len(left))
        try:
            for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in batch.to_pylist():
                    left.pop(row["fragment"])
                    yield row
        except ray.exceptions.RayError as e:
            raise ended_by_ray(planned.says, e) from e
        if not left:
            return


def _instead(says: str, block: pa.Table, why: Exception) -> list[pa.Table]:
    """The FILLED row of a fragment that was given up."""
    error = why if isinstance(why, VfmError) else VfmError(f"{says} ended its worker ({why}); {CAN_GO_ON}")
    return [_unfilled(block["fragment"][0].as_py(), error)]


def _unfilled(fragment: int, error: Exception) -> pa.Table:
    """The FILLED row of a fragment in which nothing was done."""
    told = json.dumps(asdict(UnitError.of(error, [])))
    return pa.Table.from_pylist([{**NOTHING, "fragment": fragment, "error": told}], FILLED)


FILLED = pa.schema(
    [
        ("fragment", pa.int64()),
        ("written", pa.string()),  # what `Lake.commit_columns` takes; empty where the op fills no column
        ("rows", pa.list_(pa.string())),  # fragments of the op's table
        ("drops", pa.list_(pa.list_(pa.string()))),  # (frame id, reason) of what a filter without columns drops
        ("filled", pa.int64()),
        ("stats", pa.string()),  # of its stages, see `measure`
        ("deaths", pa.int64()),  # of workers before this one
        ("error", pa.string()),
    ]
)
NOTHING: Row = {"written": "", "rows": [], "drops": [], "filled": 0, "stats": "[]", "deaths": 0, "error": None}


class FillFragment:
    """Actor: decodes the JPEGs of a fragment whose rows want an op (`pending`, SQL, of `wanted` assets), and writes its columns
    and rows of its table."""

    def __init__(self, lake: Lake, recipe: Recipe, title: str, threads: int, pending: str, wanted: AssetSet) -> None:
        use_batch_scheduling()  # before the model's threads and the decoders are started
        self.lake, self.pending, self.wanted = lake, pending, wanted
        self.failure: Exception | None = None
        self.sandbox: Sandbox | None = None
        self.metrics = RunMetrics(lake.root)
        self.deaths = int(restarted())  # as a Chain has them
        self.metrics.add(WORKER_DEATHS, self.deaths)
        try:
            # With the columns that are filled here.
            planned = plan_ops(recipe, lake.schema("frames"), threads)
            self.planned = next(one for one in planned if one.title == title)
            self.views = views_of([self.planned])
            self.stage = OpStage(self.planned)
            decode = [StageStats(DECODE, DECODE, "cpu")]
            self.measured = [*decode, StageStats.of(self.planned), StageStats(WRITE, WRITE, "cpu")]
        except Exception as e:  # raised here, it would be one more dead actor to Ray, which tells nobody why
            self.failure = e
            return
        if self.views:
            limits = recipe.decode.limits()
            settings = DecodeSettings(views=self.views, jpeg=False, limits=limits)
            self.sandbox = Sandbox(settings, threads)

    def close(self) -> None:
        """Ends the decoder processes."""
        if self.sandbox:
            self.sandbox.close()

    def __call__(self, block: pa.Table) -> pa.Table:
        """block: one fragment id. Returns what to commit; a frame that can't have a value gets the reason instead. What goes
        wrong comes back as data, too: Ray would carry no more than a traceback."""
        block, blame = Blame.of(block)
        fragment = block["fragment"][0].as_py()
        try:
            if self.failure:
                raise self.failure
            self.stage.blame = blame
            measure = Measure(self.measured, self.metrics)
            with self.metrics.unit_in_flight():
                row = self._fill(fragment, measure)
            measure.tell(last=True)
        except Exception as e:
            return _unfilled(fragment, e)
        told = {"fragment": fragment, "stats": to_json(measure.stages()), "deaths": self.deaths}
        self.deaths = 0
        return pa.Table.from_pylist([{**NOTHING, **told, **row}], FILLED)

    def _fill(self, fragment: int, measure: Measure) -> Row:
        rowids: deque[list[int]] = deque()
        faults: dict[int, dict[str, str]] = {}
        told: dict[int, str | None] = {}
        fields = self.planned.fields
        schema = pa.schema([("_rowid", pa.uint64()), *fields, ERROR])
        filled, found, drops = [], [], []
        title = self.planned.title
        stored = measure.timed(DECODE, self._stored(fragment, rowids, faults, told))
        for rows in measure.timed(title, self.stage.stream(stored, measure[title])):
            measure.tell()
            measure[DECODE].rows += rows.num_rows if self.views else 0
            ids = rowids.popleft()
            for row_id, error in zip(ids, rows["error"].to_pylist()):
                if error:
                    faults[row_id] = json.loads(error)
            if self.planned.count is not None and (own := op_rows(self.planned, rows)).num_rows:
                found.append(own)
            if not fields:
                gone = rows.filter(rows[WHY_DROPPED].is_valid())
                drops += [list(pair) for pair in zip(gone["frame_id"].to_pylist(), gone[WHY_DROPPED].to_pylist())]
                continue
            filled.append(_filled(schema, ids, {f.name: rows[f.name] for f in fields}, faults, told))
        if not fields:
            return {"drops": drops}
        if lost := [row_id for row_id in told if "jpeg" in faults.get(row_id, ())]:
            filled.append(_filled(schema, lost, {}, faults, told))
        columns = pa.concat_tables(filled) if filled else schema.empty_table()
        values = columns.num_rows - columns[fields[0].name].null_count
        measure[WRITE].rows += columns.num_rows
        if not any(faults.values()):
            columns = columns.drop_columns(ERROR.name)
        table = self.planned.op.table
        written = self.lake.write_fragments(table.name, pa.concat_tables(found)) if table and found else []
        return {
            "written": self.lake.write_columns("frames", fragment, columns),
            "rows": written,
            "filled": values,
        }

    def _stored(
        self,
        fragment: int,
        rowids: deque[list[int]],
        faults: dict[int, dict[str, str]],
        told: dict[int, str | None],
    ) -> Iterator[pa.Table]:
        """Pending frames of a fragment, decoded. Those that don't decode go to `faults`; `told`: reasons from before."""
        reads = ("asset_id", "run_key", "frame_index", "asset_no", *self.planned.op.columns)
        shown = ["frame_id", *(["jpeg"] if self.views else []), ERROR.name]
        wanted = list(dict.fromkeys([*shown, *reads]))
        for batch in self.lake.scan_fragment(
            "frames", fragment, wanted, ROWS if self.views else BLIND_ROWS, self.pending
        ):
            numbers = asset_numbers(batch["asset_no"])
            batch = batch.filter(pa.array((numbers < 0) | self.wanted.contains(numbers)))
            if not batch.num_rows:
                continue
            stored = batch.select([*shown, "_rowid"]).to_pylist()
            told.update((r["_rowid"], r[ERROR.name]) for r in stored)
            good, decoded = list(range(len(stored))), []
            if self.sandbox is not None:
                results = list(self.sandbox.images([MediaSource(r["frame_id"], data=r["jpeg"]) for r in stored]))
                faults.update(
                    (r["_rowid"], {"jpeg": str(f)}) for r, f in zip(stored, results) if isinstance(f, MediaError)
                )
                good = [i for i, f in enumerate(results) if not isinstance(f, MediaError)]
                decoded = [f for f in results if not isinstance(f, MediaError)]
            if good:
                rowids.append([stored[i]["_rowid"] for i in good])
                rows = picture_rows(decoded, len(good), self.views)
                stored_rows = batch.take(pa.array(good))
                for name in ("frame_id", *reads):
                    rows = put_column(rows, name, stored_rows[name])
                yield rows


def _filled(
    schema: pa.Schema,
    row_ids: list[int],
    columns: dict[str, pa.Array],
    faults: dict[int, dict[str, str]],
    told: dict[int, str | None],
) -> pa.Table:
    """Rows of what is written: values where there are any, and reasons, those from before included."""
    errors = [json.dumps({**json.loads(told[i] or "{}"), **faults[i]}) if i in faults else told[i] for i in row_ids]
    given = {"_rowid": pa.array(row_ids, pa.uint64()), **columns, ERROR.name: pa.array(errors, pa.string())}
    return pa.table([given.get(f.name, pa.nulls(len(row_ids), f.type)) for f in schema], schema.names).cast(schema)
