"""`vfm info`: what a lake holds, what models and ops filled, and what is in quarantine, by reason, with examples."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from jobs.cli import run
from jobs.process import JsonOption, LakeOption
from pipelines.lake import Lake
from pipelines.lake.keys import derived_tables, op_keys
from pipelines.lake.maintenance import table_bytes
from pipelines.lake.schema import facts_of
from pipelines.lake.sql import equals


def command(
    lake: LakeOption,
    examples: Annotated[int, typer.Option(min=0, help="Quarantined items shown for each reason.")] = 3,
    as_json: JsonOption = False,
) -> int:
    """Counts a lake's rows, and says why items are in quarantine."""
    target = Lake.open(lake)
    tables = ("assets", *derived_tables(target), "ledger", "quarantine")
    counts = {table: target.count(table) for table in tables} | {"annotations": len(target.annotations)}
    columns, reasons = filled_columns(target), quarantine_by_reason(target, examples)
    if as_json:
        sizes = {table: table_bytes(target, table) for table in counts}
        print(json.dumps({"counts": counts, "bytes": sizes, "columns": columns, "quarantine": reasons}))
        return 0
    print(", ".join(f"{n} {table}" for table, n in counts.items()))
    megabytes = {table: table_bytes(target, table) / 2**20 for table, n in counts.items() if n}
    print("MB: " + ", ".join(f"{size:.1f} {table}" for table, size in megabytes.items()))
    for column in columns:
        print(f"{column['column']} by {column['by']}: {column['filled']} {column['unit']}, {column['pending']} pending")
    for reason in reasons:
        print(f"{reason['count']} quarantined in {reason['stage']}: {reason['error_type']}")
        for example in reason["examples"]:
            print(f"  {example['uri']}: {example['message']}")
    if reasons:
        print(f"vfm retry --lake {lake} runs them again, once their files are mended")
    return 0


def filled_columns(lake: Lake) -> list[dict[str, Any]]:
    """What models and ops fill: a column of frames or a table, by which (its spec, or name and version), how many frames have a
    value (rows, of a table), how many still want one, and the key of the values; the others say in frames.error why they have
    none.
    """
    found, told = [], set()
    schema = lake.schema("frames")
    for title, key in op_keys(lake).items():
        by = json.loads(key["settings"]).get("model") if key["name"] == "embed" else f"{title} version {key['version']}"
        of_title = {"by": by, "op": title, "key": key["key"]}
        for name in key["columns"] or []:
            told.add(name)
            found.append({"column": name, **of_title, **_filled(lake, name)})
        if key["table"] and lake.dataset(key["table"]) is not None:
            rows = lake.count(key["table"], equals("op", title))
            found.append({"column": key["table"], **of_title, "filled": rows, "pending": 0, "unit": "rows"})
    for field in schema:  # of an older version, which has not been processed since
        facts = facts_of(field)
        if field.name not in told and ("spec" in facts or "version" in facts):
            by = facts.get("spec") or f"{facts['op']} version {facts['version']}"
            found.append({"column": field.name, "by": by, "op": None, "key": None, **_filled(lake, field.name)})
    return found


def _filled(lake: Lake, column: str) -> dict[str, Any]:
    pending = sum(lake.unfilled("frames", column).values())
    return {"filled": lake.count("frames", f"{column} IS NOT NULL"), "pending": pending, "unit": "frames"}


def quarantine_by_reason(lake: Lake, examples: int) -> list[dict[str, Any]]:
    """Stage, error type, count and the first few items (uri, message) of each reason; the commonest reason first."""
    reasons: dict[tuple[str, str], dict[str, Any]] = {}
    for batch in lake.scan("quarantine", ["uri", "stage", "error_type", "message"]):
        for row in batch.to_pylist():
            empty = {"stage": row["stage"], "error_type": row["error_type"], "count": 0, "examples": []}
            reason = reasons.setdefault((row["stage"], row["error_type"]), empty)
            reason["count"] += 1
            if len(reason["examples"]) < examples:
                reason["examples"].append({"uri": row["uri"], "message": row["message"]})
    return sorted(reasons.values(), key=lambda reason: -reason["count"])


if __name__ == "__main__":
    sys.exit(run(command))
