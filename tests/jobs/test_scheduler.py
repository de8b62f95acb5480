"""Schedules: cron's own rules, one run at a time, missed runs as one, and nothing forgotten when the scheduler dies."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from jobs.scheduler import Schedule, Scheduler, ScheduleStore, cron_trigger, entrypoint, next_time, run_scheduler
from vfm_ops.errors import UsageError

DAY = 86400.0
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC).timestamp()  # a Sunday


class Cluster:
    """A job server: remembers what was submitted, answers with the status that the test sets."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.entrypoints: list[str] = []
        self.reachable = True

    def client(self, address: str) -> Cluster:
        return self

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict) -> str:
        self._reach()
        if submission_id in self.jobs:
            raise RuntimeError(f"job {submission_id} exists")
        self.jobs[submission_id] = "PENDING"
        self.entrypoints.append(entrypoint)
        assert runtime_env["env_vars"]["VFM_CURATION_RECIPE"] == "seed: 1"
        return submission_id

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        self._reach()
        if job_id not in self.jobs:
            raise RuntimeError(f"Job {job_id} does not exist")
        return SimpleNamespace(status=self.jobs[job_id], message="")

    def _reach(self) -> None:
        if not self.reachable:
            raise ConnectionError("refused")


class Setting:
    """A store, a cluster, a clock that the test moves, and a scheduler that it may replace."""

    def __init__(self, folder) -> None:
        self.store, self.cluster, self.now, self.said = ScheduleStore(folder / "s.sqlite"), Cluster(), START, []
        self.restart()

    def restart(self) -> None:
        self.store = ScheduleStore(self.store.path)
        self.scheduler = Scheduler(self.store, self.cluster.client, lambda: self.now, self.said.append)

    def add(self, name: str = "nightly", cron: str = "0 3 * * *", lake: str = "/l") -> Schedule:
        return self.store.add(Schedule(name, cron, "UTC", lake, name, "seed: 1", "http://head:8265"), self.now)

    def pass_days(self, days: float) -> None:
        self.now += days * DAY
        self.scheduler.tick()

    @property
    def statuses(self) -> list[str]:
        return [run.status for run in self.store.runs()]


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(tmp_path)


def test_a_schedule_submits_at_its_time_and_not_before(setting):
    setting.add()
    setting.pass_days(14.9 / 24)
    assert setting.cluster.jobs == {}
    setting.pass_days(0.2 / 24)
    assert list(setting.cluster.jobs) == ["vfm-nightly-20260302T030000"]
    assert "-m jobs.curate --lake /l --recipe /dev/stdin --selection nightly" in setting.cluster.entrypoints[0]
    setting.pass_days(0.1 / 24)
    assert len(setting.cluster.jobs) == 1


def test_while_a_run_goes_on_the_next_ones_wait_and_become_one(setting):
    setting.add()
    setting.pass_days(1)
    first = next(iter(setting.cluster.jobs))
    setting.cluster.jobs[first] = "RUNNING"
    for _ in range(3):
        setting.pass_days(1)
    assert list(setting.cluster.jobs) == [first]
    assert setting.store.schedules()[0].waiting is not None
    setting.cluster.jobs[first] = "SUCCEEDED"
    setting.pass_days(0.01)
    assert len(setting.cluster.jobs) == 2
    assert setting.statuses == ["PENDING", "SUCCEEDED"]


def test_times_missed_while_nobody_kept_the_schedule_become_one_run(setting):
    setting.add(cron="*/10 * * * *")
    setting.now += 5 * DAY
    setting.restart()
    setting.scheduler.tick()
    setting.scheduler.tick()
    assert len(setting.cluster.jobs) == 1
    assert setting.store.schedules()[0].next_due == setting.now + 600


def test_a_scheduler_that_died_between_noting_and_submitting_submits_once(setting):
    setting.add()
    setting.now += DAY
    setting.cluster.reachable = False
    setting.scheduler.tick()
    assert setting.statuses == ["SUBMITTING"]
    setting.scheduler.tick()
    assert len([line for line in setting.said if "can't be reached" in line]) == 1
    setting.cluster.reachable = True
    setting.restart()
    setting.scheduler.tick()
    setting.scheduler.tick()
    assert len(setting.cluster.jobs) == 1
    assert setting.statuses == ["PENDING"]


def test_a_submission_that_arrived_before_the_scheduler_died_is_adopted(setting):
    setting.add()
    setting.now += DAY
    schedule = setting.store.schedules()[0]
    setting.store.mark_due(schedule.name, schedule.next_due, schedule.next_due + DAY)
    schedule = setting.store.schedules()[0]
    setting.store.begin(schedule, "vfm-nightly-x", setting.now)
    setting.cluster.jobs["vfm-nightly-x"] = "RUNNING"
    setting.restart()
    setting.scheduler.tick()
    assert list(setting.cluster.jobs) == ["vfm-nightly-x"]
    assert setting.statuses == ["RUNNING"]


def test_a_cluster_made_anew_does_not_block_the_schedule_for_ever(setting):
    setting.add()
    setting.pass_days(1)
    setting.pass_days(0.01)
    setting.cluster.jobs.clear()
    setting.pass_days(1)
    assert setting.statuses == ["PENDING", "LOST"]


def test_two_schedules_of_one_lake_take_turns_those_of_two_lakes_do_not(setting):
    setting.add("a")
    setting.add("b")
    setting.add("c", lake="/other")
    setting.pass_days(1)
    assert sorted(j.split("-")[1] for j in setting.cluster.jobs) == ["a", "c"]
    setting.cluster.jobs = dict.fromkeys(setting.cluster.jobs, "FAILED")
    setting.pass_days(0.01)
    assert sorted(j.split("-")[1] for j in setting.cluster.jobs) == ["a", "b", "c"]


def weekday_times(cron: str, count: int = 7) -> list[str]:
    at, days = START, []
    for _ in range(count):
        at = next_time(Schedule("x", cron, "UTC", "", "", "", ""), at + 1)
        days.append(datetime.fromtimestamp(at, UTC).strftime("%a %d"))
    return days


@pytest.mark.parametrize(
    ("cron", "days"),
    [
        ("0 3 * * 0", ["Sun 08", "Sun 15"]),
        ("0 3 * * 7", ["Sun 08", "Sun 15"]),
        ("0 3 * * 1-5", ["Mon 02", "Tue 03", "Wed 04", "Thu 05", "Fri 06", "Mon 09"]),
        ("0 3 * * 5-7", ["Fri 06", "Sat 07", "Sun 08"]),
        ("0 3 * * 0-1", ["Mon 02", "Sun 08", "Mon 09"]),
        ("0 3 * * */3", ["Wed 04", "Sat 07", "Sun 08"]),
        ("0 3 * * mon,Fri", ["Mon 02", "Fri 06"]),
        ("0 3 10 * 2", ["Tue 03", "Tue 10", "Tue 17"]),
        ("0 3 11 * 2", ["Tue 03", "Tue 10", "Wed 11"]),
    ],
)
def test_weekdays_are_crons_and_day_and_weekday_each_fire(cron, days):
    assert weekday_times(cron, len(days)) == days


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("0 0 30 2 *", "UTC", "never fires: no date matches its day 30 and month 2"),
        ("0 0 31 4,6,9,11 *", "UTC", "never fires"),
        ("0 3 * *", "UTC", "has 4 fields, not 5"),
        ("61 3 * * *", "UTC", "is wrong: "),
        ("0 3 * * 8", "UTC", "there is no weekday '8'"),
        ("0 3 * * *", "Mars/Olympus", "no time zone 'Mars/Olympus'"),
    ],
)
def test_a_line_that_is_wrong_or_never_fires_is_refused_in_a_sentence(cron, timezone, message):
    with pytest.raises(UsageError, match=message):
        cron_trigger(cron, timezone)


def test_names_are_safe_and_unknown_ones_are_refused(setting):
    with pytest.raises(UsageError, match="can't name a schedule"):
        setting.add("a b; rm")
    setting.add()
    with pytest.raises(UsageError, match="no schedule 'x'; there are nightly"):
        setting.store.remove("x")
    setting.store.remove("nightly")
    assert setting.store.schedules() == []


def test_the_entry_point_quotes_what_a_shell_would_read():
    schedule = Schedule("a", "", "UTC", "/my lake; $(date)", "a", "x: 1", "")
    assert "--lake '/my lake; $(date)'" in entrypoint(schedule)


def test_a_second_scheduler_of_the_same_file_is_refused(setting, monkeypatch):
    from apscheduler.schedulers.blocking import BlockingScheduler

    started, stop = threading.Event(), threading.Event()
    monkeypatch.setattr(BlockingScheduler, "start", lambda self: (started.set(), stop.wait(30)))
    first = threading.Thread(target=run_scheduler, args=(setting.store, setting.cluster.client))
    first.start()
    try:
        assert started.wait(30)
        with pytest.raises(UsageError, match="already keeps"):
            run_scheduler(setting.store, setting.cluster.client)
    finally:
        stop.set()
        first.join()
