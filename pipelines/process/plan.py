"""What a run still has to do, as units of work: what is pending; and then, what the first pass left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import Lake, PendingAssets, Work, quarantined_assets
from pipelines.lake.sql import literal
from pipelines.process.units import cut_units

SEGMENT = 1 << 23  # assets, 20 bytes each: a cluster is idle for seconds between two of them


def assets_left(lake: Lake, work: Work, run_id: str, retry: bool) -> tuple[Iterable[pa.RecordBatch], int]:
    """Assets still to be done, as units are cut from, and how many; in a retry, those in quarantine not tried by this run."""
    if not retry:
        pending = PendingAssets(lake, work)
        return pending, len(pending)
    batches = list(_untried(lake, work, run_id))
    return batches, sum(batch.num_rows for batch in batches)


def _untried(lake: Lake, work: Work, run_id: str) -> Iterator[pa.RecordBatch]:
    untried = lake.read("quarantine", ["asset_id"], filter=f"{work.where} AND run_id <> {literal(run_id)}")["asset_id"]
    for batch in quarantined_assets(lake, work):
        if (rows := batch.filter(pc.is_in(batch["asset_id"], value_set=untried.combine_chunks()))).num_rows:
            yield rows


def segments(units: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    """Units, as many at a time as hold SEGMENT assets: what a driver holds does not grow with the corpus."""
    held: list[pa.Table] = []
    assets = 0
    for unit in units:
        held.append(unit)
        assets += unit.num_rows
        if assets >= SEGMENT:
            yield held
            held, assets = [], 0
    if held:
        yield held


def second_units(lake: Lake, work: Work, run_id: str, retry: bool, interrupted: set[str]) -> list[pa.Table]:
    """Units of what the first pass left: an item that only its store kept from being read among others, any other alone."""
    known = pa.array(sorted(interrupted), pa.string())
    batches = [(b, pc.is_in(b["asset_id"], value_set=known)) for b in assets_left(lake, work, run_id, retry)[0]]
    together = cut_units(batch.filter(chosen) for batch, chosen in batches)
    alone = cut_units((batch.filter(pc.invert(chosen)) for batch, chosen in batches), 0.0, 0.0)
    return [*together, *alone]
