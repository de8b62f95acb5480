"""From fates to rows of `selections`: the last reasons are given, and every item becomes a row, kept or dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipelines.curation.clusters import ClusterState, spread_rank
from pipelines.curation.pool import Pool
from pipelines.selections import ROWS

if TYPE_CHECKING:
    from pipelines.curate import Decision

_BATCH = 8192


def settle_kept(pool: Pool, drawn: np.ndarray, state: ClusterState | None) -> None:
    """Gives every item that is still alive its reason for being kept: retrieved, stands for duplicates, or just passed."""
    rows = np.flatnonzero(pool.alive)
    found = np.array([int(r) in pool.seed_of for r in rows], bool)
    seeds = [pool.seed_of[int(r)] for r in rows[found]]
    names = [n for n, _ in seeds]
    match pool.recipe.retrieve.mode if pool.recipe.retrieve else None:
        case "nearest":
            pool.fates.settle("retrieved", rows[found], seed=names, cosine=np.array([c for _, c in seeds], np.float32))
        case "clusters":
            paths: np.ndarray | list[str] = state.paths(pool.label[rows[found]]) if state else []
            pool.fates.settle("seed_cluster", rows[found], cluster=paths, seed=names)
        case "classes":
            pool.fates.settle("seed_class", rows[found], label=names)
    rest = rows[~found]
    stands = pool.stands_for[rest] > 0
    preference = ", then ".join(pool.recipe.deduplicate.keep) or "first seen"
    pool.fates.settle("representative", rest[stands], count=pool.stands_for[rest[stands]], preference=preference)
    pool.fates.settle("passed", rest[~stands])


def selection_rows(name: str, key: str, decision: Decision) -> Iterator[pa.RecordBatch]:
    """Rows of a selection: those carried over, then the new ones in scan order, drawn ones once for each time drawn."""
    pool, base = decision.pool, decision.base
    if base is not None:
        carried = base.carried.set_column(
            ROWS.get_field_index("generation"), "generation", _constant(key, base.carried.num_rows)
        )
        yield from carried.cast(ROWS).to_batches(max_chunksize=_BATCH)
    rank = spread_rank(pool, decision.drawn) + (base.next_rank() if base is not None else 0)
    left = pool.fresh.copy()
    left[decision.drawn] = False
    dropped = np.flatnonzero(left)
    items = np.concatenate([decision.drawn, dropped])
    ranks = np.concatenate([rank, np.full(len(dropped), -1)])
    order = np.argsort(items, kind="stable")
    for low in range(0, len(items), _BATCH):
        part = order[low : low + _BATCH]
        yield _batch(name, key, pool, decision.state, items[part], ranks[part])


def _batch(
    name: str, key: str, pool: Pool, state: ClusterState | None, items: np.ndarray, rank: np.ndarray
) -> pa.RecordBatch:
    reasons, others, scores = zip(*pool.fates.reasons(items, pool.items.name), strict=True)
    labels = pool.label[items].tolist()
    columns = {
        "selection": _constant(name, len(items)),
        "frame_id": pool.items.frame_id.take(pa.array(items)),
        "kept": pa.array([r.kept for r in reasons]),
        "reason": pa.array([r.text for r in reasons]),
        "cluster": pa.array([state.path(k) if state and k >= 0 else None for k in labels], ROWS.field("cluster").type),
        "rank": pa.array([r if r >= 0 else None for r in rank.tolist()], pa.int64()),
        "kind": pa.array([r.kind for r in reasons]),
        "other": pa.array(others, pa.string()),
        "score": pa.array(scores, pa.float32()),
        "generation": _constant(key, len(items)),
    }
    return pa.record_batch([columns[f.name] for f in ROWS], schema=ROWS)


def _constant(value: str, count: int) -> pa.Array:
    return pa.array([value] * count, pa.string())
