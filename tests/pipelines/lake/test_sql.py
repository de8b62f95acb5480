"""What a user loses when values are quoted wrongly: rows of a name with a quote in it, or rows that the name never meant."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.lake import SCHEMAS, Lake
from pipelines.lake.coverage import AssetSet, cover, covered
from pipelines.lake.filters import bounded
from pipelines.lake.query import frame_vector
from pipelines.lake.replace import replace_rows
from pipelines.lake.schema import ERROR, wants_value
from pipelines.lake.sql import equals, literal, one_of
from vfm_ops.errors import UsageError

NAMES = ["plain", "it's", "''", "'", "' OR 'a' = 'a", "a\\'b", 'say "so"', "%", "-- none", "日本's"]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def lake(tmp_path) -> Lake:
    lake = Lake.create(tmp_path / "lake")
    rows = [{"frame_id": name, "asset_id": name, "run_key": "r.1", "frame_index": i} for i, name in enumerate(NAMES)]
    lake.append("frames", pa.Table.from_pylist(rows, SCHEMAS["frames"]))
    return lake


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_a_literal_is_one_token_that_a_database_reads_as_the_text(text):
    assert sqlite3.connect(":memory:").execute(f"SELECT {literal(text)}").fetchone() == (text,)
    assert bounded(equals("uri", text))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_finds_its_own_row_and_no_other(lake, name):
    (row,) = lake.read("frames", ["frame_id"], equals("frame_id", name)).to_pylist()
    assert row["frame_id"] == name
    lake.update("frames", {"shot_id": literal(name)}, one_of("frame_id", [name]))
    assert lake.read("frames", ["frame_id"], equals("shot_id", name)).to_pylist() == [row]
    lake.ensure("frames", [pa.field("emb_x", pa.list_(pa.float32(), 2), metadata={"spec": "clip:none"})])
    with pytest.raises(UsageError, match="has no vector"):
        frame_vector(lake, "emb_x", name)
    cover(lake, {name: name}, AssetSet([3]), "run")
    cover(lake, {"another": name}, AssetSet([4]), "run")
    assert covered(lake, [name])[name].numbers().tolist() == [3]
    rows = pa.Table.from_pylist([{"selection": name, "frame_id": name}], SCHEMAS["selections"])
    lake.append("selections", pa.Table.from_pylist([{"selection": "other", "frame_id": "b"}], SCHEMAS["selections"]))
    lake.append("selections", rows)
    replace_rows(lake, "selections", "selection", name, rows.slice(0, 0).to_reader())
    assert lake.read("selections", ["selection"])["selection"].to_pylist() == ["other"]
    assert lake.delete("frames", "frame_id", [name]) == 1
    assert lake.count("frames") == len(NAMES) - 1


def test_lists_of_names_none_and_null(lake):
    assert lake.count("frames", one_of("frame_id", NAMES[::2])) == len(NAMES[::2])
    assert lake.count("frames", one_of("frame_id", [])) == 0
    assert lake.count("frames", equals("shot_id", None)) == len(NAMES)
    assert lake.count("frames", f"{equals('frame_index', 3)} AND {one_of('asset_id', NAMES)}") == 1


def test_a_column_is_not_excused_by_the_error_of_one_that_differs_where_it_has_an_underscore(tmp_path):
    """In LIKE, an underscore stands for any character."""
    lake = Lake.create(tmp_path / "lake")
    fields = [ERROR, pa.field("my_op", pa.int32()), pa.field("myxop", pa.int32())]
    lake.ensure("frames", fields)
    rows = {"frame_id": "f", "asset_id": "a", "run_key": "r.1", "jpeg": b"x", "error": '{"myxop": "no luck"}'}
    lake.commit("frames", lake.write_fragments("frames", pa.Table.from_pylist([rows], lake.schema("frames"))))
    assert lake.count("frames", wants_value(lake.schema("frames"), "my_op")) == 1
    assert lake.count("frames", wants_value(lake.schema("frames"), "myxop")) == 0


def test_no_condition_is_quoted_by_hand():
    by_hand = re.compile(r"""(=|<>|LIKE) '[^']*\{\w|IN \(\{\w|chr\(39\)|replace\("'",""")
    found = [
        f"{path}:{number}"
        for folder in ("pipelines", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "sql.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if by_hand.search(line)
    ]
    assert found == []
