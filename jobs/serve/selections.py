"""Selections that a person makes by hand on the page: rows of the lake's own table, as curation writes them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from jobs.serve.problems import Problem
from pipelines.curation.selections import EXTRA, count_kept
from pipelines.lake import Lake, Lease, new_run_id
from pipelines.lake.schema import SCHEMAS
from pipelines.lake.sql import equals, one_of
from vfm_ops.errors import UsageError

REASON = "picked by hand"


def list_selections(lake: Lake) -> list[dict[str, Any]]:
    """name and kept frames of each selection, curated ones too, by name."""
    return [{"name": name, "frames": kept} for name, kept in sorted(count_kept(lake).items())]


def make_selection(lake: Lake, name: str, frame_ids: list[str]) -> dict[str, Any]:
    """Writes a new selection. Problem 409 when the name is taken or another run holds the lake, 422 for unknown frames."""
    wanted = list(dict.fromkeys(frame_ids))
    missing = len(wanted) - _known(lake, wanted)
    if missing:
        raise Problem(422, "", f"{missing} of {len(wanted)} frame ids are not in the lake.")
    rows = pa.table(
        {
            "selection": [name] * len(wanted),
            "frame_id": wanted,
            "kept": [True] * len(wanted),
            "reason": [REASON] * len(wanted),
            "cluster": pa.nulls(len(wanted), SCHEMAS["selections"].field("cluster").type),
            "rank": pa.array(range(len(wanted)), pa.int64()),
        },
        schema=SCHEMAS["selections"],
    )
    try:
        with Lease(lake, new_run_id()):
            # With the columns of curation: whichever comes first, the table is the same.
            lake.ensure("selections", EXTRA)
            if lake.count("selections", equals("selection", name)):
                raise Problem(409, "name taken", f"There is a selection {name} already: choose another name.")
            lake.append("selections", rows)
    except UsageError as busy:
        raise Problem(409, "lake busy", f"Nothing was written: {busy}", retry_after_s=10) from busy
    return {"name": name, "frames": len(wanted)}


def _known(lake: Lake, frame_ids: list[str]) -> int:
    found = 0
    for start in range(0, len(frame_ids), 2000):
        found += lake.count("frames", one_of("frame_id", frame_ids[start : start + 2000]))
    return found
