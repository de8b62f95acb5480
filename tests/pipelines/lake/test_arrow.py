"""What a user of SQL loses: a lake that their database refuses to read, or reads wrong."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.lake import SCHEMAS, Lake, embedding_field, make_frame_id, patches_field
from pipelines.lake.arrow import arrow_reader
from tests.conftest import optional_package
from vfm_ops.errors import UsageError

SPEC, DIM = "timm:tiny", 3


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, DIM)).astype(np.float16)


@pytest.fixture(scope="module")
def lake(tmp_path_factory, vectors) -> Lake:
    """Six frames of two assets with vectors and patch tokens; the last has neither."""
    lake = Lake.create(tmp_path_factory.mktemp("duck") / "lake")
    vector, patches = embedding_field(SPEC, DIM, {"digest": "d"}), patches_field(SPEC, DIM)
    lake.ensure("frames", [vector, patches])
    rows = [
        {
            "frame_id": make_frame_id("ab"[i % 2], i),
            "asset_id": "ab"[i % 2],
            "run_key": "r.1",
            "quality": {"luminance": i / 10},
            vector.name: list(vectors[i]) if i < 5 else None,
            patches.name: [list(vectors[i]), list(vectors[0])] if i < 5 else None,
        }
        for i in range(6)
    ]
    schema = lake.schema("frames")
    lake.commit("frames", lake.write_fragments("frames", pa.Table.from_pylist(rows, schema)))
    return lake


def test_duckdb_reads_frames_with_their_vectors(lake, vectors):
    duckdb = optional_package("duckdb")
    frames = arrow_reader(lake, "frames")
    found = duckdb.sql(
        "SELECT asset_id, emb_timm_tiny, patches_timm_tiny, quality.luminance FROM frames ORDER BY frame_id"
    )
    rows = found.fetchall()
    assert frames.schema.field("emb_timm_tiny").type == pa.list_(pa.float32(), DIM)
    assert [row[0] for row in rows] == ["a"] * 3 + ["b"] * 3
    order = [0, 2, 4, 1, 3]
    np.testing.assert_array_equal([row[1] for row in rows[:5]], vectors[order].astype(np.float32))
    np.testing.assert_array_equal(rows[1][2], vectors[[2, 0]].astype(np.float32))
    assert rows[5][1:3] == (None, None)
    assert [round(row[3], 1) for row in rows] == [0.0, 0.2, 0.4, 0.1, 0.3, 0.5]


def test_any_arrow_consumer_gets_the_columns_and_rows_it_asked_for(lake, vectors):
    table = arrow_reader(lake, "frames", ["emb_timm_tiny", "frame_id"], "asset_id = 'b'").read_all()
    assert table.column_names == ["emb_timm_tiny", "frame_id"]
    assert table["frame_id"].to_pylist() == ["b:1", "b:3", "b:5"]
    np.testing.assert_array_equal(table["emb_timm_tiny"][1].as_py(), vectors[3].astype(np.float32))
    empty = arrow_reader(lake, "detections").read_all()
    assert (empty.num_rows, empty.schema.names) == (0, SCHEMAS["detections"].names)


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [("frame", None, "has no table 'frame'"), ("frames", ["emb"], "has no column 'emb'; there are frame_id")],
)
def test_a_table_or_column_that_is_not_there_is_named(lake, table, columns, message):
    with pytest.raises(UsageError, match=message):
        arrow_reader(lake, table, columns)
