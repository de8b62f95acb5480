"""From decisions to rows of `selections`: the last reasons are given, and every item becomes a row, kept or dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.curation.clusters import ClusterState, spread_rank
from pipelines.curation.incremental import Base
from pipelines.curation.pool import Pool
from pipelines.curation.selections import ROWS

_BATCH = 8192


@dataclass
class CurationResult:
    """What was decided on every item. drawn: item numbers, repeats included; state: of a full run that clustered."""

    pool: Pool
    drawn: np.ndarray
    state: ClusterState | None
    base: Base | None
    funnel: list[tuple[str, int]]


def settle_kept(pool: Pool, drawn: np.ndarray, state: ClusterState | None) -> None:
    """Gives every item that is still alive its reason for being kept: retrieved, stands for duplicates, or just passed."""
    rows = np.flatnonzero(pool.alive)
    found = np.array([int(r) in pool.seed_of for r in rows], bool)
    seeds = [pool.seed_of[int(r)] for r in rows[found]]
    names = [n for n, _ in seeds]
    match pool.recipe.retrieve.mode if pool.recipe.retrieve else None:
        case "nearest":
            pool.decisions.settle(
                "retrieved", rows[found], seed=names, cosine=np.array([c for _, c in seeds], np.float32)
            )
        case "clusters":
            paths: np.ndarray | list[str] = state.paths(pool.label[rows[found]]) if state else []
            pool.decisions.settle("seed_cluster", rows[found], cluster=paths, seed=names)
        case "classes":
            pool.decisions.settle("seed_class", rows[found], label=names)
    rest = rows[~found]
    stands = pool.stands_for[rest] > 0
    preference = ", then ".join(pool.recipe.deduplicate.keep) or "first seen"
    pool.decisions.settle("representative", rest[stands], count=pool.stands_for[rest[stands]], preference=preference)
    pool.decisions.settle("passed", rest[~stands])


def selection_rows(name: str, key: str, result: CurationResult) -> Iterator[pa.RecordBatch]:
    """Rows of a selection: those that stay, then the new ones in scan order, drawn ones once for each time drawn."""
    pool, base = result.pool, result.base
    if base is not None:
        untouched = base.untouched.set_column(
            ROWS.get_field_index("generation"), "generation", _constant(key, base.untouched.num_rows)
        )
        yield from untouched.cast(ROWS).to_batches(max_chunksize=_BATCH)
    rank = spread_rank(pool, result.drawn) + (base.next_rank() if base is not None else 0)
    left = pool.fresh.copy()
    left[result.drawn] = False
    dropped = np.flatnonzero(left)
    items = np.concatenate([result.drawn, dropped])
    ranks = np.concatenate([rank, np.full(len(dropped), -1)])
    order = np.argsort(items, kind="stable")
    for low in range(0, len(items), _BATCH):
        part = order[low : low + _BATCH]
        yield _batch(name, key, pool, result.state, items[part], ranks[part])


def _batch(
    name: str, key: str, pool: Pool, state: ClusterState | None, items: np.ndarray, rank: np.ndarray
) -> pa.RecordBatch:
    reasons, others, scores = zip(*pool.decisions.reasons(items, pool.items.name), strict=True)
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
