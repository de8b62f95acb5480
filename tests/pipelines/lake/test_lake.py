"""What a user loses if the lake's guarantees fail: rows twice, rows gone, two writers, a lake that can't be opened."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipelines.lake import (
    SCHEMAS,
    Lake,
    Lease,
    PendingAssets,
    Work,
    forget_replaced,
    make_asset_id,
    sweep,
    verify_lake,
)
from pipelines.lake.numbers import number_assets
from vfm_ops.errors import UsageError


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake.create(tmp_path / "lake")


def assets(*names: str) -> pa.Table:
    rows = [{"asset_id": make_asset_id(n), "uri": n, "media_type": "image", "size": 1, "etag": "e"} for n in names]
    return pa.Table.from_pylist(rows, SCHEMAS["assets"])


def frames(name: str, count: int, run_key: str = "r.1") -> pa.Table:
    owner = make_asset_id(name)
    rows = [
        {"frame_id": f"{owner}:{i}", "asset_id": owner, "run_key": run_key, "frame_index": i, "jpeg": b"x"}
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, SCHEMAS["frames"])


def settle(lake: Lake, name: str, count: int, run_key: str = "r.1") -> pa.Table:
    recipe, attempt = run_key.split(".")
    row = {
        "asset_id": make_asset_id(name),
        "run_key": run_key,
        "recipe": recipe,
        "attempt": int(attempt),
        "frames": count,
    }
    row |= {"shots": 0, "detections": 0, "tracks": 0, "finished_at": datetime.now(UTC)}
    table = pa.Table.from_pylist([row], SCHEMAS["ledger"])
    lake.append("ledger", table)
    return table


def test_a_commit_tried_twice_keeps_rows_once(lake, monkeypatch):
    """An object store may commit and still report a failure; the second try must see that the rows are in."""
    import lance

    lake.ensure("frames")
    fragments = lake.write_fragments("frames", frames("a", 3))
    real = lance.LanceDataset.commit
    calls = []

    def commit_then_fail(*args, **kwargs):
        calls.append(1)
        result = real(*args, **kwargs)
        if len(calls) == 1:
            raise OSError("timeout")
        return result

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(commit_then_fail))
    lake.commit("frames", fragments)
    assert lake.count("frames") == 3
    assert len(calls) == 1


def test_uncommitted_fragments_are_invisible(lake):
    lake.ensure("frames")
    lake.write_fragments("frames", frames("a", 3))
    assert lake.count("frames") == 0


def test_a_later_column_leaves_the_old_rows_null_and_fills_without_touching_others(lake):
    field = pa.field("emb_x", pa.list_(pa.float16(), 2))
    lake.append("frames", frames("a", 2))
    lake.ensure("frames", [field])
    assert lake.read("frames", ["emb_x"])["emb_x"].null_count == 2
    before = {f.path for fragment in lake.dataset("frames").get_fragments() for f in fragment.data_files()}
    rows = lake.read("frames", ["frame_id"], with_row_id=True)
    new = pa.table({"_rowid": rows["_rowid"], "emb_x": pa.array([[1, 2], [3, 4]], field.type)})
    assert list(lake.unfilled("frames", "emb_x").values()) == [2]
    (fragment,) = lake.unfilled("frames", "emb_x")
    lake.commit_columns("frames", lake.write_columns("frames", fragment, new))
    assert lake.unfilled("frames", "emb_x") == {}
    assert lake.read("frames", ["emb_x"])["emb_x"].to_pylist() == [[1, 2], [3, 4]]
    after = {f.path for fragment in lake.dataset("frames").get_fragments() for f in fragment.data_files()}
    assert before < after


def test_sweep_removes_rows_that_nobody_settled_and_keeps_the_others(lake):
    lake.append("frames", frames("a", 3))
    lake.append("frames", frames("b", 2))
    lake.append("frames", frames("a", 3, "other.1"))
    settle(lake, "a", 3)
    assert sweep(lake) == {"frames": 5}
    assert lake.read("frames", ["run_key"])["run_key"].to_pylist() == ["r.1"] * 3
    assert sweep(lake) == {}


def test_sweep_after_a_kill_between_commit_and_replacement_keeps_the_newer_result(lake):
    lake.append("frames", frames("a", 3, "old.1"))
    settle(lake, "a", 3, "old.1")
    lake.append("frames", frames("a", 2, "new.1"))
    settle(lake, "a", 2, "new.1")
    sweep(lake)
    assert lake.read("frames", ["run_key"])["run_key"].to_pylist() == ["new.1"] * 2
    assert lake.read("ledger", ["run_key"])["run_key"].to_pylist() == ["new.1"]


def test_a_changed_recipe_replaces_what_it_re_ran(lake):
    lake.append("assets", assets("a", "b"))
    for name in "ab":
        lake.append("frames", frames(name, 3, "old.1"))
        settle(lake, name, 3, "old.1")
    lake.append("frames", frames("a", 2, "new.1"))
    forget_replaced(lake, settle(lake, "a", 2, "new.1"))
    assert sorted(lake.read("frames", ["run_key"])["run_key"].to_pylist()) == ["new.1"] * 2 + ["old.1"] * 3
    number_assets(lake)
    waiting = PendingAssets(lake, Work("new"))
    pending = [i for batch in waiting for i in batch["asset_id"].to_pylist()]
    assert len(waiting) == len(pending)
    assert pending == [make_asset_id("b")]


def test_verify_accepts_a_whole_lake_and_names_every_kind_of_damage(lake):
    for table in SCHEMAS:
        lake.ensure(table)
    lake.append("assets", assets("a", "b"))
    lake.append("frames", frames("a", 3))
    settle(lake, "a", 3)
    settle(lake, "b", 0)
    assert verify_lake(lake).violations == []
    lake.append("assets", assets("c"))
    lake.append("frames", frames("b", 1))
    lake.append("frames", frames("a", 1))
    text = " ".join(verify_lake(lake).violations)
    assert "1 assets are pending" in text
    assert "has 1 rows of r.1, its ledger row says 0" in text
    assert "frame_id is not unique" in text


def test_the_second_writer_is_refused_and_told_who_the_first_is(lake):
    code = "import sys; from pipelines.lake import Lake, Lease\nwith Lease(Lake(sys.argv[1]), 'second'): pass"
    with Lease(lake, "first"):
        other = subprocess.run([sys.executable, "-c", code, lake.root], capture_output=True, text=True)
        assert other.returncode != 0
        assert "written by run first" in other.stderr
    assert subprocess.run([sys.executable, "-c", code, lake.root], capture_output=True).returncode == 0


def _take_and_die(root: str) -> None:
    Lease(Lake(root), "dead").__enter__()
    os.kill(os.getpid(), 9)


def test_the_lease_of_a_killed_writer_is_free_at_once(lake):
    process = multiprocessing.get_context("spawn").Process(target=_take_and_die, args=(lake.root,))
    process.start()
    process.join()
    assert lake.read("lease")["run_id"].to_pylist() == ["dead"]
    with Lease(lake, "next"):
        assert lake.read("lease")["run_id"].to_pylist() == ["next"]


def test_only_one_of_many_contenders_gets_the_lease(lake):
    with Lease(lake, "warm-up"):
        pass
    code = (
        "import sys, time; from pipelines.lake import Lake, Lease\n"
        "with Lease(Lake(sys.argv[1]), sys.argv[2]):\n  print('got it', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", code, lake.root, f"run{i}"], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        for i in range(3)
    ]
    losers = 0
    while losers < 2:
        losers = sum(c.poll() is not None for c in contenders)
    assert losers == 2
    out = [c.communicate(timeout=60)[0] for c in contenders]
    assert sorted(o.strip() for o in out) == ["", "", "got it"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: None, "is not a lake"),
        (lambda p: p.mkdir(), "is not a lake"),
        (lambda p: (p.mkdir(), (p / "lake.json").write_text("{")), "is damaged"),
        (lambda p: (p.mkdir(), (p / "lake.json").write_text(json.dumps({"format": 99}))), "upgrade"),
    ],
)
def test_what_is_not_a_lake_is_refused_in_one_sentence(tmp_path, prepare, message):
    prepare(tmp_path / "x")
    with pytest.raises(UsageError, match=message):
        Lake.open(tmp_path / "x")


def test_a_lake_is_never_made_over_other_files(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="holds other files"):
        Lake.create(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["holiday.jpg"]


def test_a_wrong_filter_is_a_usage_error(lake):
    lake.append("frames", frames("a", 1))
    with pytest.raises(UsageError, match="does not fit table frames"):
        lake.read("frames", filter="no_such_column = 1")
