"""Naming a state of a lake, whose tables have versions of their own: by a moment, which each table's versions are looked up by.

Lance stamps every version with the time of its commit, so the state at a moment is, of each table, the last version that is no
younger. Maintenance removes old versions (`pipelines.lake.maintenance.forget_versions`): a state that can no longer be told is
refused, and never answered by a neighbouring one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.lake import Lake
from pipelines.lake.sql import equals
from vfm_ops.errors import UsageError

BEFORE = "before:"  # before:RUN_ID, the state that a run began from
NAMES = "a run id, before:RUN_ID, a tag, a version of frames, or a time such as 2026-01-31T09:00 (UTC)"


@dataclass(frozen=True)
class State:
    """A lake as it was. name: in words. versions: of each table that was there. gone: tables whose version was removed."""

    name: str
    versions: dict[str, int]
    gone: tuple[str, ...] = field(default=())


def find_state(lake: Lake, name: str | None, tables: Iterable[str]) -> State:
    """The state that a name stands for; the newest without one.

    name: a run id (the state that it left), `before:RUN_ID`, a tag (tables that have it at the tagged version, the others as
    they were then), a number (that version of `frames`, the others as they were then), or an ISO time, UTC unless it says
    otherwise. Raises UsageError for a name that is none of these, and for a state whose `frames` are no longer kept.
    """
    datasets = {table: dataset for table in tables if (dataset := lake.dataset(table)) is not None}
    if name is None:
        return State("now", {table: int(dataset.version) for table, dataset in datasets.items()})
    if (moment := _moment_of_run(lake, name)) is not None:
        words = f"the start of run {name.removeprefix(BEFORE)}" if name.startswith(BEFORE) else f"the end of run {name}"
        return _at(lake, words, moment, datasets, {})
    pinned = _tagged(datasets, name)
    if not pinned and name.isdigit():
        pinned = _numbered(lake, datasets, int(name))
    if pinned:
        moment = max(_times(datasets[table])[version] for table, version in pinned.items())
        return _at(lake, f"version {name}" if name.isdigit() else f"tag {name}", moment, datasets, pinned)
    return _at(lake, name, _parse_time(lake, name), datasets, {})


def before_last_run(lake: Lake) -> str:
    """The name of the state that the newest recorded run began from. UsageError where no run is recorded."""
    runs = lake.read("runs", ["run_id", "started_at"]).sort_by([("started_at", "descending")])
    if not runs.num_rows:
        raise UsageError(f"{lake.root} records no run: say what to compare with by `older`, {NAMES}")
    return BEFORE + str(runs["run_id"][0].as_py())


def _moment_of_run(lake: Lake, name: str) -> datetime | None:
    """When a run ended, or with `before:` when it began; None where no run has that id."""
    run_id = name.removeprefix(BEFORE)
    rows = lake.read("runs", ["started_at", "ended_at"], filter=equals("run_id", run_id)).to_pylist()
    if not rows:
        if name.startswith(BEFORE):
            raise UsageError(f"{lake.root} has no run {run_id!r}; vfm report --lake {lake.root} lists the last ones")
        return None
    moment: datetime = rows[0]["started_at" if name.startswith(BEFORE) else "ended_at"]
    return moment.astimezone(UTC)


def _tagged(datasets: dict[str, Any], tag: str) -> dict[str, int]:
    tags = {table: dataset.tags.list().get(tag) for table, dataset in datasets.items()}
    return {table: int(found["version"]) for table, found in tags.items() if found is not None}


def _numbered(lake: Lake, datasets: dict[str, Any], number: int) -> dict[str, int]:
    kept = _times(datasets["frames"]) if "frames" in datasets else {}
    if number not in kept:
        raise UsageError(
            f"version {number} of frames of {lake.root} is not kept; its versions are {_ranges(sorted(kept)) or 'none'}: "
            "name one of these, or a tag, which outlives the removal of old versions"
        )
    return {"frames": number}


def _parse_time(lake: Lake, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{lake.root} has no state {text!r}: name {NAMES}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _at(lake: Lake, words: str, moment: datetime, datasets: dict[str, Any], pinned: dict[str, int]) -> State:
    """The state of all tables at a moment, those that are pinned at their own version."""
    versions, gone = dict(pinned), []
    for table, dataset in datasets.items():
        if table in pinned:
            continue
        found = version_at(_times(dataset), moment)
        if found is None:
            gone.append(table)
        elif found:
            versions[table] = found
    if "frames" in gone:
        raise UsageError(
            f"frames of {lake.root} as of {words} are gone: maintenance removes versions that are over a week old; name a "
            f"later time, one of its versions ({_ranges(sorted(_times(datasets['frames'])))}), or a tag"
        )
    return State(words, versions, tuple(gone))


def version_at(times: dict[int, datetime], moment: datetime) -> int | None:
    """The version of a table that was the newest at a moment; 0 where the table was not there yet; None where it is gone.

    times: of the versions that are kept, by number. Numbers have no gaps, so where the next number is missing, that one may
    have been the newest of the moment.
    """
    before = [number for number, time in sorted(times.items()) if time <= moment]
    if not before:
        return 0 if 1 in times else None
    newest = before[-1]
    return newest if newest == max(times) or newest + 1 in times else None


def _times(dataset: Any) -> dict[int, datetime]:
    """When each kept version was committed. Lance gives local times without a zone."""
    return {int(v["version"]): v["timestamp"].astimezone(UTC) for v in dataset.versions()}


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as a person writes them: 1, 4-9."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]) for g in groups)
