"""What a notebook's user loses: rows that engines read wrong, pictures that training sees twice, text that runs as HTML."""

from __future__ import annotations

import base64
import io
import os
import pickle
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipelines.lake import SCHEMAS, Lake, embedding_field, make_frame_id
from pipelines.lake.html import short_text, table_html, thumbnail_html
from pipelines.lake.tables import Table
from tests.conftest import optional_package
from tests.pipelines.picture_lake import COLOURS, picture_lake
from vfm_ops.errors import UsageError

COUNT, DIM = 70, 4
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float16)


@pytest.fixture(scope="module")
def lake(tmp_path_factory, vectors) -> Lake:
    """70 pictures with vectors, in two commits; then one without a picture, and one whose picture is damaged."""
    lake = picture_lake(tmp_path_factory.mktemp("tables") / "lake", COUNT)
    field = embedding_field("clip:tiny", DIM, {"digest": "d"})
    lake.ensure("frames", [field])
    rows = lake.read("frames", ["frame_id"], with_row_id=True)
    written = pa.table({"_rowid": rows["_rowid"], field.name: pa.array(list(vectors), field.type)})
    (fragment,) = lake.table("frames").get_fragments()
    lake.commit_columns("frames", lake.write_columns("frames", fragment.fragment_id, written))
    odd = [
        {"frame_id": make_frame_id(owner, 0), "asset_id": owner, "run_key": "r.1", "jpeg": jpeg}
        for owner, jpeg in (("nothing", None), (EVIL, b"\xff\xd8\xffno picture"))
    ]
    lake.append("frames", pa.Table.from_pylist(odd, SCHEMAS["frames"]))
    return lake


class Tags(HTMLParser):
    """The tags of a page, and the sources of its pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name == "src"]


def test_a_lake_says_what_it_holds(lake):
    assert str(lake.root) in repr(lake)
    assert [line.split()[:2] for line in repr(lake).splitlines()[1:3]] == [["assets", "70"], ["frames", "72"]]
    assert "frames.emb_clip_tiny by clip:tiny, 4 values" in repr(lake)
    assert "lease" not in repr(lake)
    page = lake._repr_html_()
    assert set(Tags(page).tags) <= {"p", "div", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<td>emb_clip_tiny by clip:tiny, 4 values</td>" in page


def test_a_lake_that_is_empty_or_gone_still_has_a_name(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    assert repr(lake) == f"Lake {lake.root}: empty"
    (tmp_path / "lake" / "frames.lance").mkdir()  # a table without a version is none
    assert repr(lake) == f"Lake {lake.root}: empty"
    assert f"{Lake(str(tmp_path / EVIL))._repr_html_()}".count("<script>") == 0


def test_opening_a_lake_and_naming_its_tables_reads_nothing(lake, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("it was read")

    for method in ("dataset", "scan", "read", "count", "tables"):
        monkeypatch.setattr(Lake, method, refuse)
    opened = pickle.loads(pickle.dumps(Lake.open(lake.root)))
    assert opened.frames.name == "frames"
    assert bool(opened.tracks)
    assert {"frames", "quarantine", "open"} <= set(dir(opened))


def test_a_table_of_any_name_is_an_attribute_once_it_was_written_and_a_typo_is_not(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    assert len(lake.detections) == 0
    with pytest.raises(AttributeError, match="no table or method 'texts'; its tables are assets, shots"):
        _ = lake.texts
    lake.create_table("texts", pa.table({"line": ["one", "two"]}))
    assert lake.texts.to_pandas()["line"].tolist() == ["one", "two"]
    assert lake.tables() == ["texts"]


def test_pandas_and_arrow_get_the_rows_that_the_condition_and_the_columns_name(lake, vectors):
    rows = lake.frames.to_pandas("asset_id < '00000000000000000000000000000003'", ["emb_clip_tiny", "frame_id"])
    assert list(rows.columns) == ["emb_clip_tiny", "frame_id"]
    np.testing.assert_array_equal(np.stack(rows["emb_clip_tiny"]), vectors[:3])
    assert "jpeg" not in lake.frames.to_pandas(limit=2).columns
    assert lake.frames.to_arrow(columns=["jpeg"], limit=2).num_rows == 2
    assert lake.frames.count("jpeg IS NULL") == 1
    assert lake.frames.dataset.count_rows() == len(lake.frames) == COUNT + 2


def test_every_engine_reads_what_lance_holds(lake, vectors):
    frames = lake.frames
    whole = pa.table(frames)
    assert whole.column_names == [name for name in frames.columns if name != "jpeg"]
    np.testing.assert_array_equal(np.stack(whole["emb_clip_tiny"].to_pandas()[:COUNT]), vectors.astype(np.float32))
    duckdb = optional_package("duckdb")
    relation = frames.to_duckdb("asset_id LIKE '0%'", ["frame_id", "emb_clip_tiny"])
    assert relation.aggregate("count(*)").fetchall() == relation.aggregate("count(*)").fetchall() == [(COUNT,)]
    first = relation.order("frame_id").limit(2).fetchall()
    np.testing.assert_array_equal([row[1] for row in first], vectors[:2].astype(np.float32))
    assert duckdb.sql("SELECT count(*) FROM frames").fetchall() == [(COUNT + 2,)]
    with pytest.raises(UsageError, match="widht"):  # at once, and not in the words of an engine that asks later
        frames.to_duckdb("widht > 3")
    own = duckdb.connect()
    assert frames.to_duckdb(columns=["width"], connection=own).columns == ["width"]


def test_polars_reads_what_lance_holds(lake, vectors):
    polars = optional_package("polars")
    rows = lake.frames.to_polars("asset_id LIKE '0%'", ["frame_id", "emb_clip_tiny"])
    assert rows.schema["emb_clip_tiny"] == polars.Array(polars.Float32, DIM)
    np.testing.assert_array_equal(rows["emb_clip_tiny"].to_numpy(), vectors.astype(np.float32))
    assert polars.DataFrame(lake.assets).height == COUNT


@pytest.mark.parametrize("engine", ["polars", "duckdb"])
def test_an_engine_that_is_not_installed_is_named_with_the_way_to_get_it(lake, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(UsageError, match=f"^{engine} is not installed: pip install {engine}$"):
        getattr(lake.frames, f"to_{engine}")()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t: t.to_pandas(columns=["widht"]), "no column 'widht'; there are frame_id"),
        (lambda t: t.to_arrow("widht > 3"), "widht"),
        (lambda t: t.to_torch("widht > 3"), "widht"),
        (lambda t: t.to_torch(columns=["frame_id"], transform=len), "needs pictures"),
        (lambda t: Table(t.lake, "tracks").dataset, "was never written to"),
        (lambda t: Table(t.lake, "nonsense").columns, "no table 'nonsense'"),
    ],
)
def test_what_is_wrong_is_said_at_once(lake, call, sentence):
    with pytest.raises(UsageError, match=sentence):
        call(lake.frames)


def test_torch_gets_each_picture_once_decoded_and_what_is_damaged_costs_itself(lake, vectors):
    rows = lake.frames.to_torch(columns=["frame_id", "jpeg", "emb_clip_tiny", "pts_s"])
    assert len(rows) == COUNT + 1
    with pytest.warns(RuntimeWarning, match="a stored picture"):
        items = list(rows)
    assert [item["frame_id"] for item in items] == [f"{i:032x}:0" for i in range(COUNT)]
    assert all(item["image"].dtype == torch.uint8 and item["image"].shape == (3, 18, 20) for item in items)
    for i in range(6):  # the colour that the label says is the brightest, in RGB
        assert items[i]["image"].float().mean((1, 2)).argmax() == i % 3, COLOURS[i % 3]
        np.testing.assert_array_equal(items[i]["emb_clip_tiny"].numpy(), vectors[i].astype(np.float32))
    assert items[0]["pts_s"] is None


def halved(image: torch.Tensor) -> torch.Tensor:
    return image[:, ::2, ::2]


def test_the_workers_of_a_dataloader_share_the_rows_out(lake):
    rows = lake.frames.to_torch("asset_id LIKE '0%'", transform=halved, shuffle=True, seed=3)
    loader = DataLoader(rows, batch_size=8, num_workers=2, multiprocessing_context="spawn")
    batches = list(loader)
    seen = [frame_id for batch in batches for frame_id in batch["frame_id"]]
    assert sorted(seen) == [f"{i:032x}:0" for i in range(COUNT)]
    assert batches[0]["image"].shape == (8, 3, 9, 10)


def test_a_shuffle_is_of_its_seed_and_epoch_alone(lake):
    def order(seed: int, epoch: int) -> list[str]:
        rows = lake.frames.to_torch("asset_id LIKE '0%'", ["frame_id"], shuffle=True, seed=seed)
        rows.set_epoch(epoch)
        return [item["frame_id"] for item in rows]

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == sorted(order(2, 0)) == sorted(order(1, 1))
    assert len({tuple(order(1, 0)), tuple(order(2, 0)), tuple(order(1, 1))}) == 3


def test_a_forked_process_is_refused_since_lance_may_wait_there_for_ever(lake, monkeypatch):
    rows = lake.frames.to_torch(columns=["frame_id"])
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsageError, match="multiprocessing_context='spawn'"):
        next(iter(rows))


def test_rows_that_come_later_are_not_seen(tmp_path):
    lake = picture_lake(tmp_path / "lake", 5)
    rows = lake.frames.to_torch()
    frame = lake.read("frames", limit=1)
    lake.append("frames", frame)
    assert (len(rows), len(list(rows)), len(lake.frames)) == (5, 5, 6)
    assert len(Lake.create(tmp_path / "other").frames.to_torch()) == 0


def test_the_first_rows_are_shown_with_small_pictures_and_no_text_of_theirs_is_html(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    jpegs = [encoded(800, 300), b"\xff\xd8\xffdamaged", None]
    rows = [
        {"frame_id": f"{EVIL}:{i}", "asset_id": EVIL, "run_key": "r", "jpeg": jpegs[i % 3], "error": EVIL}
        for i in range(9)
    ]
    lake.append("frames", pa.Table.from_pylist(rows, SCHEMAS["frames"]))
    page = Tags(lake.frames._repr_html_())
    assert "script" not in page.tags
    assert page.tags.count("tr") == 6  # five rows, and their heads
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/jpeg;base64,") and len(source) < 8000 for source in page.sources)
    assert "9 rows, the first 5" in lake.frames._repr_html_()
    assert "lance" not in Tags(lake.selections._repr_html_()).tags


def encoded(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_thumbnail_keeps_the_shape_of_its_picture():
    source = Tags(thumbnail_html(encoded(800, 300), 128)).sources[0]
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (128, 48)
    assert thumbnail_html(None) == thumbnail_html(b"") == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (b"1234", "4 bytes"),
        (0.123456, "0.1235"),
        ([0.5] * 512, "512 values"),
        ([1.0, 2.5], "[1, 2.5]"),
        ({"a": 1.23456, "b": None}, "a 1.235"),
        ("x" * 100, "x" * 79 + "…"),
    ],
)
def test_a_value_is_short(value, text):
    assert short_text(value) == text
    assert f"<td>{text}</td>" in table_html("", ["v"], [[value]])
