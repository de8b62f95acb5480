"""What a user loses when coverage is folded wrongly: values that are computed twice, or values that never come."""

from __future__ import annotations

import random
import shutil
import socket
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.lake import SCHEMAS, Lake, Lease, LostLease, coverage, lease
from pipelines.lake.coverage import FOLD_SURPLUS, SEGMENT, AssetSet, cover, covered, fold_coverage, uncover
from pipelines.lake.maintenance import maintain
from tests.chaos.commands import DIED, Run, run
from tests.conftest import chaos_count

KEYS = ("one", "two", "three")
NUMBERS = st.lists(st.sampled_from([0, 1, 7, 8, SEGMENT - 1, SEGMENT, SEGMENT + 9, 5 * SEGMENT + 3]), max_size=5)
# Keys that are covered; none: the assets are taken back from every key. "fold": the table is folded.
STEPS = st.lists(st.one_of(st.just("fold"), st.tuples(st.sets(st.sampled_from(KEYS)), NUMBERS)), max_size=9)


def read(lake: Lake) -> dict[str, set[int]]:
    return {key: set(assets.numbers().tolist()) for key, assets in covered(lake, KEYS).items()}


def history(lake: Lake, commits: int = 12) -> dict[str, set[int]]:
    """Commits of two keys, some taken back and some of those covered again. Returns what is covered."""
    want: dict[str, set[int]] = {key: set() for key in KEYS}
    rng = np.random.default_rng(0)
    for number in range(commits):
        some = rng.integers(0, 3 * SEGMENT, 40)
        if number % 3 == 2:
            taken = np.concatenate([some, sorted(want["one"])[::2]]).astype(np.int64)
            uncover(lake, AssetSet(taken))
            want = {key: assets - set(taken.tolist()) for key, assets in want.items()}
        else:
            cover(lake, {"one": "op1", "two": "op2"}, AssetSet(some), "run")
            want = {key: assets | (set(some.tolist()) if key != "three" else set()) for key, assets in want.items()}
    return want


@settings(max_examples=25)
@given(steps=STEPS)
def test_a_fold_changes_nothing_of_what_is_covered(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("folded") / "lake"
    lake = Lake.create(root)
    want: dict[str, set[int]] = {key: set() for key in KEYS}
    for step in [*steps, "fold"]:
        if step == "fold":
            before = read(lake)
            fold_coverage(lake)
            assert read(lake) == before == want
            pairs = {(key, number // SEGMENT) for key in KEYS for number in want[key]}
            assert lake.count("coverage") == len(pairs)
        elif step[0]:
            cover(lake, {key: f"op {key}" for key in step[0]}, AssetSet(step[1]), "run")
            want = {key: assets | (set(step[1]) if key in step[0] else set()) for key, assets in want.items()}
        else:
            uncover(lake, AssetSet(step[1]))
            want = {key: assets - set(step[1]) for key, assets in want.items()}
    rows = lake.read("coverage", ["key", "op"]).to_pylist()
    assert all(row["op"] == f"op {row['key']}" for row in rows)
    shutil.rmtree(root)


def test_a_fold_waits_until_it_is_worth_a_commit(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    assert fold_coverage(lake) == 0
    for number in range(5):
        cover(lake, {"one": "op"}, AssetSet([number]), "run")
    version = lake.table("coverage").version
    assert fold_coverage(lake, surplus=5) == 0
    assert lake.table("coverage").version == version
    assert fold_coverage(lake, surplus=4) == 4
    assert fold_coverage(lake) == 0
    assert lake.table("coverage").version == version + 1


def test_a_reader_that_opened_the_table_before_a_fold_goes_on_with_what_it_saw(tmp_path, monkeypatch):
    lake = Lake.create(tmp_path / "lake")
    want = history(lake)
    opened = lake.table("coverage")
    fold_coverage(lake)
    with monkeypatch.context() as m:
        m.setattr(Lake, "dataset", lambda self, *rest: opened)
        assert read(lake) == want
    assert read(lake) == want


def test_covered_reads_the_table_once_for_all_keys(tmp_path, monkeypatch):
    lake = Lake.create(tmp_path / "lake")
    want, scans, scan = history(lake), [], Lake.scan
    monkeypatch.setattr(Lake, "scan", lambda self, *rest, **options: scans.append(rest) or scan(self, *rest, **options))
    assert read(lake) == want
    assert len(scans) == 1


def test_a_fold_of_a_run_that_lost_the_lake_undoes_nothing_that_its_successor_took_back(tmp_path, monkeypatch):
    """Paused between reading and committing, while another run takes the lake and takes assets back."""
    monkeypatch.setattr(lease, "EXPIRES_S", 0.2)
    first = Lake.create(tmp_path / "lake")
    want = history(first)
    held = Lease(first, "first")
    held.__enter__()
    held._stop.set()
    held._thread.join()
    taken = AssetSet(sorted(want["one"]))
    commit = coverage.commit

    def paused(*args):
        with monkeypatch.context() as m:
            m.setattr(socket, "gethostname", lambda: "elsewhere")
            m.setattr(coverage, "commit", commit)
            second = Lake.open(first.root)
            with Lease(second, "second"):
                uncover(second, taken)
        return commit(*args)

    monkeypatch.setattr(coverage, "commit", paused)
    with pytest.raises(LostLease):
        fold_coverage(first)
    assert read(first) == {key: assets - want["one"] for key, assets in want.items()}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_fold_that_is_killed_at_any_write_loses_nothing(tmp_path, monkeypatch, after):
    want = history(Lake.create(tmp_path / "start"))
    attempt, at = Lake.attempt, 0
    while True:
        lake = Lake.open(shutil.copytree(tmp_path / "start", tmp_path / f"killed{at}"))
        writes = iter(range(100))

        def killed(self, what, action, writes=writes, at=at):
            mine = next(writes) == at
            if mine and not after:
                raise KeyboardInterrupt
            result = attempt(self, what, action)
            if mine:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as m, suppress(KeyboardInterrupt):
            m.setattr(Lake, "attempt", killed)
            fold_coverage(lake)
            break
        assert read(lake) == want
        fold_coverage(lake)
        assert read(lake) == want
        at += 1
    assert at == 2  # the data file, and the commit


@pytest.mark.chaos
def test_index_that_is_killed_at_any_write_loses_nothing(tmp_path):
    calm = Lake.create(tmp_path / "calm")
    want = history(calm, 6)
    shutil.copytree(calm.root, tmp_path / "start")
    folded = 2 * 3  # keys and segments
    assert calm.count("coverage") > folded
    code, writes = run(Run(("index", "--lake", calm.root)))
    assert code == 0
    assert calm.count("coverage") == folded
    every = [(at, when) for at in range(1, writes + 1) for when in ("before", "after")]
    for at, when in random.Random(0).sample(every, chaos_count(4, len(every))):
        lake = Lake.open(shutil.copytree(tmp_path / "start", tmp_path / f"{when}{at}"))
        assert run(Run(("index", "--lake", lake.root), at=at, when=when))[0] == DIED
        assert read(lake) == want
        assert run(Run(("index", "--lake", lake.root)))[0] == 0
        assert read(lake) == want
        assert lake.count("coverage") == folded


def test_maintenance_folds_what_compaction_might_put_in_another_order(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    want = history(lake)
    fragments = len(lake.table("coverage").get_fragments())
    report = maintain(lake)
    assert report.fragments["coverage"] == (fragments, 1)
    assert read(lake) == want
    assert {r["key"] for r in lake.read("coverage", ["key"]).to_pylist()} == {"one", "two"}


def test_commits_of_a_long_run_fold_into_a_row_for_each_key_and_segment(tmp_path):
    """Two thousand commits of 100 assets, four keys each."""
    lake = Lake.create(tmp_path / "lake")
    keys = {f"key{number}": f"op{number}" for number in range(4)}
    rows = []
    for number in range(2000):
        done = AssetSet(np.arange(100 * number, 100 * number + 100))
        rows += coverage._rows(dict.fromkeys(keys, done), keys, "run")
    lake.append("coverage", pa.Table.from_pylist(rows, SCHEMAS["coverage"]))
    assert lake.count("coverage") >= 8000
    fold_coverage(lake, "run", FOLD_SURPLUS)
    assert lake.count("coverage") == 4 * (200_000 // SEGMENT + 1)
    for assets in covered(lake, list(keys)).values():
        assert np.array_equal(assets.numbers(), np.arange(200_000))
