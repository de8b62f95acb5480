"""What a user loses when progress, leases or proofs are read from the wrong place: vectors that never come, rows twice, a lake
that says that it is whole and is not. All through the command line, Python's `Lake`, and rows; never through files."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.lake import SCHEMAS, Lake, Lease, LostLease, StoreError, lease, verify_lake
from pipelines.lake.journal import Journal
from pipelines.lake.maintenance import maintain
from pipelines.process import process
from pipelines.process.backfill import embed_lake
from pipelines.process.recipe import Recipe, Resources
from pipelines.process.verify import verify_deep
from pipelines.sources import ingest
from tests.chaos.corpus import draw_corpus
from vfm_ops.errors import VfmError

PLAIN = Recipe.model_validate({"sampling": {"fps": 2}, "shots": {"detector": "content"}})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return draw_corpus(tmp_path_factory.mktemp("drawn") / "corpus")


@pytest.fixture(scope="module")
def processed(tmp_path_factory, drawn) -> Path:
    """Pictures, clips with shots, a salvaged clip, a text in quarantine."""
    root = tmp_path_factory.mktemp("processed") / "lake"
    ingest([str(drawn / "first")], str(root))
    process(Lake.open(root), PLAIN)
    return root


@pytest.fixture
def lake(tmp_path, processed) -> Lake:
    return Lake.open(shutil.copytree(processed, tmp_path / "lake"))


def nulls(lake: Lake) -> int:
    column = next(n for n in lake.schema("frames").names if n.startswith("emb_"))
    return lake.count("frames", f"{column} IS NULL")


def test_vectors_come_for_frames_that_came_later_whatever_maintenance_did_in_between(lake, drawn, tiny_model):
    model = {"model": tiny_model, "runtime": "torch", "precision": "exact"}
    assert embed_lake(lake, model, Resources()) == lake.count("frames")
    assert nulls(lake) == 0
    ingest([str(drawn / "second")], lake.root)
    process(lake, PLAIN)
    waiting = nulls(lake)
    assert waiting > 0
    assert [(f"{waiting} rows have no vector" in p) for p in verify_lake(lake).pending] == [True]
    maintain(lake)  # merges fragments with and without the column into one, and writes the nulls down
    assert embed_lake(lake, model, Resources()) == waiting
    assert nulls(lake) == 0
    assert embed_lake(lake, model, Resources()) == 0
    assert verify_lake(lake).violations == verify_lake(lake).pending == []
    assert verify_deep(lake) == []


def test_a_picture_that_does_not_decode_is_marked_and_costs_neither_its_neighbours_nor_the_next_run(lake, tiny_model):
    broken = lake.read("frames", ["frame_id"])["frame_id"][0].as_py()
    lake.update("frames", {"jpeg": "arrow_cast('no picture', 'LargeBinary')"}, f"frame_id = '{broken}'")
    model = {"model": tiny_model, "runtime": "torch", "precision": "exact"}
    assert embed_lake(lake, model, Resources()) == lake.count("frames") - 1
    assert embed_lake(lake, model, Resources()) == 0
    assert nulls(lake) == 1
    (row,) = lake.read("frames", ["frame_id", "error"], "error IS NOT NULL").to_pylist()
    assert row["frame_id"] == broken
    assert "jpeg" in row["error"]
    assert verify_lake(lake).violations == []
    assert any(broken in v for v in verify_deep(lake))


def test_vectors_of_other_pictures_are_found_by_computing_them_again(lake, tiny_model):
    embed_lake(lake, {"model": tiny_model, "runtime": "torch", "precision": "exact"}, Resources())
    column = next(n for n in lake.schema("frames").names if n.startswith("emb_"))
    rows = lake.read("frames", [column], with_row_id=True)
    turned = pa.table({"_rowid": rows["_rowid"], column: pa.concat_arrays(rows[column].chunks)[::-1]})
    assert verify_deep(lake) == []
    for fragment in {i >> 32 for i in rows["_rowid"].to_pylist()}:
        lake.commit_columns("frames", lake.write_columns("frames", fragment, turned))
    assert any("are not those of their pictures" in v for v in verify_deep(lake))


def test_vectors_that_a_model_was_done_with_and_that_are_gone_are_found(lake, tiny_model):
    embed_lake(lake, {"model": tiny_model, "runtime": "torch", "precision": "exact"}, Resources())
    column = next(n for n in lake.schema("frames").names if n.startswith("emb_"))
    lake.update("frames", {column: "NULL"}, "frame_index >= 0")
    (said,) = verify_lake(lake).violations
    assert f"{lake.count('frames')} rows have no vector in {column}, though op {column} is done" in said
    lake.change("frames", "drop a column of", lambda dataset: dataset.drop_columns([column]))
    (said,) = verify_lake(lake).violations
    assert f"column {column} is gone" in said


def _doubled_assets(lake: Lake) -> None:
    lake.append("assets", lake.read("assets").slice(0, 3))


def _no_pictures(lake: Lake) -> None:
    lake.update("frames", {"jpeg": "NULL"}, "frame_index >= 0")


def _no_shot(lake: Lake) -> None:
    settled = set(lake.read("ledger", ["asset_id"])["asset_id"].to_pylist())  # the salvaged clip has no ledger row
    shots = lake.read("shots", ["shot_id", "asset_id"]).to_pylist()
    lake.delete("shots", "shot_id", [next(s["shot_id"] for s in shots if s["asset_id"] in settled)])


def _foreign_shot(lake: Lake) -> None:
    lake.update("frames", {"shot_id": "'nowhere:0'"}, "shot_id IS NOT NULL")


def _select(lake: Lake, *frame_ids: str) -> None:
    rows = {"selection": ["s"] * len(frame_ids), "frame_id": list(frame_ids), "kept": [True] * len(frame_ids)}
    schema = SCHEMAS["selections"]
    table = pa.table([pa.array(rows.get(f.name, [None] * len(frame_ids)), f.type) for f in schema], schema)
    lake.append("selections", table)


def _selected_twice(lake: Lake) -> None:
    frame = lake.read("frames", ["frame_id"])["frame_id"][0].as_py()
    _select(lake, frame, frame)


def _selected_nothing(lake: Lake) -> None:
    _select(lake, "nowhere:0")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_doubled_assets, "asset_id is not unique: 3 rows"),
        (_no_pictures, "rows have no jpeg"),
        (_no_shot, "its ledger row says"),
        (_foreign_shot, "refer to a shot_id that shots does not have"),
        (_selected_twice, "selections: selection and frame_id and rank is not unique"),
        (_selected_nothing, "name a frame that does not exist"),
    ],
)
def test_verify_names_the_damage(lake, damage, said):
    assert verify_lake(lake).violations == []
    damage(lake)
    assert any(said in v for v in verify_lake(lake).violations), verify_lake(lake).violations


def test_fragments_whose_files_are_gone_are_refused_before_they_make_the_table_unreadable(lake):
    rows = lake.read("shots").slice(0, 1)
    fragments = lake.write_fragments("shots", rows)
    for path in sorted(Path(lake.root, "shots.lance", "data").iterdir(), key=lambda p: p.stat().st_mtime)[-1:]:
        path.unlink()
    before = lake.count("shots")
    with pytest.raises(VfmError, match="are gone"):
        lake.commit("shots", fragments)
    assert lake.count("shots") == before


def test_a_journal_counts_only_while_what_it_names_is_there(lake):
    lake.ensure("tracks")
    fragments = lake.write_fragments(
        "tracks", pa.Table.from_pylist([{"track_id": "t", "asset_id": "a", "run_key": "r"}], SCHEMAS["tracks"])
    )
    journal = Journal(lake, "a", "r", "etag", "tracks")
    journal.save({"next_frame": 8, "fragments": fragments}, b"state")
    assert journal.load() == ({"next_frame": 8, "fragments": fragments}, b"state")
    for path in Path(lake.root, "tracks.lance", "data").iterdir():
        path.unlink()
    assert journal.load() is None


@pytest.mark.parametrize("rows", [0, 2])
def test_a_lease_that_an_older_version_left_without_its_one_row_does_not_lock_the_lake(tmp_path, rows):
    lake = Lake.create(tmp_path / "lake")
    old = pa.schema(
        [f for f in SCHEMAS["lease"] if f.name not in ("epoch", "beat", "boot_id", "pid_namespace", "clean")]
    )
    free = [{"name": "writer", "pid": 0, "pid_started": 0.0, "heartbeat": 0.0}] * rows
    lake.create_table("lease", pa.Table.from_pylist(free, old))
    with Lease(lake, "first"):
        lake.append("runs", pa.Table.from_pylist([{"run_id": "first"}], SCHEMAS["runs"]))
        with pytest.raises(VfmError, match="written by run first"):
            Lease(Lake.open(lake.root), "second").__enter__()
    with Lease(Lake.open(lake.root), "third"):
        pass


@pytest.fixture
def stalled(tmp_path, monkeypatch) -> Lake:
    """A lake whose holder's heartbeat stands still."""
    monkeypatch.setattr(lease, "EXPIRES_S", 0.2)
    first = Lake.create(tmp_path / "lake")
    first.append("assets", pa.Table.from_pylist([{"asset_id": "a", "uri": "a"}], SCHEMAS["assets"]))
    held = Lease(first, "first")
    held.__enter__()
    held._stop.set()
    held._thread.join()
    return first


@pytest.fixture
def taken(stalled, monkeypatch):
    """A lake whose holder was taken for dead: the first lease, whose heartbeat stands still, and the second."""
    first = stalled
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    second = Lake.open(first.root)
    with Lease(second, "second") as lease_of_second:
        yield first, second, lease_of_second


def test_every_kind_of_change_by_a_run_that_lost_its_lease_fails(taken):
    first, second, _ = taken
    row = pa.Table.from_pylist([{"asset_id": "b", "uri": "b"}], SCHEMAS["assets"])
    changes = [
        lambda: first.append("assets", row),
        lambda: first.delete("assets", "asset_id", ["a"]),
        lambda: first.update("assets", {"uri": "'x'"}, "asset_id = 'a'"),
        lambda: first.ensure("assets", [pa.field("extra", pa.int32())]),
        lambda: first.change("assets", "compact", lambda ds: ds.optimize.compact_files()),
        lambda: first.change("assets", "index", lambda ds: ds.create_scalar_index("asset_id", "BTREE")),
    ]
    for change in changes:
        with pytest.raises(LostLease, match="stops here"):
            change()
    assert second.read("assets", ["asset_id", "uri"]).to_pylist() == [{"asset_id": "a", "uri": "a"}]


def test_a_commit_from_a_handle_that_was_opened_before_the_takeover_fails(stalled, monkeypatch):
    """Paused between the check and the commit: the check cannot see what comes after it."""
    first = stalled

    def paused(dataset) -> None:
        with monkeypatch.context() as m:
            m.setattr(socket, "gethostname", lambda: "elsewhere")
            with Lease(Lake.open(first.root), "second"):
                pass
        dataset.delete("asset_id = 'a'")

    with pytest.raises(LostLease):
        first.change("assets", "delete from", paused)
    assert first.count("assets") == 1


def test_the_holder_that_was_given_the_lake_back_does_not_fence_and_the_one_after_a_kill_does(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    with Lease(lake, "one") as one:
        assert one.epoch == 0
    with Lease(lake, "two") as two:
        assert two.epoch == 0
    with pytest.raises(RuntimeError), Lease(lake, "three"):
        raise RuntimeError("killed, nearly")
    with Lease(lake, "four") as four:
        assert four.epoch == 1


def test_a_store_that_fails_for_a_while_is_waited_for_and_one_that_does_not_come_back_is_said(tmp_path, monkeypatch):
    lake = Lake.create(tmp_path / "lake")
    monkeypatch.setattr(Lake, "_waits", lambda self: (0.0, 0.0, 0.0))
    tries = []

    def action(number: int) -> str:
        tries.append(number)
        if number < 2:
            raise OSError("503 Slow Down")
        return "done"

    assert lake.attempt("write", action) == "done"
    assert tries == [0, 1, 2]

    def never(number: int) -> None:
        raise OSError("403 Forbidden")

    with pytest.raises(StoreError, match=r"cannot write of .*403"):
        lake.attempt("write", never)
