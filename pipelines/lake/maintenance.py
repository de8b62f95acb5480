"""Keeping a lake fast: small fragments merged, vector and scalar indices built and extended, old versions let go.

Where a Ray is running, large tables are spread over it by lance-ray; everything else Lance does in this process. A vector
index is measured when it is built: the probing that reaches the wanted recall is stored with the table, for searches. Each step
is a change like any other (`Lake.change`). lance-ray opens a table by its address: what it commits from a handle that is older
than a takeover fails all the same.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.lake.coverage import fold_coverage
from pipelines.lake.fence import EPOCH, epoch_of
from pipelines.lake.keys import op_tables
from pipelines.lake.lake import Lake
from pipelines.lake.lease import Lease
from pipelines.lake.query import TUNING, exact_scores, probing_for
from pipelines.lake.schema import SCHEMAS
from vfm_ops.errors import UsageError, VfmError

Kind = Literal["auto", "ivf_flat", "ivf_pq", "ivf_hnsw_sq"]
KINDS: tuple[Kind, ...] = ("auto", "ivf_flat", "ivf_pq", "ivf_hnsw_sq")

SCALAR_COLUMNS = {
    "assets": ("asset_id",),
    "shots": ("asset_id",),
    "frames": ("frame_id", "asset_id"),
    "detections": ("frame_id", "asset_id"),
    "tracks": ("asset_id",),
    "ledger": ("asset_id",),
    "selections": ("frame_id",),
}
# Below this an exact scan answers within some milliseconds. IVF_FLAT keeps whole vectors; above, that gets too large.
EXACT_ROWS, FLAT_ROWS = 10_000, 1_000_000
FRAGMENT_BYTES = 1 << 30
# A pool of workers takes seconds to start: smaller tables are done here and now, Ray or not.
DISTRIBUTED_BYTES = 256 << 20
# Recall@10 of stored vectors; text queries lie off their distribution, hence above the 0.95 that searches must have.
WANTED_RECALL, TUNING_QUERIES = 0.98, 32


@dataclass
class IndexReport:
    """One index: `recall` is recall@10 against an exact scan, `probing` what searches use; both empty for scalar ones."""

    table: str
    column: str
    kind: str
    rows: int
    built: Literal["new", "extended", "current", "exact"]
    seconds: float = 0.0
    recall: float | None = None
    probing: dict[str, int] = field(default_factory=dict)


@dataclass
class MaintenanceReport:
    """What one pass did. fragments: {table: (before, after)}; freed_bytes: by letting old versions go."""

    fragments: dict[str, tuple[int, int]] = field(default_factory=dict)
    indices: list[IndexReport] = field(default_factory=list)
    freed_bytes: int = 0
    distributed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return asdict(self)


def maintain(
    lake: Lake,
    *,
    columns: list[str] | None = None,
    kind: Kind = "auto",
    compact: bool = True,
    keep: timedelta | None = timedelta(days=7),
) -> MaintenanceReport:
    """Compacts every table, builds or extends its indices, and removes versions older than `keep` (None keeps all).

    columns: embedding columns to index, all by default. Holds the lake's lease. Raises UsageError for an unknown kind or
    column, and when another run holds the lake.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no index kind {kind!r}; known: {', '.join(KINDS)}")
    known = embedding_columns(lake)
    if unknown := [c for c in columns or [] if c not in known]:
        raise UsageError(f"frames has no embedding column {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    datasets = [lake.dataset(table) for table in SCALAR_COLUMNS]
    report = MaintenanceReport(distributed=any(d is not None and _worth_distributing(d) for d in datasets))
    with Lease(lake, f"index-{uuid.uuid4().hex[:12]}"):
        tables = list(dict.fromkeys((*SCHEMAS, *op_tables(lake))))
        for table in tables:
            if compact and table != "lease" and lake.count(table):
                report.fragments[table] = compact_table(lake, table)
        for table, names in SCALAR_COLUMNS.items():
            report.indices += [index_scalar(lake, table, name) for name in names if lake.count(table)]
        for name in columns or known:
            report.indices.append(index_vectors(lake, name, kind))
        if keep is not None:
            report.freed_bytes = sum(forget_versions(lake, table, keep) for table in tables)
    return report


def embedding_columns(lake: Lake) -> list[str]:
    """Columns of frames that hold a model's vectors."""
    return [f.name for f in lake.schema("frames") if (f.metadata or {}).get(b"spec") is not None]


def ray_is_running() -> bool:
    """Whether this process is connected to a Ray."""
    ray = sys.modules.get("ray")
    return bool(ray is not None and ray.is_initialized())


# -- fragments and versions ------------------------------------------------------------------------------------------


def compact_table(lake: Lake, table: str) -> tuple[int, int]:
    """Merges small fragments, up to about FRAGMENT_BYTES each, and drops deleted rows. Returns fragments (before, after)."""
    dataset = _dataset(lake, table)
    before = len(dataset.get_fragments())
    if table == "coverage" and fold_coverage(lake):  # first: the order of its rows counts until they are folded
        dataset = _dataset(lake, table)
    target = int(np.clip(FRAGMENT_BYTES * dataset.count_rows() // max(_data_bytes(dataset), 1), 1024, 1 << 20))

    def compact(dataset: Any) -> None:
        if _worth_distributing(dataset):
            import lance_ray

            options = {"target_rows_per_fragment": target}
            lance_ray.compact_files(dataset.uri, compaction_options=options, num_workers=_workers(before))
        else:
            dataset.optimize.compact_files(target_rows_per_fragment=target)

    lake.change(table, "compact", compact)
    return before, len(_dataset(lake, table).get_fragments())


def forget_versions(lake: Lake, table: str, keep: timedelta) -> int:
    """Removes versions older than `keep`, except the newest and tagged ones. Returns freed bytes."""
    if lake.dataset(table) is None:
        return 0
    options = {"older_than": keep, "error_if_tagged_old_versions": False}
    freed = lake.change(table, "remove old versions of", lambda ds: ds.cleanup_old_versions(**options).bytes_removed)
    return int(freed or 0)


def table_bytes(lake: Lake, table: str) -> int:
    """Bytes of the data files that the newest version of a table refers to."""
    dataset = lake.dataset(table)
    return 0 if dataset is None else _data_bytes(dataset)


# -- indices ---------------------------------------------------------------------------------------------------------


def index_scalar(lake: Lake, table: str, column: str) -> IndexReport:
    """A B-tree over a column: made, or extended by the rows that it lacks."""
    started = time.monotonic()
    dataset = _dataset(lake, table)
    name = f"{column}_idx"
    report = IndexReport(table, column, "btree", dataset.count_rows(), "new")

    def build(dataset: Any) -> None:
        if _worth_distributing(dataset):
            import lance_ray

            workers = _workers(len(dataset.get_fragments()))
            lance_ray.create_scalar_index(
                dataset.uri, column=column, index_type="BTREE", name=name, num_workers=workers
            )
        else:
            dataset.create_scalar_index(column, "BTREE", name=name, replace=True)

    if name in _index_names(dataset):
        report.built = _extend(lake, table, name)
    else:
        lake.change(table, f"index {column} of", build)
    report.seconds = time.monotonic() - started
    return report


def index_vectors(lake: Lake, column: str, kind: Kind = "auto") -> IndexReport:
    """An index for cosine over an embedding column: made, rebuilt when the kind changes, else extended by what it lacks.

    `auto` takes none below EXACT_ROWS, IVF_FLAT to FLAT_ROWS, IVF_HNSW_SQ beyond. Probing is tuned to WANTED_RECALL.
    """
    started = time.monotonic()
    dataset = _dataset(lake, "frames")
    rows = dataset.count_rows(filter=f"{column} IS NOT NULL")
    chosen = choose_kind(rows) if kind == "auto" else kind
    report = IndexReport("frames", column, chosen, rows, "new")
    name = f"{column}_idx"
    existing = _index_kind(dataset, name)
    if rows == 0 or (chosen == "exact" and existing is None):
        report.kind, report.built = "exact", "exact"
        return report
    if existing is not None and (chosen == existing or chosen == "exact"):
        report.kind, report.built = existing, _extend(lake, "frames", name)
    else:
        _build_vectors(lake, column, name, chosen, rows)
    dataset = _dataset(lake, "frames")
    if report.built == "current" and TUNING + column in dataset.config():
        report.probing = json.loads(dataset.config()[TUNING + column])
    else:
        report.probing, report.recall = tune(dataset, column, report.kind)
        tuning = json.dumps(report.probing)
        # A config update conflicts with a takeover only where both write one key: the epoch goes along.
        lake.change("frames", "tune", lambda ds: ds.update_config({TUNING + column: tuning, EPOCH: str(epoch_of(ds))}))
    report.seconds = time.monotonic() - started
    return report


def choose_kind(rows: int) -> str:
    """Kind of vector index for a number of rows; `exact` is none."""
    return "exact" if rows < EXACT_ROWS else "ivf_flat" if rows <= FLAT_ROWS else "ivf_hnsw_sq"


def _build_vectors(lake: Lake, column: str, name: str, kind: str, rows: int) -> None:
    dataset = _dataset(lake, "frames")
    partitions = max(1, rows // 250_000) if kind == "ivf_hnsw_sq" else max(1, round(rows**0.5))
    options: dict[str, Any] = {"metric": "cosine", "num_partitions": partitions, "name": name, "replace": True}
    if kind == "ivf_pq":
        if rows < 256:
            raise UsageError(f"an ivf_pq index needs 256 vectors, and {column} has {rows}: `kind` ivf_flat needs none")
        options["num_sub_vectors"] = _sub_vectors(dataset.schema.field(column).type.list_size)

    def build(dataset: Any) -> None:
        if _worth_distributing(dataset):
            import lance_ray

            rate = min(256, rows // partitions, rows // 256 if kind == "ivf_pq" else 256)
            workers = _workers(len(dataset.get_fragments()))
            lance_ray.create_index(
                dataset.uri, column, kind.upper(), sample_rate=max(2, rate), num_workers=workers, **options
            )
        else:
            dataset.create_index(column, kind.upper(), **options)

    try:
        lake.change("frames", f"index {column} of", build)
    except (ValueError, RuntimeError) as e:
        raise VfmError(f"cannot index {column}: {str(e).split(chr(10))[0][:300]}") from e


def tune(dataset: Any, column: str, kind: str) -> tuple[dict[str, int], float]:
    """The least probing whose recall@10 reaches WANTED_RECALL, against an exact scan; and that recall.

    Stored vectors are the queries, each without itself. A neighbour counts when it is as near as the exact tenth: ids would
    tell equal vectors apart.
    """
    queries = _sample_vectors(dataset, column)
    k = min(11, dataset.count_rows(filter=f"{column} IS NOT NULL"))
    threshold = exact_scores(dataset, column, queries, k)[:, -1]
    best: tuple[dict[str, int], float] = ({}, -1.0)
    for probing in _ladder(kind):
        hits = 0.0
        for query, least in zip(queries, threshold):
            nearest = {"column": column, "q": query, "k": k, "metric": "cosine", **probing_for(probing, k)}
            distances = dataset.to_table(columns=["_distance"], nearest=nearest)["_distance"].to_numpy()
            hits += (int((1.0 - distances >= least - 1e-4).sum()) - 1) / max(k - 1, 1)
        recall = min(1.0, hits / len(queries))
        if recall > best[1]:
            best = probing, recall
        if recall >= WANTED_RECALL:
            break
    return best


def _ladder(kind: str) -> list[dict[str, int]]:
    probes = [8, 16, 32, 64, 128, 512]
    if kind == "ivf_flat":
        return [{"nprobes": n} for n in probes]
    if kind == "ivf_pq":
        return [{"nprobes": n, "refine_factor": r} for r in (10, 40) for n in probes]
    return [{"nprobes": n, "ef": e, "refine_factor": 10} for e, n in ((100, 8), (100, 32), (200, 128), (400, 512))]


def _sample_vectors(dataset: Any, column: str) -> np.ndarray:
    rows = dataset.count_rows()
    picked = np.sort(np.random.default_rng(0).choice(rows, min(rows, 2 * TUNING_QUERIES), replace=False))
    cells = dataset.take(picked.tolist(), columns=[column])[column].drop_null()[:TUNING_QUERIES].combine_chunks()
    array = cells if isinstance(cells, pa.Array) else cells.chunk(0)
    vectors = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(array), -1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _extend(lake: Lake, table: str, name: str) -> Literal["extended", "current"]:
    if not _dataset(lake, table).stats.index_stats(name)["num_unindexed_rows"]:
        return "current"
    lake.change(table, f"extend {name} of", lambda ds: ds.optimize.optimize_indices(index_names=[name]))
    return "extended"


def _index_names(dataset: Any) -> set[str]:
    return {index.name for index in dataset.describe_indices()}


def _index_kind(dataset: Any, name: str) -> str | None:
    if name not in _index_names(dataset):
        return None
    return str(dataset.stats.index_stats(name)["index_type"]).lower()


def _sub_vectors(dim: int) -> int:
    """Sub-vectors of 8 dimensions, or the largest smaller width that divides."""
    return next(dim // width for width in (8, 4, 2, 1) if dim % width == 0)


def _data_bytes(dataset: Any) -> int:
    return sum(d.file_size_bytes or 0 for f in dataset.get_fragments() for d in f.data_files())


def _worth_distributing(dataset: Any) -> bool:
    return ray_is_running() and _data_bytes(dataset) >= DISTRIBUTED_BYTES


def _workers(fragments: int) -> int:
    import ray

    return max(1, min(fragments, int(ray.cluster_resources().get("CPU", 1)) - 1))


def _dataset(lake: Lake, table: str) -> Any:
    dataset = lake.dataset(table)
    if dataset is None:
        raise VfmError(f"table {table} of {lake.root} vanished")
    return dataset
