"""`vfm bench track`: our tracker beside transformers' session on the same random weights and real frames, alternating."""

from __future__ import annotations

from typing import Any

from jobs.bench.media import read_frames, real_clips


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of speed for each number of objects, then of resident memory; `quick` leaves memory out."""
    from jobs.bench.track_peers import bench_track

    report = bench_track(
        None,
        list(read_frames(real_clips()[0], 120)),
        objects=(1, 4, 8, 32, 64),
        timed_frames=20 if quick else 60,
        memory=not quick,
    )
    return [*_speed(report["speed"]), *(_memory(report["memory"]) if report["memory"] else [])]


BARS = {8: "at least 2.7", 32: "at least 4"}


def _speed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours is as it is loaded: with the image encoder compiled, where a runtime is there that does it."""
    rows = []
    for row in found:
        count, ours = row["objects"], row.get("ours_runtime", row["ours"])
        rows.append({
            "what": f"{count} object{'s' * (count > 1)}: frames/s", "ours": ours, "transformers": row["transformers"],
            "ratio": ours / row["transformers"], "bar": BARS.get(count),
            "note": f"image encoder in torch: {row['ours']:.1f}",
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
