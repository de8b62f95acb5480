"""Questions to a lake that need Lance: nearest vectors under a filter, one frame's vector, tables that are not a lake's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.filters import bounded, filter_errors
from pipelines.lake.lake import Lake
from pipelines.lake.sql import equals
from vfm_ops.errors import UsageError

# Lance warns whenever the process forks, as libraries do to ask the machine about itself; no child of ours uses it.
warnings.filterwarnings("ignore", message="lance is not fork-safe")
import lance  # noqa: E402

# Where index building leaves the probing that reached its recall, in the table's own configuration.
TUNING = "vfm.search."
# And how many vectors there were when its kind was chosen, with what was tried.
CHOICE = "vfm.index."
# So few rows that a filter leaves are scanned.
FEW_ROWS = 20_000
SCORE = "score"


def open_table(uri: str) -> Any:
    """A Lance table anywhere, read-only. UsageError when there is none."""
    try:
        return lance.dataset(uri)
    except (ValueError, OSError) as e:
        raise UsageError(f"{uri} is no Lance table: {str(e).split(chr(10))[0][:200]}") from e


def write_table(uri: str, rows: pa.Table) -> Any:
    """A Lance table of its own, outside any lake. Returns it, open."""
    return lance.write_dataset(rows, uri)


def nearest_frames(
    lake: Lake, column: str, vector: np.ndarray, k: int, where: str | None, columns: list[str], *, exact: bool = False
) -> pa.Table:
    """The k frames whose `column` has the largest cosine to `vector`, best first, with float32 `score`.

    vector: float (D,), any length above zero. where: SQL over the columns of frames, applied before the search. Rows that
    no index covers yet are searched too. exact: scan everything, index or not. UsageError for a filter that does not fit.
    """
    dataset = lake.caching().dataset("frames")
    if dataset is None:
        return pa.table({name: [] for name in [*columns, SCORE]})
    unit = np.asarray(vector, np.float32)
    unit = unit / max(float(np.linalg.norm(unit)), 1e-12)
    nearest: dict[str, Any] = {"column": column, "q": unit, "k": k, "metric": "cosine", "use_index": not exact}
    tuned = {} if exact else search_tuning(dataset, column)
    if tuned and where:
        with filter_errors("frames", where):
            left = dataset.count_rows(filter=bounded(where))
        nearest["use_index"] = left > FEW_ROWS
        tuned = widened(tuned, dataset.count_rows() / max(left, 1))
    nearest |= probing_for(tuned, k)
    # Rows without a vector need no filter: Lance leaves them out, and a filter on the column would read all its vectors.
    wanted = [*dict.fromkeys(columns), "_distance"]
    with filter_errors("frames", where):
        found = dataset.to_table(columns=wanted, nearest=nearest, filter=where and bounded(where), prefilter=True)
    scores = pc.subtract(pa.scalar(1.0, pa.float32()), found["_distance"])
    found = found.drop_columns("_distance").append_column(SCORE, scores)
    return found.sort_by([(SCORE, "descending")])


def check_filter(lake: Lake, table: str, where: str) -> None:
    """UsageError when `where` is not SQL over the columns of a table. Reads no data."""
    dataset = lake.dataset(table)
    if dataset is None:
        return
    with filter_errors(table, where, always=True):
        dataset.scanner(columns=[dataset.schema.names[0]], filter=bounded(where), limit=1).explain_plan()


def frame_vector(lake: Lake, column: str, frame_id: str) -> np.ndarray:
    """The embedding of one frame, float32 (D,). UsageError when there is no such frame, or its vector is missing."""
    rows = lake.caching().read("frames", [column], filter=equals("frame_id", frame_id))
    if not rows.num_rows:
        raise UsageError(f"there is no frame {frame_id!r} in {lake.root}; ids look like ASSET:INDEX")
    value = rows[column][0].as_py()
    if value is None:
        spec = (lake.schema("frames").field(column).metadata or {}).get(b"spec", b"").decode()
        raise UsageError(
            f"frame {frame_id!r} has no vector in column {column}; run: vfm embed --lake {lake.root} --model {spec}"
        )
    return np.asarray(value, np.float32)


def search_tuning(dataset: Any, column: str) -> dict[str, int]:
    """How the index of a column is probed (nprobes, refine_factor, ef), as index building measured; {} without an index."""
    stored = dataset.config().get(TUNING + column)
    return json.loads(stored) if stored else {}


def widened(tuned: dict[str, int], factor: float) -> dict[str, int]:
    """Stored probing for a search under a filter that leaves one row of `factor`: its nearest lie that much farther out."""
    return {name: n if name == "refine_factor" else int(np.ceil(n * min(factor, 16.0))) for name, n in tuned.items()}


def probing_for(tuned: dict[str, int], k: int) -> dict[str, int]:
    """Stored probing for k results: a graph search must hold at least as many candidates as are re-ranked."""
    if "ef" not in tuned:
        return tuned
    return tuned | {"ef": max(tuned["ef"], k * tuned.get("refine_factor", 1))}


def exact_scores(dataset: Any, column: str, queries: np.ndarray, k: int) -> np.ndarray:
    """Largest k cosines of each query, descending, float32 (Q, k), in one pass over the table. queries: unit (Q, D)."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    for vectors in vector_batches(dataset, column):
        scores = queries @ vectors.T
        best = -np.partition(-np.concatenate([best, scores], axis=1), k - 1, axis=1)[:, :k]
    return -np.sort(-best, axis=1)


def vector_batches(dataset: Any, column: str) -> Iterator[np.ndarray]:
    """Unit vectors of a column, float32 (N, D), nulls left out."""
    for batch in dataset.scanner(columns=[column], filter=f"{column} IS NOT NULL", batch_size=8192).to_batches():
        array = batch.column(0)
        if batch.num_rows:
            vectors = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(array), -1)
            yield vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
