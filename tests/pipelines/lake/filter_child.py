"""Run as a program: LAKE SEED COUNT. Plans, counts, reads and searches under generated conditions, as a user would; prints what
became of them. Its exit code says whether one ended the process: a crash here is no crash of the tests."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter

import numpy as np
import psutil

from pipelines.lake import Lake
from pipelines.lake.query import check_filter, nearest_frames
from pipelines.search.run import checked_split
from tests.pipelines.lake.filter_grammar import make_filter
from vfm_ops.errors import UsageError


def main(root: str, seed: int, count: int) -> None:
    """Prints one JSON document: outcomes by kind, the slowest condition, and how memory grew over the second half."""
    lake, rng = Lake.open(root), random.Random(seed)
    column = next(f.name for f in lake.schema("frames") if f.name.startswith("emb_"))
    ways = {
        "split": lambda where: checked_split(lake, where),
        "check": lambda where: check_filter(lake, "frames", where),
        "count": lambda where: lake.count("frames", where),
        "read": lambda where: lake.read("frames", ["frame_id"], where),
        "nearest": lambda where: nearest_frames(lake, column, np.ones(8), 3, where, ["frame_id"]),
    }
    seen: Counter[str] = Counter()
    slowest, odd, memory = (0.0, ""), [], []
    for number in range(count):
        where, way = make_filter(rng), rng.choice(list(ways))
        print(repr(where[:300]), way, file=sys.stderr)  # the last line is the one that ended the process
        began = time.process_time()
        try:
            ways[way](where)
            seen["answered"] += 1
        except UsageError as e:
            seen["refused"] += 1
            if "\n" in str(e) or len(str(e)) > 1500:
                odd.append(str(e)[:200])
        except BaseException as e:
            odd.append(f"{way} {where[:200]!r}: {type(e).__name__}: {str(e)[:200]}")
        slowest = max(slowest, (time.process_time() - began, where[:200]))
        if number % max(1, count // 10) == 0:
            memory.append(psutil.Process().memory_info().rss >> 20)
    memory.append(psutil.Process().memory_info().rss >> 20)
    half = len(memory) // 2
    print(
        json.dumps({"seen": seen, "slowest": slowest, "odd": odd, "grown_mb": memory[-1] - memory[half], "rss": memory})
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
