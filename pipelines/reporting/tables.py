"""The parts of a report that are sums over tables: counts, quality, quarantine, runs, shots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation.items import QUALITY, Items
from pipelines.lake import Lake
from pipelines.lake.sql import one_of
from pipelines.reporting.pictures import Thumbnails

COUNTED = ("assets", "shots", "frames", "detections", "tracks", "quarantine", "annotations")
_BINS, _VIDEOS, _RUNS = 32, 24, 40


def table_counts(lake: Lake) -> list[dict[str, Any]]:
    """Rows of each table; of annotations those that count."""
    return [{"table": table, "rows": len(getattr(lake, table))} for table in COUNTED]


def quality_histograms(items: Items, kept_N: np.ndarray | None) -> list[dict[str, Any]]:
    """For each measure: bin edges, how many of all items fall in each bin, and how many of the kept ones."""
    found = []
    for name in QUALITY:
        value_N = items.quality[name]
        known_N = np.isfinite(value_N)
        if not known_N.any():
            continue
        bottom, top = (float(v) for v in np.percentile(value_N[known_N], [0.5, 99.5]))
        # Sharpness is a variance, which spans orders of magnitude.
        bottom = max(bottom, 1e-2) if name == "sharpness" else bottom
        top = max(top, bottom + 1e-9)
        edges = np.geomspace(bottom, top, _BINS + 1) if name == "sharpness" else np.linspace(bottom, top, _BINS + 1)
        edges[[0, -1]] = bottom, top
        clipped_N = np.clip(value_N, bottom, top)
        kept = np.histogram(clipped_N[known_N & kept_N], edges)[0].tolist() if kept_N is not None else None
        everything = np.histogram(clipped_N[known_N], edges)[0].tolist()
        found.append({"measure": name, "low": bottom, "high": top, "all": everything, "kept": kept})
    return found


def quarantine_causes(lake: Lake) -> list[dict[str, Any]]:
    """Quarantined assets by stage and kind of error, the most frequent first, each with an example."""
    rows = lake.read("quarantine", ["stage", "error_type", "message", "uri", "salvaged_frames"])
    causes: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows.to_pylist():
        key = (row["stage"] or "", row["error_type"] or "")
        cause = causes.setdefault(key, {"stage": key[0], "error": key[1], "count": 0, "salvaged": 0})
        cause["count"] += 1
        cause["salvaged"] += row["salvaged_frames"] or 0
        cause.setdefault("message", (row["message"] or "")[:300])
        cause.setdefault("uri", row["uri"])
    return sorted(causes.values(), key=lambda cause: -cause["count"])


def run_history(lake: Lake) -> list[dict[str, Any]]:
    """The last runs, the newest first: what they did, for how long, and how efficiently."""
    rows = lake.read(
        "runs", ["run_id", "command", "recipe", "started_at", "ended_at", "counts", "efficiency"]
    ).to_pylist()
    history = []
    for row in sorted(rows, key=lambda r: r["started_at"], reverse=True)[:_RUNS]:
        counts = json.loads(row["counts"] or "{}")
        history.append(
            {
                "run": row["run_id"],
                "command": row["command"],
                "recipe": row["recipe"],
                "started": row["started_at"].strftime("%Y-%m-%d %H:%M"),
                "seconds": (row["ended_at"] - row["started_at"]).total_seconds(),
                "efficiency": row["efficiency"],
                "counts": {k: v for k, v in counts.items() if isinstance(v, int | float) and v},
            }
        )
    return history


def shot_timelines(lake: Lake, items: Items, kept_N: np.ndarray | None, thumbs: Thumbnails) -> list[dict[str, Any]]:
    """Of some videos, the most cut ones first: their shots, and their frames in time with a thumbnail for each shot."""
    shots = lake.read("shots", ["asset_id", "start_s", "end_s", "motion"])
    if not shots.num_rows:
        return []
    counts = (
        shots.group_by("asset_id")
        .aggregate([([], "count_all")])
        .sort_by([("count_all", "descending"), ("asset_id", "ascending")])
    )
    names = _asset_names(lake, counts["asset_id"].to_pylist()[:_VIDEOS])
    timelines = []
    for asset_id in counts["asset_id"].to_pylist()[:_VIDEOS]:
        mine = shots.filter(pc.equal(shots["asset_id"], asset_id)).sort_by("start_s").to_pylist()
        code = pc.index(items.asset_ids, asset_id).as_py()
        frames = np.flatnonzero(items.asset == code) if code >= 0 else np.zeros(0, np.int64)
        frames = frames[np.argsort(items.pts_s[frames], kind="stable")]
        faces = np.array([_middle(items, frames, s) for s in mine[:40]], np.int64) if len(frames) else frames
        timelines.append(
            {
                "name": names.get(asset_id, asset_id),
                "shots": [[s["start_s"], s["end_s"]] for s in mine],
                "faces": thumbs.of(faces) if len(faces) else [],
                "frames": [round(float(t), 2) for t in items.pts_s[frames][:2000]],
                "kept": kept_N[frames][:2000].astype(int).tolist() if kept_N is not None else None,
            }
        )
    return timelines


def _middle(items: Items, frames: np.ndarray, shot: dict[str, Any]) -> int:
    """The sampled frame nearest to a shot's middle."""
    middle = (shot["start_s"] + shot["end_s"]) / 2.0
    return int(frames[np.abs(items.pts_s[frames] - middle).argmin()])


def _asset_names(lake: Lake, asset_ids: list[str]) -> dict[str, str]:
    rows = lake.read("assets", ["asset_id", "uri", "member"], filter=one_of("asset_id", asset_ids)).to_pylist()
    return {r["asset_id"]: Path(r["member"] or r["uri"]).name for r in rows}


def item_names(lake: Lake, items: Items, chosen: np.ndarray) -> list[str]:
    """File name of each chosen item, with its time where it is a frame of a video."""
    assets, place = np.unique(items.asset[chosen], return_inverse=True)
    ids = items.asset_ids.take(pa.array(assets)).to_pylist()
    known: dict[str, str] = {}
    for low in range(0, len(ids), 500):
        known |= _asset_names(lake, ids[low : low + 500])
    names = [known.get(i, i) for i in ids]
    return [
        f"{names[p]} at {items.pts_s[i]:.1f} s" if items.video[i] else names[p]
        for i, p in zip(chosen.tolist(), place.tolist())
    ]
