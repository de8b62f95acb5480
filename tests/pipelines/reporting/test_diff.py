"""If these fail, `vfm diff` hides what a run changed, or tells of changes that there were not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import main
from pipelines.lake import SCHEMAS, Lake, embedding_field
from pipelines.lake.maintenance import maintain
from pipelines.reporting import diff, selection_diff
from pipelines.reporting.diff import diff_lake
from pipelines.reporting.selection_diff import diff_selections
from pipelines.reporting.states import find_state, version_at
from pipelines.reporting.value_hashes import NULL, value_hashes
from tests.pipelines.curation.conftest import kinds
from tests.pipelines.picture_lake import picture_lake, select
from vfm_ops.errors import UsageError

VECTORS = embedding_field("timm:tiny", 8, {"digest": "d1" * 8})
BRIGHT = pa.field("brightness", pa.float32(), metadata={"op": "brightness", "version": "1"})
TABLES = ["assets", "frames", "selections"]


def fill(lake: Lake, column: pa.Field, values: dict[int, object]) -> None:
    """Gives some frames a value of a column, as `vfm embed` and ops do: a data file of its own."""
    lake.ensure("frames", [column])
    for fragment in lake.table("frames").get_fragments():
        batch = pa.Table.from_batches(lake.scan_fragment("frames", fragment.fragment_id, ["frame_id"], 10_000))
        numbers = [int(name.partition(":")[0], 16) for name in batch["frame_id"].to_pylist()]
        chosen = [i for i, number in enumerate(numbers) if number in values]
        if not chosen:
            continue
        rows = {"_rowid": batch["_rowid"].take(pa.array(chosen, pa.int64()))}
        rows[column.name] = pa.array([values[numbers[i]] for i in chosen], column.type)
        lake.commit_columns("frames", lake.write_columns("frames", fragment.fragment_id, pa.table(rows)))


def run_row(lake: Lake, run_id: str, started: datetime) -> None:
    row = {"run_id": run_id, "command": "process", "started_at": started, "ended_at": datetime.now(UTC)}
    lake.append("runs", pa.Table.from_pylist([row], SCHEMAS["runs"]))


def unit_rows(count: int, seed: int) -> np.ndarray:
    return kinds([count], seed=seed, dim=8)[0].astype(np.float16)


@pytest.fixture
def lake(tmp_path) -> Lake:
    """Twelve frames with vectors; then a run that fills a column, changes two vectors, and takes three frames away."""
    lake = picture_lake(tmp_path / "lake", count=12)
    before = unit_rows(12, 0)
    fill(lake, VECTORS, dict(enumerate(before)))
    started = datetime.now(UTC)
    fill(lake, BRIGHT, {i: float(i) for i in range(12) if i != 5})
    after = before.copy()
    after[2], after[3] = -before[2], unit_rows(12, 9)[3]
    fill(lake, VECTORS, {2: after[2], 3: after[3]})
    lake.delete("frames", "asset_id", [f"{i:032x}" for i in (9, 10, 11)])
    run_row(lake, "20260101T000000-abcdef", started)
    lake.cosines = [float(np.float32(a) @ np.float32(b)) for a, b in ((before[2], after[2]), (before[3], after[3]))]
    return lake


def columns_of(found, table: str = "frames") -> dict:
    (one,) = [t for t in found.tables if t.table == table]
    return {column.column: column for column in one.columns}


def test_the_last_run_is_told_row_by_row_and_column_by_column(lake):
    found = diff_lake(lake)
    assert (found.old, found.new) == ("the start of run 20260101T000000-abcdef", "now")
    (frames,) = found.tables
    assert (frames.rows, frames.added, frames.removed) == ((12, 9), 0, 3)
    assert frames.removed_examples == [f"{i:032x}:0" for i in (9, 10, 11)]
    columns = columns_of(found)
    assert set(columns) == {"brightness", VECTORS.name}
    bright, vectors = columns["brightness"], columns[VECTORS.name]
    assert (bright.status, bright.filled, bright.changed, bright.by) == ("added", 8, 0, "brightness version 1")
    assert (vectors.filled, vectors.emptied, vectors.changed) == (0, 0, 2)
    assert vectors.by == "timm:tiny, weights d1d1d1d1"
    assert vectors.examples == [f"{i:032x}:0" for i in (2, 3)]
    assert vectors.cosine["min"] == pytest.approx(min(lake.cosines), abs=1e-3)
    assert vectors.cosine["median"] == pytest.approx(np.mean(lake.cosines), abs=1e-3)


def test_the_other_way_round_what_came_is_gone(lake):
    found = diff_lake(lake, datetime.now(UTC).isoformat(), "before:20260101T000000-abcdef")
    (frames,) = found.tables
    assert (frames.added, frames.removed) == (3, 0)
    bright = columns_of(found)["brightness"]
    assert (bright.status, bright.emptied, bright.filled) == ("removed", 8, 0)


def test_compaction_rewrites_every_file_and_differs_in_nothing(lake):
    version = str(lake.table("frames").version)
    maintain(lake, keep=None)
    found = diff_lake(lake, version)
    assert found.tables == []


def test_what_both_states_share_is_never_read(lake, monkeypatch):
    """A lake of a hundred million frames is compared in the time of what a run wrote."""
    read = []
    scan = diff.Side.scan
    monkeypatch.setattr(
        diff.Side, "scan", lambda side, f, columns: read.append((len(f), columns)) or scan(side, f, columns)
    )
    version = str(lake.table("frames").version)
    more = lake.read("frames").slice(0, 2)
    names = pa.array(["new:0", "new:1"])
    rows = more.set_column(0, "frame_id", names).set_column(1, "asset_id", pa.array(["new", "new"]))
    lake.commit("frames", lake.write_fragments("frames", rows))
    found = diff_lake(lake, version)
    assert found.tables[0].added_examples == ["new:0", "new:1"]
    assert {count for count, _ in read} <= {0, 1}


@pytest.mark.parametrize("part_rows", [1, 5, 1000])
def test_reading_in_parts_finds_the_same(lake, monkeypatch, part_rows):
    whole = diff_lake(lake)
    monkeypatch.setattr(diff, "PART_ROWS", part_rows)
    parts = diff_lake(lake)
    for a, b in zip(whole.tables, parts.tables, strict=True):
        assert (a.added, a.removed, a.rows) == (b.added, b.removed, b.rows)
        for x, y in zip(a.columns, b.columns, strict=True):
            assert (x.filled, x.emptied, x.changed, x.cosine) == (y.filled, y.emptied, y.changed, y.cosine)


def test_random_edits_are_counted_as_a_dictionary_of_all_rows_counts_them(tmp_path):
    lake = picture_lake(tmp_path / "lake", count=40)
    fill(lake, BRIGHT, {i: float(i % 7) for i in range(0, 40, 2)})
    for seed in range(4):
        rng = np.random.default_rng(seed)
        version = int(lake.table("frames").version)
        before = {r["frame_id"]: r for r in lake.table("frames", version).to_table().to_pylist()}
        numbers = rng.choice(40, 12, replace=False).tolist()
        fill(lake, BRIGHT, {n: None if rng.random() < 0.3 else float(rng.integers(7)) for n in numbers})
        lake.update("frames", {"error": "'{}'"}, f"frame_index = 0 AND frame_id LIKE '%{rng.integers(16):x}:0'")
        lake.delete("frames", "asset_id", [f"{n:032x}" for n in rng.choice(40, 3, replace=False)])
        after = {r["frame_id"]: r for r in lake.read("frames").to_pylist()}
        found = diff_lake(lake, str(version))
        (frames,) = found.tables
        assert (frames.added, frames.removed) == (len(after.keys() - before.keys()), len(before.keys() - after.keys()))
        both = before.keys() & after.keys()
        columns = columns_of(found)
        for name in [*SCHEMAS["frames"].names, "brightness"]:
            pairs = [(before[key][name], after[key][name]) for key in both]
            expected = (
                sum(a is None and b is not None for a, b in pairs),
                sum(a is not None and b is None for a, b in pairs),
                sum(a is not None and b is not None and a != b for a, b in pairs),
            )
            got = columns.get(name)
            assert ((got.filled, got.emptied, got.changed) if got else (0, 0, 0)) == expected, name


def test_a_key_that_is_there_twice_is_two_rows(tmp_path):
    lake = picture_lake(tmp_path / "lake", count=4)
    rows = {"asset_id": ["a"], "run_key": ["r.1"], "message": ["one"]}
    bad = pa.Table.from_pylist([{k: v[0] for k, v in rows.items()}], SCHEMAS["quarantine"])
    lake.append("quarantine", bad)
    version = datetime.now(UTC).isoformat()
    lake.append("quarantine", bad)
    (found,) = diff_lake(lake, version).tables
    assert (found.table, found.added, found.removed, found.columns) == ("quarantine", 1, 0, [])


def test_tables_that_not_every_lake_has_are_compared_too(tmp_path):
    """Such as an op's own: a line of text a row, by the columns that are never null."""
    lake = picture_lake(tmp_path / "lake", count=4)
    fields = [pa.field("text_id", pa.string(), False), pa.field("frame_id", pa.string(), False), ("text", pa.string())]
    schema = pa.schema([*fields, pa.field("run_key", pa.string(), False)])

    def lines(texts: dict[str, str]) -> pa.Table:
        rows = [{"text_id": i, "frame_id": f"{0:032x}:0", "text": t, "run_key": "r.1"} for i, t in texts.items()]
        return pa.Table.from_pylist(rows, schema)

    before = datetime.now(UTC).isoformat()
    lake.create_table("lines", lines({"a": "STOP", "b": "EXIT"}))
    (found,) = diff_lake(lake, before).tables
    assert (found.table, found.rows, found.added) == ("lines", (0, 2), 2)
    assert found.added_examples == [f"a {0:032x}:0", f"b {0:032x}:0"]
    between = datetime.now(UTC).isoformat()
    lake.delete("lines", "text_id", ["b"])
    lake.commit("lines", lake.write_fragments("lines", lines({"b": "EXIT 5", "c": "TAXI"})))
    (found,) = diff_lake(lake, between).tables
    assert (found.added, found.removed) == (1, 0)
    assert {c.column: c.changed for c in found.columns} == {"text": 1}


# -- states ------------------------------------------------------------------------------------------------------------


def test_a_state_is_named_by_run_time_version_or_tag(lake):
    frames = lake.table("frames")
    now = find_state(lake, None, TABLES).versions
    assert find_state(lake, "20260101T000000-abcdef", TABLES).versions == now
    assert find_state(lake, datetime.now(UTC).isoformat(), TABLES).versions == now
    assert find_state(lake, "3", TABLES).versions["frames"] == 3
    frames.tags.create("before-all", 2)
    assert find_state(lake, "before-all", TABLES).versions["frames"] == 2
    zoned = (datetime.now(UTC) + timedelta(hours=5)).replace(tzinfo=None).isoformat() + "+05:00"
    assert find_state(lake, zoned, TABLES).versions == now
    assert find_state(lake, "2001-01-01", TABLES).versions == {}


def test_a_state_that_maintenance_removed_is_refused_and_not_answered_by_its_neighbour(lake):
    moment = lake.table("frames").versions()[3]["timestamp"].astimezone(UTC).isoformat()
    lake.table("frames").tags.create("kept", 2)
    maintain(lake, keep=timedelta(0))
    for name in (moment, "4", "before:20260101T000000-abcdef"):
        with pytest.raises(UsageError, match=r"(are gone: maintenance removes|version 4 of frames .* is not kept)"):
            diff_lake(lake, name)
    assert diff_lake(lake, "kept").tables[0].table == "frames"


def test_a_version_may_be_the_newest_of_a_moment_only_where_no_later_one_is_missing():
    hour = [datetime(2026, 1, 1, h, tzinfo=UTC) for h in range(10)]
    kept = {1: hour[1], 2: hour[2], 5: hour[5], 6: hour[6]}
    assert [version_at(kept, h) for h in hour[:8]] == [0, 1, None, None, None, 5, 6, 6]
    assert version_at({5: hour[5]}, hour[4]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "yesterday"], "has no state 'yesterday': name a run id, before:RUN_ID, a tag"),
        (["--from", "before:nobody"], "has no run 'nobody'"),
        (["--from", "99"], "version 99 of frames"),
        (["one"], "give two selections, or --from and --to"),
        (["one", "two", "--to", "2"], "give two selections, or --from and --to"),
        (["one", "two"], "has no selection 'one'"),
        (["--neighbours", "0", "one", "two"], "'--neighbours': Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_name_ends_with_2_and_one_sentence(lake, capsys, arguments, said):
    assert main(["diff", "--lake", lake.root, *arguments]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_no_lake_and_no_run_are_said(tmp_path, capsys):
    assert main(["diff", "--lake", str(tmp_path)]) == 2
    assert "is not a lake" in capsys.readouterr().err
    picture_lake(tmp_path / "lake", count=3)
    assert main(["diff", "--lake", str(tmp_path / "lake")]) == 2
    assert "records no run: say what to compare with by --from" in capsys.readouterr().err


def test_the_command_tells_it_in_words_and_in_json(lake, capsys):
    assert main(["diff", "--lake", lake.root, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tables"][0]["columns"][0]["by"] == "timm:tiny, weights d1d1d1d1"
    assert main(["diff", "--lake", lake.root]) == 0
    said = capsys.readouterr().out
    assert "frames: 12 rows, then 9\n  3 rows removed: " in said
    assert "brightness by brightness version 1: column added, 8 values filled" in said
    assert "2 values changed, cosine" in said


# -- selections --------------------------------------------------------------------------------------------------------


def decided(lake: Lake, name: str, kinds_of: dict[int, str]) -> None:
    """A selection as curation writes one: item: kind of its reason."""
    lake.ensure("selections", [pa.field("kind", pa.string())])
    schema = lake.schema("selections")
    rows = [
        {"selection": name, "frame_id": f"{i:032x}:0", "kept": kind == "passed", "reason": kind, "kind": kind}
        for i, kind in kinds_of.items()
    ]
    lake.commit("selections", lake.write_fragments("selections", pa.Table.from_pylist(rows, schema)))


def test_selections_differ_by_frames_reasons_and_neighbours(tmp_path, capsys):
    lake = picture_lake(tmp_path / "lake", count=40)
    x = unit_rows(40, 3)
    fill(lake, VECTORS, {i: x[i] for i in range(39)})
    old = {i: "passed" if i % 2 else "quality" for i in range(40)}
    new = {i: "passed" if i % 3 else "exact_duplicate" for i in range(36)}
    decided(lake, "a", old)
    decided(lake, "b", new)
    found = diff_selections(lake, "a", "b", k=4)
    kept = [{i for i, kind in one.items() if kind == "passed"} for one in (old, new)]
    assert found.kept == (len(kept[0]), len(kept[1]), len(kept[0] & kept[1]))
    assert {(c.old, c.new): c.count for c in found.only_old} == {
        ("passed", "exact_duplicate"): 6,
        ("passed", "not considered"): 2,
    }
    assert {(c.old, c.new): c.count for c in found.only_new} == {("quality", "passed"): 12}
    assert {(c.old, c.new): c.count for c in found.reasons} == {("quality", "exact_duplicate"): 6}
    assert found.only_new[0].examples == [f"{i:032x}:0" for i in (2, 4, 8)]

    def nearest(i: int, among: set[int]) -> set[int]:
        others = sorted(among - {i, 39}, key=lambda j: -float(np.float64(x[i]) @ np.float64(x[j])))
        return set(others[:4])

    both = sorted((kept[0] & kept[1]) - {39})
    expected = 1 - np.mean([len(nearest(i, kept[0]) & nearest(i, kept[1])) / 4 for i in both])
    assert found.neighbours.frames == len(both)
    assert found.neighbours.differ == pytest.approx(expected, abs=1e-3)
    assert main(["diff", "--lake", lake.root, "a", "b"]) == 0
    assert "only in b: 12\n  12 quality, then passed: " in capsys.readouterr().out


def test_hand_made_selections_of_a_lake_without_vectors_are_compared_by_frames_alone(tmp_path, capsys):
    lake = picture_lake(tmp_path / "lake", count=6)
    select(lake, "a", [f"{i:032x}:0" for i in (0, 1, 2)])
    select(lake, "b", [f"{i:032x}:0" for i in (2, 3)])
    found = diff_selections(lake, "a", "b")
    assert found.kept == (3, 2, 1)
    assert found.only_old[0].examples == [f"{i:032x}:0" for i in (0, 1)]
    assert found.neighbours is None
    assert main(["diff", "--lake", lake.root, "a", "b"]) == 0
    assert "neighbours are not compared: frames has no embedding" in capsys.readouterr().out


def test_neighbours_of_a_selection_and_itself_are_the_same(tmp_path, monkeypatch):
    lake = picture_lake(tmp_path / "lake", count=30)
    fill(lake, VECTORS, dict(enumerate(unit_rows(30, 3))))
    select(lake, "a", [f"{i:032x}:0" for i in range(20)])
    monkeypatch.setattr(selection_diff, "QUERIES", 7)
    found = diff_selections(lake, "a", "a").neighbours
    assert (found.k, found.frames, found.differ) == (10, 7, 0.0)


# -- hashes ------------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.tuples(
        st.just(pa.list_(pa.float32())),
        st.lists(st.none() | st.lists(st.none() | st.floats(0, 1, width=32), max_size=3)),
    ),
    st.tuples(st.just(pa.list_(pa.int16(), 2)), st.lists(st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2)))),
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text(max_size=2))),
    st.tuples(st.just(pa.bool_()), st.lists(st.none() | st.booleans())),
    st.tuples(
        st.just(pa.struct([("a", pa.int8()), ("b", pa.string())])),
        st.lists(
            st.none()
            | st.fixed_dictionaries({"a": st.none() | st.integers(0, 2), "b": st.none() | st.text(max_size=1)})
        ),
    ),
)


@given(VALUES, st.integers(0, 3))
@settings(deadline=None)
def test_values_have_equal_hashes_when_and_only_when_they_are_equal(typed, cut):
    kind, values = typed
    array = pa.array(values, kind)
    hashes = value_hashes(array)
    plain = array.to_pylist()
    for i in range(len(plain)):
        assert (hashes[i] == NULL) == (plain[i] is None)
        for j in range(i):
            assert (hashes[i] == hashes[j]) == (plain[i] == plain[j])
    assert (value_hashes(array.slice(cut)) == hashes[cut:]).all()


@pytest.mark.parametrize(
    "array",
    [
        pa.array([Decimal("1.5"), Decimal("1.5"), None, Decimal("2.5")]),
        pa.array(["x", "x", None, "y"]).dictionary_encode(),
        pa.array([b"x", b"x", None, b""], pa.large_binary()),
        pa.array([datetime(2026, 1, 1), datetime(2026, 1, 1), None, datetime(2027, 1, 1)]),
        pa.array([1.0, 1.0, None, -1.0], pa.float16()),
        pa.array([[("a", 1)], [("a", 1)], None, []], pa.map_(pa.string(), pa.int8())),
    ],
)
def test_values_of_other_types_too(array):
    a, b, null, other = value_hashes(array).tolist()
    assert a == b != other != null == NULL
    assert (value_hashes(pa.nulls(3)) == NULL).all()
