"""What a user of an earlier version loses if a lake of theirs can't be read, proved or gone on with."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.lake import SCHEMAS, Lake, Lease, lease, verify_lake
from pipelines.lake.verify import KEYS
from pipelines.process import process
from pipelines.process.migrate import migrate
from pipelines.process.recipe import Recipe
from tests.lakes import expected, unpack

RECIPE = {
    "sampling": {"fps": 2},
    "shots": {"detector": "content"},
    "embed": "timm:pocket",
    "detect": {"prompts": "a red square . a blue circle .", "threshold": 0.3},
    "track": {"chunk_frames": 8},
}


@pytest.fixture
def old(tmp_path) -> Lake:
    return unpack(1, tmp_path)[0]


def test_a_lake_of_format_1_is_read(old):
    want = expected(1)
    assert old.count("assets") == len(want["assets"]) == 14
    assert old.count("selections", "selection = 'first'") == len(want["selections"])
    settled = {r["asset_id"] for r in old.read("ledger", ["asset_id"]).to_pylist()}
    assert settled < {r["asset_id"] for r in want["ledger"]}


def test_a_killed_run_of_format_1_is_gone_on_with_to_the_rows_of_a_calm_one(old, monkeypatch):
    """Its lease says nothing of boot and namespace: it is watched until it has expired, and then fenced."""
    monkeypatch.setattr(lease, "EXPIRES_S", 0.4)
    before = old.count("ledger")
    process(old, Recipe.model_validate(RECIPE))
    want = expected(1)
    assert before < old.count("ledger", "op IS NULL") == len(want["ledger"])
    for table, rows in want.items():
        key = KEYS[table][:2]
        found = {tuple(r.get(k) for k in key): r for r in old.read(table).to_pylist()}
        counted = [r for r in found.values() if table != "ledger" or r["op"] is None]
        assert len(counted) == len(rows), table
        for row in rows:
            mine = found[tuple(row.get(k) for k in key)]
            for column, value in row.items():
                if (table, column) in (("ledger", "detections"), ("ledger", "tracks")):
                    continue  # what they say is now in frames.detections_count, and in a ledger row of the op
                assert near(column, mine[column], value), (table, column, mine[column], value)
    assert verify_lake(old).violations == []
    # clip:pocket was added by a command of its own, and is not in this recipe: frames that came since lack its vector.
    assert ["clip:pocket" in p for p in verify_lake(old).pending] == [True]
    assert old.format == 2


def near(column: str, mine, value) -> bool:
    """Equal, but for what is measured on the stored picture now, and was on the decoded one."""
    if column == "phash" and value is not None:
        return (mine ^ value).bit_count() <= 4
    if column in ("quality", "box", "score") and value is not None:
        return mine == pytest.approx(value, abs={"quality": 0.5, "box": 2.5, "score": 0.1}[column], rel=0.05)
    return mine == value


def test_what_format_1_has_computed_is_not_computed_again(old, monkeypatch):
    """A migration decodes and embeds nothing; what was pending before is pending after it."""
    monkeypatch.setattr(lease, "EXPIRES_S", 0.4)
    settled = set(old.read("ledger", ["asset_id"])["asset_id"].to_pylist())
    boxes, tracks = old.count("detections"), old.count("tracks")
    recipe = Recipe.model_validate(RECIPE)
    decoded: list[str] = []

    def no_units(batches, *sizes):
        decoded.extend(i for batch in batches for i in batch["asset_id"].to_pylist())
        return iter(())

    def nothing_filled(lake, recipe, planned, *rest):
        raise AssertionError(f"{planned.title} is computed again")

    monkeypatch.setattr("pipelines.process.run.cut_units", no_units)
    monkeypatch.setattr("pipelines.process.run.second_units", lambda *a: [])
    monkeypatch.setattr("pipelines.process.backfill._fill_here", nothing_filled)
    process(old, recipe)
    assert decoded
    assert not settled & set(decoded)
    assert old.format == 2
    assert boxes >= old.count("detections", "op = 'detect'") > 0
    assert tracks >= old.count("tracks", "op = 'track'") > 0


@pytest.mark.parametrize("at_once", [1, 7, 1 << 22])
def test_boxes_are_counted_frame_by_frame_however_many_frames_are_held_at_once(old, monkeypatch, at_once):
    monkeypatch.setattr(lease, "EXPIRES_S", 0.4)
    monkeypatch.setattr("pipelines.process.migrate.FRAMES_AT_ONCE", at_once)
    want = Counter(old.read("detections", ["frame_id"])["frame_id"].to_pylist())
    with Lease(old, "migration"):
        for table in SCHEMAS:
            old.ensure(table)
        migrate(old, Recipe.model_validate(RECIPE))
    settled = set(old.read("ledger", ["asset_id"])["asset_id"].to_pylist())
    found = old.read("frames", ["asset_id", "frame_id", "detections_count"]).to_pylist()
    assert sum(want.values()) > 7
    for row in found:
        if row["asset_id"] in settled:
            assert row["detections_count"] == want[row["frame_id"]]


@pytest.mark.parametrize("step", range(1, 25, 6))
def test_a_migration_that_is_killed_goes_on(old, monkeypatch, step):
    monkeypatch.setattr(lease, "EXPIRES_S", 0.4)
    recipe = Recipe.model_validate(RECIPE)
    changes = iter(range(1000))
    real = Lake.change

    def killed(self, table, what, *rest, **options):
        if next(changes) == step:
            raise KeyboardInterrupt
        return real(self, table, what, *rest, **options)

    with Lease(old, "killed"), monkeypatch.context() as m:
        for table in SCHEMAS:
            old.ensure(table)
        m.setattr(Lake, "change", killed)
        with suppress(KeyboardInterrupt):
            migrate(old, recipe)
    calm = unpack(1, Path(old.root).parent / "calm")[0]
    for lake in (old, calm):
        with Lease(lake, "calm"):
            for table in SCHEMAS:
                lake.ensure(table)
            migrate(lake, recipe)
    assert old.format == calm.format == 2
    for table in ("assets", "ledger", "frames", "detections", "tracks"):
        assert rows(old, table) == rows(calm, table)
    assert {r["op"]: r["key"] for r in old.read("keys").to_pylist()} == {
        r["op"]: r["key"] for r in calm.read("keys").to_pylist()
    }


def rows(lake: Lake, table: str) -> list[str]:
    hidden = ("jpeg", "finished_at", "heartbeat", "uri")
    columns = [n for n in lake.schema(table).names if n not in hidden and not n.startswith("emb_")]
    return sorted(str(sorted(r.items(), key=str)) for r in lake.read(table, columns).to_pylist())
