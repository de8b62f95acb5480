"""`vfm index`: merges small fragments, builds or extends the indices, and lets old versions go."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import Annotated

import typer

from jobs.cli import run
from pipelines.lake import Lake
from pipelines.lake.indices import KINDS, WANTED_RECALL, IndexReport
from pipelines.lake.maintenance import maintain


def command(
    lake: Annotated[str, typer.Option(help="Directory or object-store prefix of the lake.")],
    model: Annotated[list[str] | None, typer.Option(help="Model spec whose embeddings to index; all of them.")] = None,
    kind: Annotated[str, typer.Option(help=f"Vector index: {', '.join(KINDS)}.")] = "auto",
    recall: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Of the ten nearest, the share that a search has to find.")
    ] = WANTED_RECALL,
    compact: Annotated[bool, typer.Option(help="Merge small fragments first.")] = True,
    keep_days: Annotated[float, typer.Option(help="Days that old versions are kept; below zero keeps all.")] = 7.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Makes searches fast and right after a lake has grown. Runs on a Ray cluster when RAY_ADDRESS names one."""
    target = Lake.open(lake)
    connect_ray()
    columns = [column for name in model or [] for column in columns_of(target, name)] or None
    keep = timedelta(days=keep_days) if keep_days >= 0 else None
    report = maintain(target, columns=columns, kind=kind, recall=recall, compact=compact, keep=keep)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(report.as_dict()))
        return 0
    for table, (before, after) in report.fragments.items():
        if before != after:
            print(f"{table}: {before} fragments merged into {after}")
    for index in report.indices:
        print(_line(index))
    print(f"{report.freed_bytes / 2**20:.1f} MB of old versions removed" + (", on Ray" if report.distributed else ""))
    return 0


def columns_of(lake: Lake, model: str) -> list[str]:
    """The embedding columns that a spec or a column's own name means; a name that means none, for the refusal to name it."""
    fields = [f for f in lake.schema("frames") if (f.metadata or {}).get(b"spec")]
    return [f.name for f in fields if model in (f.name, f.metadata[b"spec"].decode())] or [model]


def connect_ray() -> None:
    """Joins the Ray that RAY_ADDRESS names, as inside a submitted job; does nothing elsewhere."""
    import os

    if os.environ.get("RAY_ADDRESS"):
        from pipelines.cluster import connect, hush

        connect()
        hush()


def _line(index: IndexReport) -> str:
    tried = "".join(
        f"\n  {'took' if t.kind == index.kind else 'tried'} {t.kind}: {t.p50_ms:.1f} ms, recall@10 {t.recall:.3f}, "
        f"built in {t.seconds:.1f} s"
        for t in index.tried
    )
    tried = f"; on {index.tried_rows} of them:{tried}" if tried else ""
    if index.built == "exact":
        return f"{index.table}.{index.column}: {index.rows} vectors, scanned exactly{tried}"
    recall = f", {index.p50_ms:.1f} ms a search, recall@10 {index.recall:.3f}" if index.recall is not None else ""
    return f"{index.table}.{index.column}: {index.kind} {index.built}, {index.rows} rows{recall}, {index.seconds:.1f} s{tried}"


if __name__ == "__main__":
    sys.exit(run(command))
