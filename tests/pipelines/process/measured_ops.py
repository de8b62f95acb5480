"""Ops whose work is counted by hand: one fails on the brightest picture, one drops the darkest, one ends its worker once."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from vfm_ops import op


@op.op(adds={"shade": pa.float32()}, needs=op.View(16))
def shade(images):
    if images.max() > 240:
        raise ValueError("too bright")
    return images.mean(axis=(1, 2, 3))


@op.op(needs=op.View(16))
def lit(images):
    return [bool(image.mean() > 10) for image in images]


class Mark(op.Settings):
    """mark: a file that is there once the op has ended a worker."""

    mark: str


class EndsItsWorker(op.Op):
    name, adds, needs, main, Settings = "ends_its_worker", {"survived": pa.bool_()}, op.View(16), "mark", Mark

    def run(self, images):
        if not (mark := Path(self.settings.mark)).exists():
            mark.touch()
            os._exit(7)
        return [True] * len(images)
