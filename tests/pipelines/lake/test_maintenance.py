"""Compaction and indices: searches stay right while tables change, and stay fast when they grow."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipelines.lake import SCHEMAS, Lake, Lease, embedding_column, embedding_field, maintenance
from pipelines.lake.indices import KINDS, Trial, index_scalar, index_vectors, ray_is_running, try_kinds
from pipelines.lake.maintenance import RunningCompaction, compact_table, forget_versions, maintain
from pipelines.lake.query import exact_scores, nearest_frames
from vfm_ops.errors import UsageError

DIM = 16
SPEC = "timm:tiny"
COLUMN = embedding_column(SPEC)
FIELD = embedding_field(SPEC, DIM, {"digest": "d"})


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Unit float16 vectors around forty centres."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, DIM))
    x = centres[random.integers(0, 40, count)] + 0.5 * random.normal(size=(count, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def add_frames(lake: Lake, vectors: np.ndarray, first: int = 0, fragments: int = 4, nulls: int = 0) -> None:
    """Adds frames `f0`, `f1`, ... of one asset each, with vectors; the last `nulls` rows have none."""
    lake.ensure("frames", [FIELD])
    ids = [f"f{first + i}" for i in range(len(vectors) + nulls)]
    cells = pa.array([*vectors, *[None] * nulls], FIELD.type)
    rows = pa.table({"frame_id": ids, "asset_id": [f"a{i}" for i in ids], "run_key": ["r.1"] * len(ids), COLUMN: cells})
    schema = lake.schema("frames")
    columns = [rows[f.name] if f.name in rows.schema.names else pa.nulls(len(ids), f.type) for f in schema]
    full = pa.table(columns, schema)
    step = -(-len(ids) // fragments)
    for start in range(0, len(ids), step):
        lake.commit("frames", lake.write_fragments("frames", full.slice(start, step)))


@pytest.fixture
def lake(tmp_path) -> Lake:
    """3,000 frames in four fragments."""
    lake = Lake.create(tmp_path / "lake")
    add_frames(lake, clustered(3000), nulls=20)
    return lake


def recall_at_10(lake: Lake, queries: np.ndarray) -> float:
    """Against an exact scan, by score."""
    exact = exact_scores(lake.dataset("frames"), COLUMN, queries.astype(np.float32), 10)[:, -1]
    hits = 0
    for query, least in zip(queries, exact):
        found = nearest_frames(lake, COLUMN, query, 10, None, ["frame_id"])
        hits += int((found["score"].to_numpy() >= least - 1e-3).sum())
    return hits / (10 * len(queries))


def test_the_exact_scan_is_numpy(lake):
    queries = clustered(5, seed=1).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    oracle = -np.sort(-(queries.astype(np.float64) @ clustered(3000).astype(np.float64).T), axis=1)[:, :10]
    np.testing.assert_allclose(exact_scores(lake.dataset("frames"), COLUMN, queries, 10), oracle, atol=2e-3)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "auto"])
def test_every_kind_of_index_reaches_its_recall_with_the_probing_it_stored(lake, kind):
    report = index_vectors(lake, COLUMN, kind)
    assert (report.kind, report.built, report.rows) == (kind, "new", 3000)
    assert report.recall >= 0.95
    assert json.loads(lake.dataset("frames").config()[f"vfm.search.{COLUMN}"]) == report.probing
    assert recall_at_10(lake, clustered(20, seed=3)) >= 0.95


def test_rows_appended_after_the_index_are_found_and_then_indexed(lake):
    index_vectors(lake, COLUMN, "ivf_flat")
    late = clustered(40, seed=7)
    add_frames(lake, late, first=5000, fragments=1)

    def best(i: int) -> str:
        return nearest_frames(lake, COLUMN, late[i], 1, None, ["frame_id"])["frame_id"][0].as_py()

    assert [best(i) for i in (0, 20, 39)] == ["f5000", "f5020", "f5039"]
    assert index_vectors(lake, COLUMN, "ivf_flat").built == "extended"
    assert lake.dataset("frames").stats.index_stats(f"{COLUMN}_idx")["num_unindexed_rows"] == 0
    assert [best(i) for i in (0, 20, 39)] == ["f5000", "f5020", "f5039"]
    assert index_vectors(lake, COLUMN, "ivf_flat").built == "current"


def test_deleted_and_compacted_rows_leave_the_index_right(lake):
    index_vectors(lake, COLUMN, "ivf_flat")
    lake.delete("frames", "frame_id", [f"f{i}" for i in range(0, 3000, 2)])
    before, after = compact_table(lake, "frames")
    assert (before, after) == (4, 1)
    found = nearest_frames(lake, COLUMN, clustered(3000)[501], 5, None, ["frame_id"])["frame_id"].to_pylist()
    assert found[0] == "f501"
    assert all(int(f[1:]) % 2 for f in found)


def test_what_a_run_appends_is_merged_as_it_goes_but_for_pictures(lake, monkeypatch):
    monkeypatch.setattr(maintenance, "COMPACT_AFTER", 8)
    compaction = RunningCompaction(lake)
    for i in range(40):
        lake.append("assets", pa.Table.from_pylist([{"asset_id": f"a{i}", "uri": f"/x/{i}.jpg"}], SCHEMAS["assets"]))
        compaction.appended("assets")
        assert len(lake.dataset("assets").get_fragments()) <= 9
    assert lake.read("assets", ["asset_id"])["asset_id"].to_pylist() == [f"a{i}" for i in range(40)]
    lake.ensure("frames")
    row = {"frame_id": "p", "asset_id": "p", "run_key": "r.1", "jpeg": bytes(50_000)}
    before = len(lake.dataset("frames").get_fragments())
    for i in range(20):
        lake.append("frames", pa.Table.from_pylist([row | {"frame_id": f"p{i}"}], SCHEMAS["frames"]))
        compaction.appended("frames")
    assert len(lake.dataset("frames").get_fragments()) == before + 20


def test_maintenance_keeps_every_row_and_makes_every_index(lake):
    rows = [{"asset_id": f"a{i}", "uri": f"/x/{i}.jpg"} for i in range(30)]
    for start in range(0, 30, 10):
        lake.append("assets", pa.Table.from_pylist(rows[start : start + 10], SCHEMAS["assets"]))
    before = {t: sorted(map(str, lake.read(t).to_pylist())) for t in ("assets", "frames")}
    report = maintain(lake, keep=timedelta(0))
    assert {t: sorted(map(str, lake.read(t).to_pylist())) for t in ("assets", "frames")} == before
    assert report.fragments["assets"] == (3, 1)
    assert report.freed_bytes > 0
    made = {(i.table, i.column, i.built) for i in report.indices}
    assert made == {
        ("assets", "asset_id", "new"),
        ("frames", "frame_id", "new"),
        ("frames", "asset_id", "new"),
        ("frames", COLUMN, "exact"),
    }
    assert {i.built for i in maintain(lake).indices} == {"current", "exact"}
    assert json.loads(json.dumps(report.as_dict()))["fragments"]["assets"] == [3, 1]


def test_versions_younger_than_asked_are_kept(lake):
    version = lake.dataset("frames").version
    lake.delete("frames", "frame_id", ["f0"])
    forget_versions(lake, "frames", timedelta(days=1))
    assert lake.dataset("frames", version=version).count_rows() == 3020
    forget_versions(lake, "frames", timedelta(0))
    assert lake.dataset("frames").count_rows() == 3019
    assert len(lake.dataset("frames").versions()) == 1


def test_the_kind_is_the_fastest_that_reaches_the_recall_and_is_chosen_again_as_the_lake_grows(lake, monkeypatch):
    assert index_vectors(lake, COLUMN).built == "exact", "few are scanned"
    monkeypatch.setattr("pipelines.lake.indices.EXACT_ROWS", 1000)
    tried = try_kinds(lake.dataset("frames"), COLUMN, 0.98)
    assert [t.kind for t in tried] == ["exact", *KINDS[1:]]
    assert tried[0].recall == 1.0
    assert all(t.p50_ms > 0 and 0.5 < t.recall <= 1 for t in tried)

    def at_speeds(**p50_ms: float):
        return lambda *_: [Trial(kind, 1.0 if kind != "ivf_pq" else 0.9, p50_ms.get(kind, 9.0), 0.0) for kind in speeds]

    speeds = ["exact", *KINDS[1:]]
    monkeypatch.setattr("pipelines.lake.indices.try_kinds", at_speeds(ivf_pq=0.5, ivf_sq=1.0, exact=5.0))
    report = index_vectors(lake, COLUMN)
    assert (report.kind, report.built) == ("ivf_sq", "new"), "ivf_pq misses the recall"
    monkeypatch.setattr("pipelines.lake.indices.try_kinds", at_speeds(ivf_flat=1.0, exact=5.0))
    add_frames(lake, clustered(3000, seed=5), first=10_000)
    assert (index_vectors(lake, COLUMN).kind, index_vectors(lake, COLUMN).built) == ("ivf_sq", "current")
    add_frames(lake, clustered(8000, seed=6), first=20_000)
    assert (index_vectors(lake, COLUMN).kind, index_vectors(lake, COLUMN).built) == ("ivf_flat", "current")
    monkeypatch.setattr("pipelines.lake.indices.try_kinds", at_speeds(exact=0.1))
    fresh = Lake.create(f"{lake.root}2")
    add_frames(fresh, clustered(3000))
    assert index_vectors(fresh, COLUMN).built == "exact", "a scan that is as fast needs no index"


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq", "ivf_hnsw_sq"])
@pytest.mark.parametrize("where", ["length(frame_id) = 2", "frame_id LIKE 'f1%'", "frame_id LIKE '%7'"])
def test_a_filter_does_not_ruin_the_recall(lake, kind, where, monkeypatch):
    monkeypatch.setattr("pipelines.lake.query.FEW_ROWS", 0)
    index_vectors(lake, COLUMN, kind)
    found = total = 0
    for vector in clustered(30, seed=11).astype(np.float32):
        exact, hits = (nearest_frames(lake, COLUMN, vector, 10, where, ["frame_id"], exact=e) for e in (True, False))
        least = exact["score"].to_numpy().min() - 1e-3
        found += int((hits["score"].to_numpy() >= least).sum())
        total += exact.num_rows
    assert found >= 0.95 * total


def test_wrong_kinds_columns_and_busy_lakes_are_refused(lake):
    with pytest.raises(UsageError, match="known: auto, ivf_flat"):
        maintain(lake, kind="hash")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"it has {COLUMN}"):
        maintain(lake, columns=["emb_other"])
    with Lease(lake, "run-3"), pytest.raises(UsageError, match="run-3"):
        maintain(lake)


def test_a_running_ray_does_the_same_work(lake, ray_local, monkeypatch):
    monkeypatch.setattr("pipelines.lake.indices.DISTRIBUTED_BYTES", 0)
    rows = pa.Table.from_pylist([{"asset_id": f"a{i}", "uri": f"/x/{i}.jpg"} for i in range(20)], SCHEMAS["assets"])
    lake.append("assets", rows.slice(0, 10))
    lake.append("assets", rows.slice(10))
    assert ray_is_running()
    assert compact_table(lake, "assets") == (2, 1)
    assert lake.read("assets").sort_by("uri").equals(rows.sort_by("uri"))
    assert index_scalar(lake, "frames", "asset_id").built == "new"
    assert lake.read("frames", ["frame_id"], filter="asset_id = 'af17'")["frame_id"].to_pylist() == ["f17"]
    assert index_vectors(lake, COLUMN, "ivf_flat").recall >= 0.95
    assert recall_at_10(lake, clustered(20, seed=3)) >= 0.95
