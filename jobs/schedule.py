"""`vfm schedule`: a curation at the times of a cron line, on a Ray cluster. `vfm schedule run` is the process that waits."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from jobs.cli import run
from jobs.process import JsonOption
from jobs.scheduler import Schedule, ScheduleStore, cron_trigger, run_scheduler
from vfm_ops.errors import UsageError

_STATE = "~/.vfm/schedule.sqlite"


def command(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|list|run|remove", help="A curation recipe to schedule, or what to do.")
    ],
    name: Annotated[str | None, typer.Argument(help="Of the schedule to remove.")] = None,
    cron: Annotated[str | None, typer.Option(help="minute hour day month weekday, such as '0 3 * * *'.")] = None,
    lake: Annotated[str | None, typer.Option(help="Lake to curate, as the cluster reaches it.")] = None,
    selection: Annotated[str, typer.Option(help="Name of the selection, and of the schedule.")] = "curated",
    address: Annotated[
        str | None, typer.Option(help="Ray's dashboard; RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.")
    ] = None,
    timezone: Annotated[str, typer.Option(help="In which the cron line is meant.")] = "UTC",
    state: Annotated[
        Path, typer.Option(help="SQLite file that remembers; VFM_SCHEDULE.", envvar="VFM_SCHEDULE")
    ] = Path(_STATE),
    as_json: JsonOption = False,
) -> int:
    """Schedules a curation; lists schedules and their last runs; runs them; removes one."""
    path = state.expanduser()
    if what == "list":
        return _list(ScheduleStore(path), as_json)
    if what == "run":
        print(f"keeping the schedules of {path}; stop with Ctrl-C, start again whenever you like", file=sys.stderr)
        run_scheduler(ScheduleStore(path), log=lambda line: print(line, flush=True))
        return 0
    if what == "remove":
        if name is None:
            raise UsageError("say which schedule to remove: vfm schedule remove NAME; vfm schedule list names them")
        ScheduleStore(path).remove(name)
        print(f"removed {name}")
        return 0
    return _add(path, what, cron, lake, selection, address, timezone)


def _add(
    state: Path, recipe: str, cron: str | None, lake: str | None, selection: str, address: str | None, timezone: str
) -> int:
    if cron is None or lake is None:
        missing = "--cron" if cron is None else "--lake"
        raise UsageError(f"a schedule needs {missing}: vfm schedule curate.yaml --cron '0 3 * * *' --lake L")
    cron_trigger(cron, timezone)
    from pipelines.curation.recipe import load_curation_recipe
    from pipelines.curation.selections import check_name
    from pipelines.lake import Lake

    plan = load_curation_recipe(recipe)
    root = Lake.open(lake).root
    check_name(selection)
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    schedule = Schedule(selection, cron, timezone, root, selection, plan.to_yaml(), address)
    stored = ScheduleStore(state).add(schedule, time.time())
    print(f"{selection}: {root} is curated next at {_when(stored.next_due, timezone)}, by {address}")
    print("keep `vfm schedule run` running where it can reach that cluster")
    return 0


def _list(store: ScheduleStore, as_json: bool) -> int:
    schedules, runs = store.schedules(), store.runs()
    if as_json:
        shown = [{k: v for k, v in s.__dict__.items() if k != "recipe"} for s in schedules]
        print(json.dumps({"schedules": shown, "runs": [r.__dict__ for r in runs]}))
        return 0
    if not schedules:
        print("nothing is scheduled: vfm schedule curate.yaml --cron '0 3 * * *' --lake L")
    for s in schedules:
        waits = "; due, and waiting for a run on this lake or for the cluster" if s.waiting is not None else ""
        print(f"{s.name}: '{s.cron}' {s.timezone}, {s.lake}, next {_when(s.next_due, s.timezone)}{waits}")
    for r in runs:
        took = f"{r.ended - r.submitted:.0f} s" if r.ended is not None else ""
        print(
            f"  {_when(r.submitted, 'UTC')}  {r.status.lower():<10} {took:>7}  {r.schedule}  {r.job}  {r.message}".rstrip()
        )
    return 0


def _when(seconds: float, timezone: str) -> str:
    if seconds == float("inf"):
        return "never again"
    return datetime.fromtimestamp(seconds, UTC).astimezone(ZoneInfo(timezone)).strftime("%Y-%m-%d %H:%M %Z")


if __name__ == "__main__":
    sys.exit(run(command))
