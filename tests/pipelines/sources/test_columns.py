"""Tables as pandas, polars, DataFusion and `datasets` write them: each row is read as it is, and back again."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources import ListingOptions, RowReader, media_source
from tests.pipelines.sources.conftest import encoded, listing, names
from vfm_ops.errors import MediaError

CELLS = [encoded(shade=40 * i) for i in range(4)]
FILES = [f"{i}.jpg" for i in range(4)]
TEXTS = ["red", "green", "blue", "grey"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CAPTIONS = ListingOptions(captions="column:text")


@pytest.fixture(params=["parquet", "parquet without statistics", "lance"])
def write(request, tmp_path):
    """A function that writes columns as a table of one kind; the files that paths may name lie beside it."""
    for name, data in zip(FILES, CELLS):
        (tmp_path / name).write_bytes(data)

    def write(columns: dict[str, pa.Array], **metadata) -> Path:
        table = pa.table(columns).replace_schema_metadata(metadata)
        if request.param == "lance":
            lance.write_dataset(table, tmp_path / "t.lance")
            return tmp_path / "t.lance"
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=3, write_statistics="without" not in request.param)
        return tmp_path / "t.parquet"

    return write


def read(path: Path, options: ListingOptions = CAPTIONS) -> dict[str, tuple[bytes, str | None]]:
    """Bytes and caption of every asset, by member or file name, read back in reverse: nothing must lean on the order."""
    rows, tally = listing(path, options=options)
    assert tally.left_out == 0, tally.problems
    reader = RowReader()
    named = [(r["member"] or r["uri"].rpartition("/")[2], r) for r in reversed(rows)]
    assert len({r["asset_id"] for r in rows}) == len(rows)
    return {name: (media_source(r, reader).read(1 << 20), r["caption"]) for name, r in named}


def test_bytes_or_path_is_decided_row_by_row(write):
    """`datasets` embeds some files and names others; rows of neither are no pictures."""
    cells = [
        {"bytes": CELLS[0], "path": None},
        {"bytes": None, "path": "1.jpg"},
        {"bytes": CELLS[2], "path": "never looked for.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "3.jpg"},
    ]
    path = write({"image": pa.array(cells, IMAGE), "text": [*TEXTS[:3], "none", "none", "grey"]})
    assert read(path) == {
        "image.bytes[0]": (CELLS[0], "red"),
        "1.jpg": (CELLS[1], "green"),
        "image.bytes[2]": (CELLS[2], "blue"),
        "3.jpg": (CELLS[3], "grey"),
    }
    assert listing(path)[1].skipped == {"empty cell": 2}


@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
def test_a_list_of_images_is_an_asset_an_element(write, list_type):
    images = [
        [{"bytes": CELLS[0], "path": None}, {"bytes": CELLS[1], "path": "b.jpg"}],
        None,
        [],
        [{"bytes": None, "path": "2.jpg"}, None, {"bytes": CELLS[3], "path": None}],
    ]
    array = pa.array(images, list_type(IMAGE))
    try:
        path = write({"images": array, "text": TEXTS})
    except (pa.ArrowNotImplementedError, ValueError, OSError, RuntimeError) as e:
        pytest.skip(f"this format holds no such list: {e}")
    assert read(path) == {
        "images.bytes[0][0]": (CELLS[0], "red"),
        "images.bytes[0][1]": (CELLS[1], "red"),
        "2.jpg": (CELLS[2], "grey"),
        "images.bytes[3][2]": (CELLS[3], "grey"),
    }


def test_lists_of_bare_bytes_and_of_paths(write):
    bare = [CELLS[:2], [], CELLS[2:3], [None]]
    found = read(write({"images": pa.array(bare, pa.list_(pa.binary())), "text": TEXTS}))
    assert found == {f"images[{r}][{e}]": (CELLS[2 * (r > 0) + e], TEXTS[r]) for r, e in ((0, 0), (0, 1), (2, 0))}


def test_a_list_of_paths_is_a_file_an_element(write):
    found = read(write({"images": pa.array([FILES[:2], None, FILES[2:]]), "text": TEXTS[:3]}))
    assert found == {f"{i}.jpg": (CELLS[i], TEXTS[i // 2 * 2]) for i in range(4)}


def test_captions_of_a_list_are_paired_with_its_images_or_the_first_is_taken(write):
    pictures = pa.array([CELLS[:2], CELLS[2:]], pa.list_(pa.binary()))
    paired = read(write({"images": pictures, "text": pa.array([TEXTS[:2], TEXTS[2:]])}))
    assert [caption for _, caption in reversed(paired.values())] == TEXTS


def test_one_picture_with_several_captions_takes_the_first(write):
    """COCO has five captions a picture."""
    path = write({"image": pa.array(CELLS[:2], pa.binary()), "text": pa.array([["a", "b"], []], pa.list_(pa.string()))})
    assert [caption for _, caption in reversed(read(path).values())] == ["a", None]


BYTES = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "fixed_size": pa.binary(len(CELLS[0])),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
}
TEXT = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "categorical": pa.dictionary(pa.int8(), pa.string()),
    "enum": pa.dictionary(pa.uint32(), pa.large_string()),
}


def cast(values: list, type_: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(type_):
        return pa.array(values, type_)
    return pa.array(values, type_.value_type).dictionary_encode().cast(type_)


@pytest.mark.parametrize(("kind", "text"), [*product(BYTES, ["string"]), *product(["binary"], TEXT)])
def test_every_way_to_encode_bytes_and_captions(write, kind, text):
    fixed = pa.types.is_fixed_size_binary(BYTES[kind])
    cells = [c.ljust(BYTES[kind].byte_width)[: BYTES[kind].byte_width] if fixed else c for c in CELLS]
    path = write({"image": cast(cells, BYTES[kind]), "text": cast(TEXTS, TEXT[text])})
    assert read(path) == {f"image[{i}]": (cells[i], TEXTS[i]) for i in range(4)}


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("name", ["file_name", "path", "image", "FilePath"])
def test_every_way_to_encode_paths(write, name, text):
    found = read(write({name: cast(FILES, TEXT[text]), "text": TEXTS}))
    assert found == {f"{i}.jpg": (CELLS[i], TEXTS[i]) for i in range(4)}


def test_columns_deep_in_structs_are_found_and_named(write):
    sample = [
        {"id": i, "meta": {"image": {"bytes": c, "path": f}, "text": t}}
        for i, (c, f, t) in enumerate(zip(CELLS, FILES, TEXTS))
    ]
    path = write({"key": pa.array(range(4)), "sample": pa.array(sample)})
    expected = {f"sample.meta.image.bytes[{i}]": (CELLS[i], TEXTS[i]) for i in range(4)}
    for column in (None, "image", "meta.image", "sample.meta.image.bytes"):
        assert read(path, ListingOptions(captions="column:text", column=column)) == expected


def test_structs_inside_lists_are_found(write):
    turns = [
        [
            {"image": {"bytes": CELLS[0], "path": None}, "text": "red"},
            {"image": {"bytes": CELLS[1], "path": None}, "text": "green"},
        ],
        [],
    ]
    found = read(write({"turns": pa.array(turns)}))
    assert found == {f"turns.image.bytes[0][{e}]": (CELLS[e], TEXTS[e]) for e in range(2)}


@pytest.mark.parametrize(
    "feature", [{"_type": "Image"}, [{"_type": "Image"}], {"_type": "List", "feature": {"_type": "Image"}}]
)
def test_the_features_of_datasets_say_what_a_column_holds(write, feature):
    """Sound is stored as {bytes, path} too, and stands first here."""
    features = {"track": {"_type": "Audio"}, "pixels": feature}
    in_list = feature != {"_type": "Image"}
    cells = [{"bytes": c, "path": None} for c in CELLS]
    columns = {
        "track": pa.array([{"bytes": b"RIFF", "path": "a.wav"}] * 4, IMAGE),
        "pixels": pa.array([[c] for c in cells], pa.list_(IMAGE)) if in_list else pa.array(cells, IMAGE),
    }
    path = write(columns, huggingface=json.dumps({"info": {"features": features}}))
    rows, _ = listing(path)
    assert [r["member"] for r in rows] == [f"pixels.bytes[{i}]" + "[0]" * in_list for i in range(4)]
    assert {r["media_type"] for r in rows} == {"image"}


def test_a_table_without_media_says_which_columns_there_are(write):
    path = write({"caption": TEXTS, "sample": pa.array([{"score": 1.0, "blob": b"x"}] * 4)})
    rows, tally = listing(path)
    assert (rows, tally.skipped, tally.left_out) == ([], {"table without a column of media": 1}, 0)
    assert "`column` names one of caption, sample.score, sample.blob" in tally.notes[0]
    assert len(listing(path, options=ListingOptions(column="blob"))[0]) == 4


def test_rows_that_are_gone_say_so(write):
    path = write({"images": pa.array([CELLS[:2]], pa.list_(pa.binary()))})
    rows, _ = listing(path)
    with pytest.raises(MediaError, match="its list has 2 elements now"):
        RowReader().read(rows[0]["uri"], "images[0][2]", rows[0]["container"])
    for member in ("images", "images[x]", "images[0][1][2]x", "[0]", "other[0][0]", f"images[{'9' * 30}]"):
        with pytest.raises(MediaError) as caught:
            RowReader().read(rows[0]["uri"], member, rows[0]["container"])
        assert caught.value.kind == "unreadable"


def test_what_pandas_writes_is_read(tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs pandas: pip install pandas")
    for name, data in zip(FILES, CELLS):
        (tmp_path / name).write_bytes(data)
    frame = pandas.DataFrame(
        {"file_name": pandas.Categorical(FILES), "text": pandas.Categorical(TEXTS), "n": [1, None, 2, 3]}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    frame.set_index("file_name").to_parquet(tmp_path / "b.parquet")
    pandas.DataFrame({"image": CELLS, "text": TEXTS}).to_parquet(tmp_path / "c.parquet")
    cells = [{"bytes": CELLS[0], "path": None}, {"bytes": None, "path": "1.jpg"}]
    pandas.DataFrame({"image": cells, "text": TEXTS[:2]}).to_parquet(tmp_path / "d.parquet")
    by_name = {f"{i}.jpg": (CELLS[i], TEXTS[i]) for i in range(4)}
    assert read(tmp_path / "a.parquet") == by_name
    assert read(tmp_path / "b.parquet") == by_name
    assert read(tmp_path / "c.parquet") == {f"image[{i}]": (CELLS[i], TEXTS[i]) for i in range(4)}
    assert read(tmp_path / "d.parquet") == {"image.bytes[0]": (CELLS[0], "red"), "1.jpg": (CELLS[1], "green")}


def test_large_tables_number_their_rows_across_batches_and_groups(tmp_path):
    (tmp_path / "0.jpg").write_bytes(CELLS[0])
    cells = [{"bytes": None if i % 7 == 0 else b"%d" % i, "path": "0.jpg" if i % 7 == 0 else None} for i in range(5000)]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE)}), tmp_path / "t.parquet", row_group_size=700)
    rows, _ = listing(tmp_path / "t.parquet")
    assert names(rows).count("0.jpg") == 715
    cells_read = [r for r in rows if r["member"]]
    reader = RowReader()
    assert [media_source(r, reader).read(99) for r in cells_read] == [b"%d" % i for i in range(5000) if i % 7]
    assert [r["offset"] for r in cells_read] == [i for i in range(5000) if i % 7]


def test_listing_reads_no_pictures_where_statistics_say_that_all_are_there(tmp_path, monkeypatch):
    """A table of a terabyte is listed from its footer."""
    cells = [{"bytes": c, "path": f} for c, f in zip(CELLS, FILES)]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE)}), tmp_path / "t.parquet")
    asked = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, *a, **k: asked.append(k["columns"]) or real(self, *a, **k)
    )
    assert len(listing(tmp_path / "t.parquet")[0]) == 4
    assert asked == [["image.path"]]
