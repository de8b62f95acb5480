"""Ingest: what a user would lose if the assets table did not follow the sources."""

from __future__ import annotations

import errno
import os
import tempfile
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipelines.sources.run as module
from pipelines.lake import SCHEMAS, Lake, assets, maintenance, make_asset_id
from pipelines.lake.assets import AssetIndex
from pipelines.lake.lease import Lease
from pipelines.sources import ListingOptions, ingest
from tests.pipelines.sources.conftest import encoded, write_tar
from vfm_ops.errors import UsageError


@pytest.fixture
def tree(tmp_path):
    """A folder of ten images in two sub-folders."""
    for i in range(10):
        path = tmp_path / "tree" / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(shade=i))
    return tmp_path / "tree"


def settle(lake: Lake, asset_ids: list[str], table: str) -> None:
    """Rows in the ledger or quarantine, as a run leaves them."""
    rows = [{"asset_id": i, "run_key": "r.1", "recipe": "r", "attempt": 1} for i in asset_ids]
    lake.append(table, pa.Table.from_pylist(rows, SCHEMAS[table]))


def test_every_file_is_one_asset_with_its_id_and_time(tree, tmp_path):
    report = ingest([str(tree)], str(tmp_path / "lake"))
    rows = Lake.open(tmp_path / "lake").read("assets").to_pylist()
    assert report.added == 10
    assert {r["asset_id"] for r in rows} == {make_asset_id(str(p)) for p in tree.rglob("*.jpg")}
    assert all(abs((datetime.now(UTC) - r["discovered_at"]).total_seconds()) < 300 for r in rows)


def test_a_second_ingest_adds_only_what_is_new(tree, tmp_path):
    lake = str(tmp_path / "lake")
    ingest([str(tree)], lake)
    (tree / "0" / "late.png").write_bytes(encoded("PNG"))
    report = ingest([str(tree)], lake)
    assert (report.added, report.changed, report.unchanged) == (1, 0, 10)
    ids = Lake.open(lake).read("assets")["asset_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 11


def test_a_changed_file_is_pending_again_and_only_that_one(tree, tmp_path):
    root = str(tmp_path / "lake")
    ingest([str(tree)], root)
    lake = Lake.open(root)
    ids = {os.path.basename(r["uri"]): r["asset_id"] for r in lake.read("assets").to_pylist()}
    settle(lake, [ids[f"{i}.jpg"] for i in range(8)], "ledger")
    settle(lake, [ids["8.jpg"], ids["9.jpg"]], "quarantine")
    for name in ("0/2.jpg", "1/9.jpg"):
        (tree / name).write_bytes(encoded(shade=99) + b"more")
    report = ingest([str(tree)], root)
    assert (report.added, report.changed, report.unchanged) == (0, 2, 8)
    assert set(lake.read("ledger")["asset_id"].to_pylist()) == {ids[f"{i}.jpg"] for i in (0, 1, 3, 4, 5, 6, 7)}
    assert lake.read("quarantine")["asset_id"].to_pylist() == [ids["8.jpg"]]
    sizes = {r["uri"]: r["size"] for r in lake.read("assets").to_pylist()}
    assert sizes == {str(p): p.stat().st_size for p in tree.rglob("*.jpg")}
    assert ingest([str(tree)], root).changed == 0


def test_a_rewritten_archive_replaces_its_members(tmp_path):
    lake, shard = str(tmp_path / "lake"), tmp_path / "a.tar"
    write_tar(shard, {"1.jpg": b"a" * 10, "2.jpg": b"b" * 10})
    ingest([str(shard)], lake)
    write_tar(shard, {"1.jpg": b"a" * 10, "2.jpg": b"c" * 2000, "3.jpg": b"d"})
    report = ingest([str(shard)], lake)
    assert (report.added, report.changed) == (1, 2)
    rows = {r["member"]: r for r in Lake.open(lake).read("assets").to_pylist()}
    data = shard.read_bytes()
    assert data[rows["2.jpg"]["offset"] :][: rows["2.jpg"]["length"]] == b"c" * 2000


def test_overlapping_sources_name_a_file_once(tree, tmp_path):
    report = ingest([str(tree), str(tree / "0"), str(tree / "1" / "1.jpg")], str(tmp_path / "lake"))
    assert (report.added, report.repeated) == (10, 6)
    assert Lake.open(tmp_path / "lake").count("assets") == 10


def test_rows_are_committed_while_the_listing_goes_on(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COMMIT_ROWS", 3)
    monkeypatch.setattr(module, "LOOK_ROWS", 3)
    lake, seen = str(tmp_path / "lake"), []
    files = [str(p) for p in tree.rglob("*.jpg")]
    (tmp_path / "list.txt").write_text("\n".join(files))
    monkeypatch.setattr("pipelines.sources.lookup._CHUNK", 2)
    ingest([], lake, lists=[str(tmp_path / "list.txt")], progress=lambda r: seen.append(r.added))
    assert seen == sorted(seen)
    assert 0 < seen[2] < 10
    assert seen[-1] == 10


def test_a_listing_that_breaks_keeps_what_was_committed_and_the_next_one_completes_it(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COMMIT_ROWS", 1)
    lake = str(tmp_path / "lake")

    def break_off(report):
        if report.added:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([str(tree)], lake, progress=break_off)
    assert Lake.open(lake).count("assets") > 0
    assert ingest([str(tree)], lake).assets == 10
    assert Lake.open(lake).count("assets") == 10


@pytest.mark.parametrize("source", ["missing", "empty", "texts", "list.txt@"])
def test_a_source_of_no_use_writes_nothing(tree, tmp_path, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    (tmp_path / "list.txt").write_text("gone.jpg\n")
    named = f"@{tmp_path}/list.txt" if source.endswith("@") else str(tmp_path / source)
    with pytest.raises(UsageError):
        ingest([str(tree), named], str(tmp_path / "lake"))
    assert not (tmp_path / "lake").exists()


def test_a_lake_that_another_run_holds_is_refused_and_left_alone(tree, tmp_path):
    lake = Lake.create(tmp_path / "lake")
    with Lease(lake, "run-7"), pytest.raises(UsageError, match="run-7"):
        ingest([str(tree)], str(tmp_path / "lake"))
    assert lake.count("assets") == 0


def test_captions_labels_and_unreadable_ones_reach_the_report(tree, tmp_path):
    (tree / "0" / "0.txt").write_text("the first")
    (tree / "bad.tar").write_bytes(b"no tar" * 200)
    report = ingest([str(tree)], str(tmp_path / "lake"), options=ListingOptions(captions="sidecar", labels="folder"))
    rows = {os.path.basename(r["uri"]): r for r in Lake.open(tmp_path / "lake").read("assets").to_pylist()}
    assert (rows["0.jpg"]["caption"], rows["3.jpg"]["label"]) == ("the first", "1")
    facts = report.as_dict()
    assert (facts["unreadable"], facts["skipped"], facts["added"]) == (1, {".txt": 1}, 10)


@pytest.fixture(params=[None, 8], ids=["in memory", "in files"])
def spilled(request):
    """With runs of eight ids put into files, and as it is."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            patch.setattr(assets, "SPILLED", request.param)
        yield request.param


@given(st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=12))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_index_of_ids_is_a_dictionary(spilled, batches):
    index, oracle = AssetIndex(), {}
    for i, batch in enumerate(batches):
        fresh = sorted({k for k in batch if k not in oracle})
        oracle.update(dict.fromkeys(fresh, i + 1))
        keys = np.array(fresh, np.uint64)
        index.add(keys, keys * 7, np.full(len(fresh), i + 1))
    if spilled:
        assert index.nbytes < 24 * 2 * spilled
    keys = np.random.default_rng(0).permutation(70).astype(np.uint64)
    found, etags = index.find(keys, keys * 7)
    assert found.tolist() == [k in oracle for k in keys.tolist()]
    assert etags.tolist() == [oracle.get(k, 0) for k in keys.tolist()]
    assert not index.find(keys, keys * 7 + np.uint64(1))[0].any()
    assert len(index) == len(oracle)


def test_an_ingest_whose_ids_lie_in_files_adds_nothing_twice(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "SPILLED", 4)
    first = ingest([str(tree), str(tree)], str(tmp_path / "lake"))
    (tree / "0" / "0.jpg").write_bytes(b"another picture")
    again = ingest([str(tree)], str(tmp_path / "lake"))
    assert (first.added, first.repeated) == (10, 10)
    assert (again.added, again.changed, again.unchanged) == (0, 1, 9)


def test_many_commits_leave_few_fragments(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COMMIT_ROWS", 1)
    monkeypatch.setattr(module, "LOOK_ROWS", 1)
    monkeypatch.setattr(maintenance, "COMPACT_AFTER", 4)
    monkeypatch.setattr("pipelines.sources.lookup._CHUNK", 1)
    (tmp_path / "list.txt").write_text("\n".join(str(p) for p in tree.rglob("*.jpg")))
    assert ingest([], tmp_path / "lake", lists=[str(tmp_path / "list.txt")]).commits == 10
    dataset = Lake.open(tmp_path / "lake").dataset("assets")
    assert (dataset.count_rows(), len(dataset.get_fragments())) == (10, 3)


def test_no_room_for_the_files_is_a_sentence(tree, tmp_path, monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assets, "SPILLED", 4)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(
        UsageError, match="No space left on device; free some space there, or name another folder in TMPDIR"
    ):
        ingest([str(tree)], str(tmp_path / "lake"))


def test_the_index_costs_24_bytes_an_asset():
    index = AssetIndex()
    random = np.random.default_rng(0)
    for _ in range(40):
        index.add(*(random.integers(0, 2**62, 5000).astype(t) for t in (np.uint64, np.uint64, np.int64)))
    assert index.nbytes == 24 * 200_000
    assert len(index._runs) <= 10
