"""Curation on a schedule: cron lines fire, Ray's job API runs, and a SQLite file remembers.

    cron (APScheduler) ── fire ──▶ due ── nothing runs on that lake ──▶ submit (JobSubmissionClient) ──▶ poll until it ends
                                    └─── something does: it waits, and however often it fires meanwhile, it runs once

Whatever stops the scheduler, the next one reads the same file: runs that it was waiting for are waited for again, and all the
times that were missed become one run.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from vfm_ops.errors import UsageError

ACTIVE = ("SUBMITTING", "PENDING", "RUNNING")
POLL_S = 10.0
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_TABLES = """
CREATE TABLE IF NOT EXISTS schedules (
    name TEXT PRIMARY KEY, cron TEXT NOT NULL, timezone TEXT NOT NULL, lake TEXT NOT NULL, selection TEXT NOT NULL,
    recipe TEXT NOT NULL, address TEXT NOT NULL, next_due REAL NOT NULL, waiting REAL);
CREATE TABLE IF NOT EXISTS runs (
    job TEXT PRIMARY KEY, schedule TEXT NOT NULL, lake TEXT NOT NULL, due REAL NOT NULL, submitted REAL NOT NULL,
    ended REAL, status TEXT NOT NULL, message TEXT NOT NULL DEFAULT '');
"""


class JobClient(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str:
        """Starts a job; ValueError or RuntimeError when it can't."""

    def get_job_info(self, job_id: str) -> Any:
        """Status and message of a job; RuntimeError when there is none."""


@dataclass(frozen=True)
class Schedule:
    """One line: which curation of which lake, when, on which cluster. recipe: YAML text. waiting: a time that is due."""

    name: str
    cron: str
    timezone: str
    lake: str
    selection: str
    recipe: str
    address: str
    next_due: float = 0.0
    waiting: float | None = None


@dataclass(frozen=True)
class ScheduledRun:
    """One submission. status: Ray's, or SUBMITTING before it is known to have arrived. Times: seconds since the epoch."""

    job: str
    schedule: str
    lake: str
    due: float
    submitted: float
    ended: float | None
    status: str
    message: str


# -- cron --------------------------------------------------------------------------------------------------------------


def cron_trigger(cron: str, timezone: str = "UTC") -> Any:
    """An APScheduler trigger of a five-field cron line, with cron's own rules: Sunday is 0 or 7, and a day of the month and a
    day of the week, when both are given, each fire. UsageError for a line that is wrong, or that never fires."""
    from apscheduler.triggers.combining import OrTrigger
    from apscheduler.triggers.cron import CronTrigger

    fields = cron.split()
    if len(fields) != 5:
        raise UsageError(
            f"the cron line {cron!r} has {len(fields)} fields, not 5: minute hour day month weekday, as in '0 3 * * *'"
        )
    minute, hour, day, month, weekday = fields
    try:
        days = _named_days(weekday)
        pairs = [(day, days)] if "*" in (day, weekday) else [(day, "*"), ("*", days)]
        triggers = [
            CronTrigger(minute=minute, hour=hour, day=d, month=month, day_of_week=w, timezone=timezone)
            for d, w in pairs
        ]
    except ValueError as e:
        raise UsageError(f"the cron line {cron!r} is wrong: {e}") from e
    except (KeyError, LookupError) as e:
        raise UsageError(f"there is no time zone {timezone!r}: use a name such as UTC or Europe/Berlin") from e
    trigger = triggers[0] if len(triggers) == 1 else OrTrigger(triggers)
    if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise UsageError(f"the cron line {cron!r} never fires: no date matches its day {day} and month {month}")
    return trigger


def _named_days(weekday: str) -> str:
    """The days of a cron weekday field by name: cron counts from Sunday, APScheduler from Monday. ValueError when wrong."""
    if weekday == "*":
        return weekday
    chosen: set[int] = set()
    for part in weekday.lower().split(","):
        days, _, step = part.partition("/")
        first, dash, last = ("0", "-", "6") if days == "*" else days.partition("-")
        low, high = _day_number(first), _day_number(last) if dash else _day_number(first)
        high = 6 if step and not dash else high + 7 if high < low else high
        chosen |= {day % 7 for day in range(low, high + 1, int(step or 1))}
    return ",".join(_DAYS[day] for day in sorted(chosen))


def _day_number(day: str) -> int:
    if day in _DAYS:
        return _DAYS.index(day)
    if not day.isdigit() or int(day) > 7:
        raise ValueError(f"there is no weekday {day!r}: use 0 to 7 (Sunday is both) or sun to sat")
    return int(day)


def next_time(schedule: Schedule, after: float) -> float:
    """When a schedule fires next after a time, in seconds since the epoch."""
    trigger = cron_trigger(schedule.cron, schedule.timezone)
    moment = datetime.fromtimestamp(after, UTC)
    found = trigger.get_next_fire_time(moment, moment)
    return float("inf") if found is None else found.timestamp()


# -- what is remembered ------------------------------------------------------------------------------------------------


class ScheduleStore:
    """Schedules and their runs in a SQLite file, which is made when it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as db:
                db.executescript(_TABLES)
        except (OSError, sqlite3.Error) as e:
            raise UsageError(f"cannot keep schedules in {path}: {e}") from e

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30.0)
        db.row_factory = sqlite3.Row
        try:
            with db:
                yield db
        finally:
            db.close()

    def add(self, schedule: Schedule, now: float) -> Schedule:
        """Stores a schedule, in place of one of its name; returns it with its next time. UsageError for a bad name or cron."""
        if not _NAME.fullmatch(schedule.name):
            raise UsageError(f"{schedule.name!r} can't name a schedule: use letters, digits, - and _")
        stored = Schedule(**{**schedule.__dict__, "next_due": next_time(schedule, now)})
        columns = list(stored.__dict__)
        with self._connection() as db:
            db.execute(
                f"INSERT OR REPLACE INTO schedules ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                tuple(stored.__dict__.values()),
            )
        return stored

    def remove(self, name: str) -> None:
        """Forgets a schedule; its runs stay listed. UsageError when there is none."""
        with self._connection() as db:
            if not db.execute("DELETE FROM schedules WHERE name = ?", (name,)).rowcount:
                known = ", ".join(s.name for s in self.schedules()) or "none"
                raise UsageError(f"there is no schedule {name!r}; there are {known}")

    def schedules(self) -> list[Schedule]:
        """All schedules, by name."""
        with self._connection() as db:
            return [Schedule(**dict(row)) for row in db.execute("SELECT * FROM schedules ORDER BY name")]

    def runs(self, limit: int = 20, *, active: bool = False) -> list[ScheduledRun]:
        """The last runs, the newest first; with `active`, those that have not ended."""
        where = f"WHERE status IN ({', '.join('?' * len(ACTIVE))})" if active else ""
        arguments = (*ACTIVE, limit) if active else (limit,)
        with self._connection() as db:
            rows = db.execute(f"SELECT * FROM runs {where} ORDER BY submitted DESC, job LIMIT ?", arguments)
            return [ScheduledRun(**dict(row)) for row in rows]

    def mark_due(self, name: str, due: float, following: float) -> None:
        """A schedule waits to run (the first time it was due counts), and is due again later."""
        with self._connection() as db:
            db.execute(
                "UPDATE schedules SET waiting = COALESCE(waiting, ?), next_due = ? WHERE name = ?",
                (due, following, name),
            )

    def begin(self, schedule: Schedule, job: str, now: float) -> None:
        """Notes a submission before it is made: whoever comes after a crash asks the cluster whether it arrived."""
        with self._connection() as db:
            due = schedule.waiting if schedule.waiting is not None else now
            db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, NULL, 'SUBMITTING', '')",
                (job, schedule.name, schedule.lake, due, now),
            )
            db.execute("UPDATE schedules SET waiting = NULL WHERE name = ?", (schedule.name,))

    def note(self, job: str, status: str, message: str, now: float) -> None:
        """Notes a run's status; one that is no longer active has ended."""
        ended = None if status in ACTIVE else now
        with self._connection() as db:
            db.execute(
                "UPDATE runs SET status = ?, message = ?, ended = ? WHERE job = ?", (status, message, ended, job)
            )


# -- the scheduler -----------------------------------------------------------------------------------------------------


class Scheduler:
    """Fires schedules and follows their runs; one run at a time on a lake. `clients` makes a job client of an address."""

    def __init__(
        self,
        store: ScheduleStore,
        clients: Callable[[str], JobClient],
        clock: Callable[[], float] = time.time,
        log: Callable[[str], None] = print,
    ) -> None:
        self.store, self.clients, self.clock, self.log = store, clients, clock, log
        self._unreachable: set[str] = set()

    def tick(self) -> None:
        """Marks what is due (however late, and once), follows what runs, submits what waits."""
        now = self.clock()
        for schedule in self.store.schedules():
            if schedule.next_due <= now:
                self.store.mark_due(schedule.name, schedule.next_due, next_time(schedule, now))
        for run in self.store.runs(1000, active=True):
            self._follow(run)
        for schedule in self.store.schedules():
            busy = {run.lake for run in self.store.runs(1000, active=True)}
            if schedule.waiting is not None and schedule.lake not in busy:
                self._submit(schedule)

    def _follow(self, run: ScheduledRun) -> None:
        schedule = next((s for s in self.store.schedules() if s.name == run.schedule), None)
        if schedule is None:
            self.store.note(run.job, "STOPPED", "its schedule was removed", self.clock())
            return
        try:
            info = self.clients(schedule.address).get_job_info(run.job)
        except ConnectionError:
            self._say_unreachable(schedule.address)
            return
        except RuntimeError as e:
            # Ray answers that it knows no such job: the submission never arrived, or the cluster was made anew.
            if run.status == "SUBMITTING":
                self._send(schedule, run.job)
            else:
                self.store.note(run.job, "LOST", f"the cluster knows this job no more: {_line(e)}", self.clock())
            return
        self._unreachable.discard(schedule.address)
        status = str(getattr(info.status, "value", info.status))
        if status != run.status:
            self.store.note(run.job, status, _line(info.message or ""), self.clock())
            self.log(f"{run.schedule}: job {run.job} is {status.lower()}")

    def _submit(self, schedule: Schedule) -> None:
        due = schedule.waiting if schedule.waiting is not None else self.clock()
        job = f"vfm-{schedule.name}-{datetime.fromtimestamp(due, UTC):%Y%m%dT%H%M%S}"
        self.store.begin(schedule, job, self.clock())
        self._send(schedule, job)

    def _send(self, schedule: Schedule, job: str) -> None:
        try:
            self.clients(schedule.address).submit_job(
                entrypoint=entrypoint(schedule), submission_id=job, runtime_env=runtime_env(schedule)
            )
        except ConnectionError:
            self._say_unreachable(schedule.address)  # it stays SUBMITTING, and is tried again
            return
        except (RuntimeError, ValueError) as e:
            self.store.note(job, "FAILED", _line(e), self.clock())
            self.log(f"{schedule.name}: the cluster refused job {job}: {_line(e)}")
            return
        self.store.note(job, "PENDING", "", self.clock())
        self.log(f"{schedule.name}: submitted job {job}")

    def _say_unreachable(self, address: str) -> None:
        if address not in self._unreachable:
            self.log(f"the cluster at {address} can't be reached; it is tried again every {POLL_S:.0f} s")
        self._unreachable.add(address)


def entrypoint(schedule: Schedule) -> str:
    """The command that the cluster runs; the recipe comes through a pipe, as schedules may share a working directory."""
    words = ["python", "-m", "jobs.curate", "--lake", schedule.lake, "--recipe", "/dev/stdin"]
    return f'printf %s "$VFM_CURATION_RECIPE" | {shlex.join([*words, "--selection", schedule.selection])}'


def runtime_env(schedule: Schedule) -> dict[str, Any]:
    """The recipe as a variable, and this very code: the cluster curates as this machine would."""
    import jobs
    import pipelines
    import vfm_ops

    modules = [str(Path(next(iter(m.__path__)))) for m in (jobs, pipelines, vfm_ops)]
    return {"env_vars": {"VFM_CURATION_RECIPE": schedule.recipe}, "py_modules": modules}


@functools.lru_cache
def ray_client(address: str) -> JobClient:
    """Ray's own job client of a dashboard's address, connected once."""
    from ray.job_submission import JobSubmissionClient

    client: JobClient = JobSubmissionClient(address)
    return client


def run_scheduler(
    store: ScheduleStore, clients: Callable[[str], JobClient] = ray_client, log: Callable[[str], None] = print
) -> None:
    """Runs until it is stopped. UsageError when another scheduler has the same file."""
    from apscheduler.schedulers.blocking import BlockingScheduler

    with _only_scheduler(store.path):
        scheduler = Scheduler(store, clients, log=log)
        timer = BlockingScheduler(timezone="UTC")
        # The times themselves are in the file, so that they outlive this process: this only wakes up.
        timer.add_job(
            scheduler.tick, "interval", seconds=POLL_S, max_instances=1, coalesce=True, next_run_time=datetime.now(UTC)
        )
        timer.start()


@contextlib.contextmanager
def _only_scheduler(path: Path) -> Iterator[None]:
    import fcntl

    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another vfm schedule run already keeps {path}: stop it first, or use another --state"
            ) from None
        yield


def _line(text: object) -> str:
    """The first line of a message."""
    return (str(text).strip().splitlines() or [""])[0][:300]
