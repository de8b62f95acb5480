"""What a run still has to do, as units of work: what is pending; and then, what the first pass left."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import Lake, Work, pending_assets, quarantined_assets
from pipelines.lake.sql import literal
from pipelines.process.units import cut_units


def assets_left(lake: Lake, work: Work, run_id: str, retry: bool) -> Iterator[pa.RecordBatch]:
    """Assets still to be done, as units are cut from; in a retry, those in quarantine that this run has not tried."""
    if not retry:
        yield from pending_assets(lake, work)
        return
    untried = lake.read("quarantine", ["asset_id"], filter=f"{work.where} AND run_id <> {literal(run_id)}")["asset_id"]
    for batch in quarantined_assets(lake, work):
        if (rows := batch.filter(pc.is_in(batch["asset_id"], value_set=untried.combine_chunks()))).num_rows:
            yield rows


def second_units(lake: Lake, work: Work, run_id: str, retry: bool, interrupted: set[str]) -> list[pa.Table]:
    """Units of what the first pass left: an item that only its store kept from being read among others, any other alone."""
    known = pa.array(sorted(interrupted), pa.string())
    batches = [(b, pc.is_in(b["asset_id"], value_set=known)) for b in assets_left(lake, work, run_id, retry)]
    together = cut_units(batch.filter(chosen) for batch, chosen in batches)
    alone = cut_units((batch.filter(pc.invert(chosen)) for batch, chosen in batches), 0.0, 0.0)
    return [*together, *alone]
