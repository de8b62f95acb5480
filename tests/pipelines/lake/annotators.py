"""People who annotate while a run writes: an op that waits for them, and the process that each of them is."""

from __future__ import annotations

import os
import sys

import pyarrow as pa

from pipelines.lake import Lake
from vfm_ops import op

HELD, GO = "VFM_TEST_HELD", "VFM_TEST_GO"  # pipes: the run has begun; the annotators are done


@op.op(adds={"seen": pa.int32()}, needs=op.View(8))
def waits_for_annotators(images):
    """Says, once, that the run is in the middle of its work, and goes on when it is told to."""
    marker = f"{os.environ[HELD]}.said"
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return [1 for _ in images]
    with open(os.environ[HELD], "w") as pipe:
        pipe.write("held")
    with open(os.environ[GO]) as pipe:
        pipe.read()
    return [1 for _ in images]


def annotate(root: str, who: str, rounds: int, frame_ids: list[str]) -> None:
    """In each round a new version of what both speak of, and boxes of one's own."""
    lake = Lake.open(root)
    for number in range(rounds):
        shared = {"frame_id": frame_ids[0], "object_id": "shared", "label": f"{who}{number}", "box": [1, 2, 30, 40]}
        own = [{"frame_id": i, "label": f"{who}{number}", "box": [number, 1, 20, 30]} for i in frame_ids]
        lake.add_annotations([shared, *own], author=who)


if __name__ == "__main__":
    annotate(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
