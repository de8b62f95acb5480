"""What the values of each op in a lake are of: its key, and the facts that the key stands for; the last row of an op counts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipelines.lake.lake import Lake
from pipelines.lake.schema import CHILD_TABLES, SCHEMAS


def op_keys(lake: Lake) -> dict[str, dict[str, Any]]:
    """The rows of `keys` that count, by the op's name in the recipe."""
    return {row["op"]: row for row in lake.read("keys").to_pylist() if row["key"]}


def record_keys(lake: Lake, rows: list[dict[str, Any]]) -> None:
    """Appends rows of `keys`. One with an empty key says that the op has no values any more."""
    if rows:
        lake.append("keys", pa.Table.from_pylist(rows, SCHEMAS["keys"]))


def derived_tables(lake: Lake) -> list[str]:
    """Tables with rows of an asset, in the order in which they are committed."""
    return list(dict.fromkeys((*CHILD_TABLES, *op_tables(lake))))


def all_tables(lake: Lake) -> list[str]:
    """The lake's own tables and those of ops, there or not."""
    return list(dict.fromkeys((*SCHEMAS, *op_tables(lake))))


def op_tables(lake: Lake, unit: str | None = None) -> list[str]:
    """Tables that ops of a unit (frame, video; None: any) have filled, or once did."""
    rows = lake.read("keys", ["table", "unit"]).to_pylist()
    return list(dict.fromkeys(r["table"] for r in rows if r["table"] and unit in (None, r["unit"])))
