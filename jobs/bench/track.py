"""`vfm bench track`: our tracker beside transformers' session on the same random weights and real frames, alternating."""

from __future__ import annotations

from typing import Any

from jobs.bench.media import read_frames, real_clips


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of speed for each number of objects, then of resident memory; `quick` leaves memory out."""
    from jobs.bench.track_peers import bench_track

    report = bench_track(
        None, list(read_frames(real_clips()[0], 120)), timed_frames=20 if quick else 60, memory=not quick
    )
    return [*_speed(report["speed"]), *(_memory(report["memory"]) if report["memory"] else [])]


def _speed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for row in found:
        count = row["objects"]
        note = f"image encoder compiled: {row['ours_runtime']:.1f}" if "ours_runtime" in row else None
        rows.append({
            "what": f"{count} object{'s' * (count > 1)}: frames/s", "ours": row["ours"], "transformers": row["transformers"],
            "ratio": row["speedup"], "bar": "at least 1.8" if count == 8 else None, "note": note,
        })  # fmt: skip
    first, last = found[0], found[-1]
    rows.append({
        "what": f"time a frame, {last['objects']} objects over {first['objects']}", "ours": last["against_one"],
        "transformers": first["transformers"] / last["transformers"], "bar": "at most 2.0",
    })  # fmt: skip
    return rows


def _memory(found: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "what": "resident MB after 5,000 frames over 500, 4 objects", "ours": found["ours_ratio"], "bar": "at most 1.02",
            "note": f"{found['ours_early']:.0f} and {found['ours_late']:.0f} MB; memories held: {found['bank_late']:.2f} MB",
        },
        {
            "what": "resident MB after 500 frames over 100, 4 objects",
            "transformers": found["theirs_late"] / found["theirs_early"],
            "note": f"{found['theirs_per_frame']:.2f} MB more a frame, for as long as the video is",
        },
    ]  # fmt: skip
