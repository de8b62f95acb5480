"""The deep part of `vfm verify`: what is stored is looked at, not only counted.

Every stored picture is decoded, and a sample of each model's vectors is computed again from the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.lake import Lake
from pipelines.lake.schema import facts_of
from vfm_ops.embed import load_embedder
from vfm_ops.errors import MediaError, VfmError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View
from vfm_ops.models.device import cpu_count

ROWS = 32
# A vector was computed from the decoded frame, and is compared with one from the stored JPEG of it, which differs a little;
# a vector of another picture, or of another model, lies far below.
LEAST_COSINE = 0.9


def verify_deep(lake: Lake, vectors: int = 256, seed: int = 0) -> list[str]:
    """Decodes every stored picture, and computes `vectors` vectors of each model again. Returns violations, a sentence each."""
    return [*_undecodable(lake), *(v for field in _models(lake) for v in _stray_vectors(lake, field, vectors, seed))]


def _models(lake: Lake) -> list[pa.Field]:
    return [f for f in lake.schema("frames") if (f.metadata or {}).get(b"spec")]


def _undecodable(lake: Lake) -> list[str]:
    bad: list[str] = []
    sandbox = _sandbox({})
    try:
        for batch in lake.scan("frames", ["frame_id", "jpeg"], "jpeg IS NOT NULL", batch_size=ROWS):
            bad += [i for i, frame in _decode(sandbox, batch) if isinstance(frame, MediaError)]
    finally:
        sandbox.close()
    return [f"frames: {len(bad)} stored pictures do not decode, such as that of {bad[0]}"] if bad else []


def _stray_vectors(lake: Lake, field: pa.Field, count: int, seed: int) -> list[str]:
    """Vectors of a column that are not those of their pictures."""
    facts = facts_of(field)
    known = {k: facts[k] for k in ("runtime", "precision", "preprocess") if k in facts}
    try:
        embedder = load_embedder(facts["spec"], threads=cpu_count(), **known)  # type: ignore[arg-type]
    except VfmError as e:
        return [f"frames: the vectors of {field.name} can't be computed again: {e}"]
    if facts.get("digest") not in (None, embedder.digest):
        return [f"frames: the vectors of {field.name} were made by other weights than {facts['spec']} has now"]
    views = {field.name: embedder.view}
    sandbox = _sandbox(views)
    worst: tuple[float, str] = (2.0, "")
    strays = checked = 0
    try:
        for batch in _sample(lake, field.name, count, seed):
            good = [(i, f) for i, f in _decode(sandbox, batch) if not isinstance(f, MediaError)]
            stored = dict(zip(batch["frame_id"].to_pylist(), batch[field.name].to_pylist()))
            if not good:
                continue
            seen = [f.views[field.name] for _, f in good]
            again = embedder.embed_images(seen if embedder.view.ragged else np.stack(seen)).tolist()
            for (frame_id, _), vector in zip(good, again):
                cosine = _cosine(stored[frame_id], vector)
                checked += 1
                strays += cosine < LEAST_COSINE
                worst = min(worst, (cosine, frame_id))
    finally:
        sandbox.close()
    if not strays:
        return []
    return [
        f"frames: {strays} of {checked} vectors of {field.name} are not those of their pictures; the farthest, of "
        f"{worst[1]}, has cosine {worst[0]:.3f}"
    ]


def _sample(lake: Lake, column: str, count: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Frames that have a picture and a vector, drawn by lot, ROWS at a time."""
    columns = ["frame_id", "jpeg", column]
    wanted = f"jpeg IS NOT NULL AND {column} IS NOT NULL"
    version = lake.table("frames").version
    ids = [b["_rowid"] for b in lake.scan("frames", ["frame_id"], wanted, with_row_id=True)]
    rows = pa.concat_arrays(ids).to_numpy() if ids else np.empty(0, np.uint64)
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    for start in range(0, len(drawn), ROWS):
        part = lake.take("frames", drawn[start : start + ROWS].tolist(), version, columns)
        yield from part.combine_chunks().to_batches()


def _sandbox(views: dict[str, View]) -> Sandbox:
    return Sandbox(DecodeSettings(views=views, jpeg=False), cpu_count())


def _decode(sandbox: Sandbox, batch: pa.RecordBatch) -> list[tuple[str, Frame | MediaError]]:
    stored = list(zip(batch["frame_id"].to_pylist(), batch["jpeg"].to_pylist()))
    return [(i, f) for (i, _), f in zip(stored, sandbox.images([MediaSource(i, data=d) for i, d in stored]))]


def _cosine(a: list[float], b: list[float]) -> float:
    u, v = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(u @ v) / max(float(np.linalg.norm(u)) * float(np.linalg.norm(v)), 1e-12)
