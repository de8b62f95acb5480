"""The whole way of the data: pending assets -> decode -> ops -> write -> commit, in one streaming pass over Ray Data; then what
ops lack that came late, and ops on videos.

What is pending is cut into units, which workers run (`graph`, `chain`); the driver commits what they wrote every few seconds.
What did not settle then runs once more, each item alone; what still fails goes to quarantine, with its reason.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.lake import SCHEMAS, Lake, Lease, StoreError, Work, new_run_id, sweep
from pipelines.lake.coverage import FOLD_SURPLUS, assets_in, covered, fold_coverage
from pipelines.lake.schema import facts_of
from pipelines.lake.sql import equals, literal
from pipelines.process.backfill import fill_values
from pipelines.process.commit import Committer, Progress
from pipelines.process.failures import Failures, give_up
from pipelines.process.filters import apply_filter, apply_sampling, reconsider, settle_moves
from pipelines.process.graph import fits_here, run_here, run_on_ray
from pipelines.process.measure import DECODE, WRITE
from pipelines.process.metrics import INTERRUPTED, PENDING, current, metrics_of_run
from pipelines.process.migrate import migrate
from pipelines.process.ops import PlannedOp, coverage_keys, forget_errors, plan_ops, prepare
from pipelines.process.plan import assets_left, second_units, segments
from pipelines.process.recipe import Recipe
from pipelines.process.units import cut_units
from pipelines.progress import State, callback, shows_progress
from vfm_ops.errors import UsageError, VfmError

Report = Callable[[Committer | Progress, int], None]


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
    in_quarantine: int = 0  # assets of this recipe, by this run or an earlier one

    @property
    def bottleneck(self) -> str | None:
        """The stage that was busy longest."""
        return max(self.stages, key=self.stages.__getitem__) if self.stages else None

    @property
    def advice(self) -> str | None:
        """How much of the work the busiest stage was, and what would help it."""
        if (stage := self.bottleneck) is None or not (total := sum(self.stages.values())):
            return None
        helps = {
            DECODE: "more CPUs, or fewer frames of a video (sampling), would help most",
            WRITE: "a faster disk or store, or jpeg.store=false, would help most",
        }.get(stage, "a GPU, more CPUs or a smaller model would help most")
        return f"{stage} was {self.stages[stage] / total:.0%} of the work: {helps}"


def _so_far(committer: Committer | Progress, total: int) -> State:
    counts = committer.counts
    what = f"{committer.unit}{' of ' + committer.op if committer.op else ''}"
    return committer.settled, total, f"{what}, {counts['frames']:,} frames, {counts['quarantined']:,} quarantined"


@shows_progress("process", _so_far)
def process(
    lake: Lake,
    recipe: Recipe,
    *,
    retry: bool | str = False,
    progress: Report | bool | None = None,
    metrics_file: str | Path | None = None,
) -> RunSummary:
    """Settles every pending asset of a lake under a recipe, and computes what any of its ops lacks.

    retry: True for the quarantined assets instead of the pending ones; the name of an op for the frames that it failed on, too.
    progress: see `pipelines.progress`; a callback gets the committer and the number of assets. metrics_file: see
    `pipelines.process.metrics`.

    Raises UsageError (wrong op or model, busy lake, full disk) before anything is written; VfmError where the run itself
    failed, or a store did: what was committed stays, the rest stays pending.
    """
    with metrics_of_run(lake.root, metrics_file):
        return _process(lake, recipe, retry, callback(progress))


def _process(lake: Lake, recipe: Recipe, retry: bool | str, progress: Report | None) -> RunSummary:
    started, run_id = time.time(), new_run_id()
    planned = plan_ops(recipe, lake.schema("frames"))
    failed = _named(planned, retry) if isinstance(retry, str) else None
    lake.check_space()
    with Lease(lake, run_id) as lease:
        for table in SCHEMAS:
            lake.ensure(table)
        unsettled = migrate(lake, recipe) or not lease.whole
        if unsettled:
            sweep(lake)
            settle_moves(lake)
            lease.whole = True
        prepare(lake, planned)
        if failed:
            forget_errors(lake, failed)
        run = _Run(lake, recipe, planned, run_id, retry is True, progress)
        summary = run.all(unsettled)
        fold_coverage(lake, run_id, FOLD_SURPLUS)
        summary.seconds = time.time() - started
        works = [work.where for work in run.works]
        summary.in_quarantine = sum(lake.count("quarantine", filter=where) for where in works)
        _record(lake, recipe, planned, summary, started)
    if run.interrupted:
        raise StoreError(
            f"{len(run.interrupted)} items could not be read, since their store failed, such as asset "
            f"{min(run.interrupted)}; what else there was is done, and the same command goes on with them"
        )
    return summary


def _named(planned: list[PlannedOp], title: str) -> PlannedOp:
    """The op on frames of that name. UsageError where there is none."""
    found = {one.title: one for one in planned}
    if title not in found:
        raise UsageError(f"the recipe has no op {title}; its ops are {', '.join(found) or 'none'}")
    if found[title].op.on_videos:
        raise UsageError(
            f"op {title} is on {found[title].op.unit}s: what it failed on is in quarantine, to be tried again with that"
        )
    return found[title]


class _Run:
    """One run: decoding with the ops on frames, then what ops lack, then ops on videos."""

    def __init__(
        self,
        lake: Lake,
        recipe: Recipe,
        planned: list[PlannedOp],
        run_id: str,
        retry: bool,
        progress: Report | None,
    ) -> None:
        self.lake, self.recipe, self.planned, self.run_id = lake, recipe, planned, run_id
        self.retry, self.progress = retry, progress
        self.interrupted: set[str] = set()
        self.decoding = self._work(recipe.hash)
        on_videos = [one for one in planned if one.op.on_videos]
        self.on_videos = [(one, self._work(one.key, one.title, recipe.hash)) for one in on_videos]

    @property
    def works(self) -> list[Work]:
        """All that assets are settled in."""
        return [self.decoding, *(work for _, work in self.on_videos)]

    def all(self, unsettled: bool) -> RunSummary:
        """See the class. unsettled: whether a run that was killed may have left frames where they do not belong."""
        on_frames = [one for one in self.planned if not one.op.on_videos]
        committer = Committer(self.lake, self.run_id, self.decoding.replaces, covers=coverage_keys(self.planned))
        self._settle(self.decoding, committer, on_frames, self.retry)
        committer.counts["revived"] += (revived := reconsider(self.lake, self.planned, self.run_id))
        apply_sampling(self.lake, self.recipe, self.run_id, bool(unsettled or revived or committer.grown))
        there, keys = assets_in(self.lake, "frames"), coverage_keys(on_frames)
        lacking = {key: there.without(done) for key, done in covered(self.lake, keys).items()}
        for one in on_frames:
            if one.fields:
                report = self._filling(one.title, committer)
                wanted = lacking[one.key]
                committer.counts["backfilled"] += fill_values(
                    self.lake, self.recipe, one, wanted, self.run_id, report, committer.seconds
                )
            if one.keep_key:
                wanted = lacking[one.keep_key]
                committer.counts["dropped"] += apply_filter(
                    self.lake, self.recipe, one, wanted, self.run_id, committer.seconds
                )
        summary = _summarise(self.run_id, committer)
        for one, work in self.on_videos:
            table = one.op.table
            assert table is not None
            own = Committer(self.lake, self.run_id, work.replaces, op=one.title, table=table.name)
            for retry in dict.fromkeys((self.retry, False)):  # a retry may have decoded videos that the op has not seen
                self._settle(work, own, [one], retry)
            _add(summary, own)
        return summary

    def _filling(self, title: str, committer: Committer) -> Callable[[int, int], None] | None:
        """What to tell of how far an op is with frames that were there already."""
        progress = self.progress
        if progress is None:
            return None
        return lambda done, total: progress(
            Progress(title, "fragments", done, committer.counts, committer.seconds), total
        )

    def _work(self, key: str, op: str | None = None, decoded: str = "") -> Work:
        other = f"recipe <> {literal(key)} AND {equals('op', op)}"
        replaces = self.retry or any(self.lake.count(t, filter=other) for t in ("ledger", "quarantine"))
        return Work(key, op, decoded, replaces)

    def _settle(self, work: Work, committer: Committer, planned: list[PlannedOp], retry: bool) -> None:
        """Runs what is pending, in units; then what did not settle, each item alone, so that a bad one takes no other along."""
        first, here = Failures(), False
        left, count = assets_left(self.lake, work, self.run_id, retry)
        total = committer.settled + count
        _tell_pending(committer, total)
        for units in segments(cut_units(left)):
            here = fits_here(self.recipe, planned, units)
            self._commit(self._results(work, units, here, alone=False), committer, first, total)
        failures = Failures()
        units = second_units(self.lake, work, self.run_id, retry, first.interrupted)
        if units:
            # Of a unit that ended in the middle of a video, frames may be there already: begin as after a kill.
            sweep(self.lake)
            again = committer.again()
            total = again.settled + sum(u.num_rows for u in units)
            run = partial(self._results, work, here=here, alone=True)
            self._commit(run(units), again, failures, total)
            if not retry:
                give_up(self.lake, work, again, failures, run)
            committer.first_commit_at = again.first_commit_at
        self.interrupted |= failures.interrupted

    def _commit(
        self, results: Generator[pa.Table, None, None], committer: Committer, failures: Failures, total: int
    ) -> None:
        """Commits what units give. total: assets to be told of."""
        with closing(results) as coming:
            for rows in coming:
                for result in rows.to_pylist():
                    try:
                        failures.note(result)
                    except VfmError:
                        committer.flush(last=True)
                        raise
                    if result["error"] is None:
                        committer.add(result)
                    current().add(INTERRUPTED, len(result["interrupted"]))
                self._report(committer, total)
        committer.flush(last=True)
        self._report(committer, total)

    def _report(self, committer: Committer, total: int) -> None:
        _tell_pending(committer, total)
        if self.progress:
            self.progress(committer, total)

    def _results(self, work: Work, units: list[pa.Table], here: bool, alone: bool) -> Generator[pa.Table, None, None]:
        """RESULT rows of units, from workers on this machine or from Ray."""
        run = run_here if here else run_on_ray
        yield from run(self.lake, self.recipe, self.planned, units, work, alone)


def _tell_pending(committer: Committer, total: int) -> None:
    current().set(PENDING, total - committer.settled, op=committer.op or DECODE)


def _summarise(run_id: str, committer: Committer) -> RunSummary:
    return RunSummary(
        run_id,
        dict(committer.counts),
        0.0,
        committer.first_commit_at,
        dict(committer.seconds),
        committer.efficiency,
        committer.steady_rate,
    )


def _add(summary: RunSummary, committer: Committer) -> None:
    """What an op on videos did, to what the run did before."""
    for name, count in committer.counts.items():
        summary.counts[name] = summary.counts.get(name, 0) + count
    for stage, seconds in committer.seconds.items():
        summary.stages[stage] = summary.stages.get(stage, 0.0) + seconds
    summary.first_commit_at = summary.first_commit_at or committer.first_commit_at


def _record(lake: Lake, recipe: Recipe, planned: list[PlannedOp], summary: RunSummary, started: float) -> None:
    models = {facts["spec"]: facts for one in planned for field in one.fields if "spec" in (facts := facts_of(field))}
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
