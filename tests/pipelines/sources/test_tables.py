"""Parquet and Lance tables as sources, and their cells read back."""

from __future__ import annotations

from contextlib import suppress

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources import ListingOptions, RowReader, media_source
from tests.conftest import chaos_count
from tests.pipelines.sources.conftest import encoded, listing, names
from vfm_ops.errors import MediaError

CELLS = [encoded(shade=i) for i in range(100)]


def read_back(rows: list[dict], order: range | list[int]) -> list[bytes]:
    reader = RowReader()
    return [media_source(rows[i], reader).read(1 << 20) for i in order]


@pytest.fixture
def parquet(tmp_path):
    """100 images in row groups of 40, with captions, as a plain bytes column."""
    table = pa.table({"id": range(100), "jpg": CELLS, "text": [f"no {i}" for i in range(100)]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=40)
    return tmp_path / "p.parquet"


def test_every_parquet_cell_is_an_asset_and_reads_back_in_any_order(parquet):
    rows, _ = listing(parquet, options=ListingOptions(captions="column:text"))
    assert [r["offset"] for r in rows] == list(range(100))
    assert [r["caption"] for r in rows] == [f"no {i}" for i in range(100)]
    assert {r["media_type"] for r in rows} == {"image"}
    assert read_back(rows, range(100)) == CELLS
    assert read_back(rows, [99, 0, 45, 44, 80, 79, 39, 40]) == [CELLS[i] for i in (99, 0, 45, 44, 80, 79, 39, 40)]


def test_a_struct_of_bytes_and_path_takes_its_type_from_the_path(tmp_path):
    cells = [
        {"bytes": encoded(), "path": "a.jpg"},
        {"bytes": b"..", "path": "b.mp4"},
        {"bytes": encoded(), "path": None},
    ]
    pq.write_table(pa.table({"media": cells}), tmp_path / "p.parquet")
    rows, _ = listing(tmp_path / "p.parquet")
    assert [r["media_type"] for r in rows] == ["image", "video", None]
    assert read_back(rows, [1]) == [b".."]


def test_a_column_of_paths_lists_the_files_that_it_names(tmp_path):
    for name in ("a.jpg", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    table = pa.table({"path": ["a.jpg", str(tmp_path / "sub/b.png"), "gone.jpg", None], "y": ["A", "B", "C", "D"]})
    pq.write_table(table, tmp_path / "p.parquet")
    rows, tally = listing(tmp_path / "p.parquet", options=ListingOptions(labels="column:y"))
    assert [(n, r["label"], r["container"]) for n, r in zip(names(rows), rows)] == [
        ("a.jpg", "A", None),
        ("b.png", "B", None),
    ]
    assert tally.unreadable == 1


def test_a_struct_without_bytes_is_a_column_of_paths(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": "a.jpg"}], type_)}), tmp_path / "p.parquet")
    rows, _ = listing(tmp_path / "p.parquet")
    assert names(rows) == ["a.jpg"]


def test_a_table_that_names_itself_does_not_go_round(tmp_path):
    pq.write_table(pa.table({"path": ["p.parquet"]}), tmp_path / "p.parquet")
    rows, tally = listing(tmp_path / "p.parquet")
    assert rows == []
    assert "only single files" in tally.problems[0]


def test_the_column_can_be_named_and_a_wrong_name_says_what_there_is(tmp_path):
    pq.write_table(pa.table({"payload": CELLS[:3], "n": [1, 2, 3]}), tmp_path / "p.parquet")
    assert len(listing(tmp_path / "p.parquet", options=ListingOptions(column="payload"))[0]) == 3
    rows, tally = listing(tmp_path / "p.parquet", options=ListingOptions(column="n"))
    assert rows == []
    assert "no column 'n' of bytes or text; it has payload, n" in tally.problems[0]
    assert listing(tmp_path / "p.parquet")[1].skipped == {"table without a column of media": 1}


def test_a_damaged_parquet_file_is_reported(parquet):
    parquet.write_bytes(parquet.read_bytes()[:1000])
    rows, tally = listing(parquet)
    assert (rows, tally.unreadable) == ([], 1)


def test_a_lance_table_is_a_source_and_reads_back(tmp_path):
    lance.write_dataset(pa.table({"image": CELLS[:10], "kind": ["x"] * 10}), tmp_path / "t.lance", max_rows_per_file=4)
    rows, _ = listing(tmp_path / "t.lance", options=ListingOptions(labels="column:kind"))
    assert [(r["offset"], r["label"], r["container"]) for r in rows] == [(i, "x", "lance") for i in range(10)]
    assert read_back(rows, range(10)) == CELLS[:10]


def test_containers_inside_a_tree_are_expanded(tmp_path, parquet):
    (tmp_path / "deep").mkdir()
    lance.write_dataset(pa.table({"image": CELLS[:3]}), tmp_path / "deep" / "t.lance")
    rows, _ = listing(tmp_path)
    assert [r["container"] for r in rows].count("parquet") == 100
    assert [r["container"] for r in rows].count("lance") == 3


def test_cells_that_are_gone_or_null_say_so(tmp_path, parquet):
    rows, _ = listing(parquet)
    pq.write_table(pa.table({"jpg": pa.array([None, b"x"], pa.binary())}), parquet)
    reader = RowReader()
    for row, kind in ((rows[0], "empty"), (rows[50], "unreadable")):
        with pytest.raises(MediaError) as caught:
            media_source(row, reader)
        assert caught.value.kind == kind
    with pytest.raises(MediaError) as caught:
        RowReader().read(str(tmp_path / "gone.parquet"), "jpg[0]", "parquet")
    assert caught.value.kind == "missing"


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2"])
def test_lance_blobs_are_read(tmp_path, version):
    """How Lance's own documentation stores videos."""
    field = pa.field("video", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    cells = [CELLS[0], None, CELLS[2]]
    table = pa.table([pa.array(cells, pa.large_binary())], pa.schema([field]))
    lance.write_dataset(table, tmp_path / "t.lance", data_storage_version=version)
    rows, _ = listing(tmp_path / "t.lance")
    assert read_back(rows, [2, 0]) == [CELLS[2], CELLS[0]]
    with pytest.raises(MediaError) as caught:
        media_source(rows[1], RowReader())
    assert caught.value.kind == "empty"


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_mutated_tables_cost_themselves(tmp_path, kind):
    """Any damage: the other source is listed, and every cell reads or says why not."""
    random = np.random.default_rng(0)
    table = pa.table({"image": pa.array([{"bytes": c, "path": None} for c in CELLS[:20]] + [None]), "text": ["x"] * 21})
    path = tmp_path / f"t.{kind}"
    if kind == "lance":
        lance.write_dataset(table, path)
        files = [f for f in path.rglob("*") if f.is_file()]
    else:
        pq.write_table(table, path, row_group_size=8)
        files = [path]
    whole = {f: f.read_bytes() for f in files}
    options = ListingOptions(captions="column:text")
    for number in range(chaos_count(60, 3000)):
        for f in files:
            f.write_bytes(whole[f])
        victim = files[random.integers(len(files))]
        data = bytearray(whole[victim])
        for _ in range(random.integers(1, 6)):
            data[random.integers(len(data))] = random.integers(256)
        victim.write_bytes(bytes(data[: random.integers(1, len(data) + 1)] if random.random() < 0.2 else data))
        rows, tally = listing(path, options=options)
        reader = RowReader()
        for row in rows:
            with suppress(MediaError):
                media_source(row, reader)
        assert len(rows) + tally.skipped["empty cell"] + tally.left_out + len(tally.notes) > 0, number
