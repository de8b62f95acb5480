"""Lakes of synthetic vectors for `vfm bench curate`: no pictures, only what a curation reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.bench.curate_algorithms import clustered_vectors
from pipelines.lake import SCHEMAS, Lake, embedding_field, make_asset_id, with_nulls

CHUNK = 50_000


def vector_lake(root: Path, rows: int, dim: int = 256) -> Lake:
    """A new lake of `rows` stills whose unit vectors resemble embeddings; one in ten is a near-copy."""
    lake = Lake.create(root)
    lake.ensure("assets")
    lake.ensure("frames", [embedding_field("bench:synthetic", dim, {"digest": "synthetic"})])
    for start in range(0, rows, CHUNK):
        add_vectors(lake, clustered_vectors(min(CHUNK, rows - start), dim, seed=start), start)
    return lake


def add_vectors(lake: Lake, x_ND: np.ndarray, start: int) -> None:
    """Adds one still a vector, numbered from `start`: an asset and a frame each."""
    ids = [make_asset_id(f"/bench/{start + i}.jpg") for i in range(len(x_ND))]
    assets = {
        "asset_id": ids,
        "uri": [f"/bench/{start + i}.jpg" for i in range(len(ids))],
        "media_type": ["image"] * len(ids),
    }
    lake.commit("assets", lake.write_fragments("assets", with_nulls(SCHEMAS["assets"], assets)))
    schema = lake.schema("frames")
    column = next(f for f in schema if f.name.startswith("emb_"))
    flat = pa.array(np.ascontiguousarray(x_ND, np.float16).ravel())
    frames = {
        "frame_id": [f"{i}:0" for i in ids],
        "asset_id": ids,
        "run_key": ["bench.1"] * len(ids),
        "width": pa.array([640] * len(ids), pa.int32()),
        "height": pa.array([360] * len(ids), pa.int32()),
        "phash": pa.array(np.random.default_rng(start).integers(0, 2**63, len(ids)).astype(np.uint64)),
        column.name: pa.FixedSizeListArray.from_arrays(flat, x_ND.shape[1]),
    }
    lake.commit("frames", lake.write_fragments("frames", with_nulls(schema, frames)))
