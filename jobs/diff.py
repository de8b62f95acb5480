"""`vfm diff`: what two states of a lake differ in, or two selections of it; nothing is written."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli import run
from jobs.process import JsonOption, LakeOption
from jobs.progress import Steps
from pipelines.lake import Lake
from vfm_ops.errors import UsageError

if TYPE_CHECKING:
    from pipelines.reporting.diff import ColumnDiff, LakeDiff, TableDiff
    from pipelines.reporting.selection_diff import Change, SelectionDiff

OPTIONS_OF_ARGUMENTS = {"older": "--from"}

STATE = "Run id (the state it left), before:RUN_ID, tag, version of frames, or time (UTC)"


def command(
    lake: LakeOption,
    selections: Annotated[
        list[str] | None, typer.Argument(help="Two selections to compare, in place of states.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", help=f"{STATE}; before the last run by default.")] = None,
    to: Annotated[str | None, typer.Option(help="As --from; the newest state by default.")] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="Of selections: nearest kept frames that are compared.")] = 10,
    as_json: JsonOption = False,
) -> int:
    """Shows rows that came and went, and values that changed, column by column; of selections, what is decided otherwise."""
    names = selections or []
    if names and (len(names) != 2 or from_ is not None or to is not None):
        raise UsageError("give two selections, or --from and --to: vfm diff --lake LAKE OLD NEW")
    target = Lake.open(lake)
    if names:
        from pipelines.reporting import diff_selections

        chosen = diff_selections(target, names[0], names[1], neighbours)
        print(json.dumps(asdict(chosen)) if as_json else _selections_text(chosen))
        return 0
    from pipelines.reporting import diff_lake

    with Steps("comparing") as step:
        states = diff_lake(target, from_, to, lambda table, column: step(f"{column or 'rows'} of {table}"))
    print(json.dumps(asdict(states)) if as_json else _lake_text(states))
    return 0


def _lake_text(found: LakeDiff) -> str:
    lines = [f"from {found.old} to {found.new}" + ("" if found.tables else ": nothing differs")]
    for table in found.tables:
        lines += _table_lines(table)
    if found.not_compared:
        lines.append(f"not compared, as their versions of then are no longer kept: {', '.join(found.not_compared)}")
    return "\n".join(lines)


def _table_lines(table: TableDiff) -> list[str]:
    lines = [f"{table.table}: {table.rows[0]} rows, then {table.rows[1]}"]
    for count, what, examples in (
        (table.added, "added", table.added_examples),
        (table.removed, "removed", table.removed_examples),
    ):
        if count:
            lines.append(f"  {count} rows {what}: {_such(examples, count)}")
    return [*lines, *(_column_line(column) for column in table.columns)]


def _column_line(column: ColumnDiff) -> str:
    counts = [(column.changed, "changed"), (column.filled, "filled"), (column.emptied, "emptied")]
    total = sum(count for count, _ in counts)
    parts = [f"column {column.status}"] if column.status else []
    parts += [f"{count} values {what}" for count, what in counts if count]
    if column.cosine:
        parts.append(f"cosine {column.cosine['median']:.4f} (median), {column.cosine['min']:.4f} (least)")
    if column.was_by:
        parts.append(f"was by {column.was_by}")
    by = f" by {column.by}" if column.by else ""
    return f"  {column.column}{by}: {', '.join(parts)}" + (
        f": {_such(column.examples, total)}" if column.examples else ""
    )


def _such(examples: list[str], count: int) -> str:
    return ", ".join(examples) + (", ..." if count > len(examples) else "")


def _selections_text(found: SelectionDiff) -> str:
    a, b, both = found.kept
    lines = [f"{found.old} keeps {a} frames, {found.new} {b}, {both} of them the same"]
    for changes, title in (
        (found.only_old, f"only in {found.old}"),
        (found.only_new, f"only in {found.new}"),
        (found.reasons, "decided alike, for another reason"),
    ):
        if changes:
            lines.append(f"{title}: {sum(change.count for change in changes)}")
            lines += [f"  {_change_line(change)}" for change in changes]
    near = found.neighbours
    if near:
        lines.append(
            f"{near.differ:.1%} of the {near.k} nearest kept neighbours differ, over {near.frames} frames that both keep "
            f"(by {' and '.join(dict.fromkeys(near.columns))})"
        )
    else:
        lines.append(f"neighbours are not compared: {found.no_neighbours}")
    return "\n".join(lines)


def _change_line(change: Change) -> str:
    words = f"{change.old}, then {change.new}".replace("_", " ")
    return f"{change.count} {words}: {_such(change.examples, change.count)}"


if __name__ == "__main__":
    sys.exit(run(command))
