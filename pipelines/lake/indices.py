"""Indices: B-trees over ids, and over vectors the kind that is fastest on this lake's own, at the recall that is asked for.

The kinds are tried on a sample of the vectors, against an exact scan; the probing that reaches the recall is measured again on
the whole table, and stored with it, for searches. Both are done anew as the lake grows.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.lake.fence import EPOCH, epoch_of
from pipelines.lake.lake import Lake
from pipelines.lake.query import CHOICE, TUNING, exact_scores, open_table, probing_for, write_table
from vfm_ops.errors import UsageError, VfmError

Kind = Literal["auto", "ivf_flat", "ivf_sq", "ivf_pq", "ivf_rq", "ivf_hnsw_sq"]
KINDS: tuple[Kind, ...] = ("auto", "ivf_flat", "ivf_sq", "ivf_pq", "ivf_rq", "ivf_hnsw_sq")

SCALAR_COLUMNS = {
    "assets": ("asset_id",),
    "shots": ("asset_id",),
    "frames": ("frame_id", "asset_id"),
    "detections": ("frame_id", "asset_id"),
    "tracks": ("asset_id",),
    "ledger": ("asset_id",),
    "selections": ("frame_id",),
}
# Below this an exact scan answers within some milliseconds.
EXACT_ROWS = 10_000
# On so many the kinds are tried; by this factor a lake may grow before they are tried again.
TRIAL_ROWS, GROWTH = 100_000, 4
# What an index must save to be worth its space and upkeep: a scan that takes up to so many times as long is preferred.
WORTH = 1.2
# A pool of workers takes seconds to start: smaller tables are done here and now, Ray or not.
DISTRIBUTED_BYTES = 256 << 20
# Recall@10 of stored vectors; text queries lie off their distribution, hence above the 0.95 that searches must have.
WANTED_RECALL, TUNING_QUERIES = 0.98, 128
# After so many queries, a probing is given up whose recall lacks so much that the others won't make up for it.
FIRST_QUERIES, HOPELESS = 32, 0.05


@dataclass
class Trial:
    """A kind of index, or `exact` for none, at its best probing. p50_ms: of a search for ten. seconds: to build it."""

    kind: str
    recall: float
    p50_ms: float
    seconds: float
    probing: dict[str, int] = field(default_factory=dict)


@dataclass
class IndexReport:
    """One index. recall: recall@10 against an exact scan. p50_ms: of a search. probing: what searches use. All empty for scalar
    ones. tried: the kinds that it was chosen from, on `tried_rows` vectors; empty where none were.
    """

    table: str
    column: str
    kind: str
    rows: int
    built: Literal["new", "extended", "current", "exact"]
    seconds: float = 0.0
    recall: float | None = None
    p50_ms: float | None = None
    probing: dict[str, int] = field(default_factory=dict)
    tried: list[Trial] = field(default_factory=list)
    tried_rows: int = 0


def index_scalar(lake: Lake, table: str, column: str) -> IndexReport:
    """A B-tree over a column: made, or extended by the rows that it lacks."""
    started = time.monotonic()
    dataset = newest(lake, table)
    name = f"{column}_idx"
    report = IndexReport(table, column, "btree", dataset.count_rows(), "new")

    def build(dataset: Any) -> None:
        if worth_distributing(dataset):
            import lance_ray

            count = workers(len(dataset.get_fragments()))
            lance_ray.create_scalar_index(dataset.uri, column=column, index_type="BTREE", name=name, num_workers=count)
        else:
            dataset.create_scalar_index(column, "BTREE", name=name, replace=True)

    if name in _index_names(dataset):
        report.built = _extend(lake, table, name)
    else:
        lake.change(table, f"index {column} of", build)
    report.seconds = time.monotonic() - started
    return report


def index_vectors(lake: Lake, column: str, kind: Kind = "auto", recall: float = WANTED_RECALL) -> IndexReport:
    """An index for cosine over an embedding column: made, rebuilt when the kind changes, else extended by what it lacks.

    kind: `auto` tries the kinds on a sample of the vectors and takes the fastest that reaches `recall` (of the ten nearest,
    against an exact scan), or none where a scan is as fast; none below EXACT_ROWS. They are tried again once there are GROWTH
    times as many vectors.
    """
    started = time.monotonic()
    dataset = newest(lake, "frames")
    rows = dataset.count_rows(filter=f"{column} IS NOT NULL")
    name = f"{column}_idx"
    existing = _index_kind(dataset, name)
    report = IndexReport("frames", column, kind, rows, "new")
    if kind == "auto":
        _choose(report, dataset, existing, recall)
    if rows == 0 or (report.kind == "exact" and existing is None):
        report.kind, report.built, report.seconds = "exact", "exact", time.monotonic() - started
        return report
    if existing is not None and report.kind in (existing, "exact"):
        report.kind, report.built = existing, _extend(lake, "frames", name)
    else:
        _build_vectors(lake, column, report.kind, rows)
    _tune(lake, report, recall)
    report.seconds = time.monotonic() - started
    return report


# -- which kind ------------------------------------------------------------------------------------------------------


def _choose(report: IndexReport, dataset: Any, existing: str | None, recall: float) -> None:
    """Sets the report's kind, and what it was chosen from."""
    rows = report.rows
    if rows < EXACT_ROWS:
        report.kind = "exact"
        return
    before = dataset.config().get(CHOICE + report.column)
    if existing is not None and before is not None and rows < GROWTH * json.loads(before)["rows"]:
        report.kind = existing
        return
    report.tried, report.tried_rows = try_kinds(dataset, report.column, recall), min(rows, TRIAL_ROWS)
    (scan,) = (t for t in report.tried if t.kind == "exact")
    indices = [t for t in report.tried if t.kind != "exact" and t.recall >= recall]
    best = min(indices, key=lambda t: t.p50_ms, default=scan)
    # A scan of the table takes longer than one of the sample, by as much as it is larger; a probe hardly does.
    report.kind = "exact" if scan.p50_ms * rows / report.tried_rows <= WORTH * best.p50_ms else best.kind


def try_kinds(dataset: Any, column: str, recall: float) -> list[Trial]:
    """An exact scan and every kind of index, on TRIAL_ROWS vectors of a column, copied to this machine's disk."""
    vectors = _sample_vectors(dataset, column, TRIAL_ROWS).astype(np.float16)
    dim = vectors.shape[1]
    trials = []
    with tempfile.TemporaryDirectory(prefix="vfm-index-") as folder:
        sample = write_table(
            f"{folder}/sample.lance",
            pa.table({column: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)}),
        )
        for kind in ("exact", *KINDS[1:]):
            started = time.monotonic()
            if kind != "exact":
                try:
                    sample.create_index(column, kind.upper(), **_options(kind, column, len(vectors), dim))
                except (ValueError, RuntimeError, OSError):  # a kind that these can't have, by their number or width
                    continue
                sample = open_table(sample.uri)
            seconds = time.monotonic() - started
            trial = tune(sample, column, kind, recall)
            trials.append(Trial(kind, trial.recall, trial.p50_ms, seconds, trial.probing))
    return trials


def tune(dataset: Any, column: str, kind: str, recall: float = WANTED_RECALL) -> Trial:
    """The fastest probing whose recall@10 reaches `recall`, against an exact scan, or else the one with the best recall.

    Stored vectors are the queries, each without itself. A neighbour counts when it is as near as the exact tenth: ids would
    tell equal vectors apart.
    """
    queries = _sample_vectors(dataset, column, TUNING_QUERIES)
    k = min(11, dataset.count_rows(filter=f"{column} IS NOT NULL"))
    threshold = exact_scores(dataset, column, queries, k)[:, -1]
    trials = []
    for probings in _ladders(kind):
        for probing in probings:  # each finds more than the one before it, and takes longer
            nearest = {"column": column, "k": k, "metric": "cosine", "use_index": kind != "exact"}
            trial = _measure(dataset, kind, nearest | probing_for(probing, k), queries, threshold, recall)
            trial.probing = probing
            trials.append(trial)
            if trial.recall >= recall:
                break
    able = [t for t in trials if t.recall >= recall]
    return min(able, key=lambda t: t.p50_ms) if able else max(trials, key=lambda t: t.recall)


def _measure(
    dataset: Any, kind: str, nearest: dict[str, Any], queries: np.ndarray, threshold: np.ndarray, wanted: float
) -> Trial:
    """wanted: the recall; of a probing that is far from it, some queries tell enough."""
    found: list[float] = []
    times = []
    for query, least in zip(queries, threshold):
        began = time.perf_counter()
        distances = dataset.to_table(columns=["_distance"], nearest={**nearest, "q": query})["_distance"].to_numpy()
        times.append(time.perf_counter() - began)
        found.append((int((1.0 - distances >= least - 1e-4).sum()) - 1) / max(nearest["k"] - 1, 1))
        if len(found) == FIRST_QUERIES and statistics.mean(found) < wanted - HOPELESS:
            break
    return Trial(kind, min(1.0, statistics.mean(found)), 1000 * statistics.median(times), 0.0)


def _ladders(kind: str) -> Iterator[list[dict[str, int]]]:
    """Ways to probe: in each list, from few candidates to many."""
    probes = [4, 8, 16, 32, 64, 128, 512]
    if kind == "exact":
        yield [{}]
    elif kind == "ivf_flat":
        yield [{"nprobes": n} for n in probes]
    elif kind == "ivf_hnsw_sq":
        for refine in (1, 4, 10):
            yield [
                {"nprobes": n, "ef": e, "refine_factor": refine} for e, n in ((50, 8), (100, 8), (200, 32), (400, 512))
            ]
    else:
        for refine in (2, 5, 10, 20, 50):
            yield [{"nprobes": n, "refine_factor": refine} for n in probes]


def _tune(lake: Lake, report: IndexReport, recall: float) -> None:
    """Measures the index that is there, unless nothing about it changed, and stores the probing for searches."""
    dataset = newest(lake, "frames")
    config = dataset.config()
    if report.built == "current" and TUNING + report.column in config:
        report.probing = json.loads(config[TUNING + report.column])
        return
    trial = tune(dataset, report.column, report.kind, recall)
    report.probing, report.recall, report.p50_ms = trial.probing, trial.recall, trial.p50_ms
    stored = {TUNING + report.column: json.dumps(report.probing)}
    if report.tried:
        choice = {"rows": report.rows, "tried": [asdict(t) for t in report.tried]}
        stored[CHOICE + report.column] = json.dumps(choice)
    # A config update conflicts with a takeover only where both write one key: the epoch goes along.
    lake.change("frames", "tune", lambda ds: ds.update_config({**stored, EPOCH: str(epoch_of(ds))}))


# -- building --------------------------------------------------------------------------------------------------------


def _build_vectors(lake: Lake, column: str, kind: str, rows: int) -> None:
    dataset = newest(lake, "frames")
    if kind == "ivf_pq" and rows < 256:
        raise UsageError(f"an ivf_pq index needs 256 vectors, and {column} has {rows}: `kind` ivf_flat needs none")
    options = _options(kind, column, rows, dataset.schema.field(column).type.list_size)

    def build(dataset: Any) -> None:
        if worth_distributing(dataset):
            import lance_ray

            rate = min(256, rows // options["num_partitions"], rows // 256 if kind == "ivf_pq" else 256)
            count = workers(len(dataset.get_fragments()))
            lance_ray.create_index(
                dataset.uri, column, kind.upper(), sample_rate=max(2, rate), num_workers=count, **options
            )
        else:
            dataset.create_index(column, kind.upper(), **options)

    try:
        lake.change("frames", f"index {column} of", build)
    except (ValueError, RuntimeError) as e:
        raise VfmError(f"cannot index {column}: {str(e).split(chr(10))[0][:300]}") from e


def _options(kind: str, column: str, rows: int, dim: int) -> dict[str, Any]:
    partitions = max(1, rows // 250_000) if kind == "ivf_hnsw_sq" else max(1, round(rows**0.5))
    options = {"metric": "cosine", "num_partitions": partitions, "name": f"{column}_idx", "replace": True}
    # Sub-vectors of 8 dimensions, or the largest smaller width that divides.
    return options | ({"num_sub_vectors": dim // np.gcd(dim, 8)} if kind == "ivf_pq" else {})


def _extend(lake: Lake, table: str, name: str) -> Literal["extended", "current"]:
    if not newest(lake, table).stats.index_stats(name)["num_unindexed_rows"]:
        return "current"
    lake.change(table, f"extend {name} of", lambda ds: ds.optimize.optimize_indices(index_names=[name]))
    return "extended"


def _index_names(dataset: Any) -> set[str]:
    return {index.name for index in dataset.describe_indices()}


def _index_kind(dataset: Any, name: str) -> str | None:
    if name not in _index_names(dataset):
        return None
    return str(dataset.stats.index_stats(name)["index_type"]).lower()


def _sample_vectors(dataset: Any, column: str, count: int) -> np.ndarray:
    """Unit vectors of at most `count` rows, drawn by lot, float32 (N, D)."""
    rows = dataset.count_rows()
    picked = np.sort(np.random.default_rng(0).choice(rows, min(rows, 2 * count), replace=False))
    cells = dataset.take(picked.tolist(), columns=[column])[column].drop_null()[:count].combine_chunks()
    array = cells if isinstance(cells, pa.Array) else cells.chunk(0)
    vectors = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(array), -1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# -- where it is done ------------------------------------------------------------------------------------------------


def ray_is_running() -> bool:
    """Whether this process is connected to a Ray."""
    ray = sys.modules.get("ray")
    return bool(ray is not None and ray.is_initialized())


def data_bytes(dataset: Any) -> int:
    """Bytes of the data files that this version of a table refers to."""
    return fragment_bytes(dataset.get_fragments())


def fragment_bytes(fragments: Iterable[Any]) -> int:
    """Bytes of the data files of fragments."""
    return sum(d.file_size_bytes or 0 for f in fragments for d in f.data_files())


def worth_distributing(dataset: Any) -> bool:
    """Whether a Ray is running, and the table large enough for it."""
    return ray_is_running() and data_bytes(dataset) >= DISTRIBUTED_BYTES


def workers(fragments: int) -> int:
    """How many work on a number of fragments; one CPU is left to others."""
    import ray

    return max(1, min(fragments, int(ray.cluster_resources().get("CPU", 1)) - 1))


def newest(lake: Lake, table: str) -> Any:
    """The newest version of a table. VfmError where it vanished."""
    dataset = lake.dataset(table)
    if dataset is None:
        raise VfmError(f"table {table} of {lake.root} vanished")
    return dataset
