"""Ops that tell which process ran them, and what Ray gave it."""

from __future__ import annotations

import os

import pyarrow as pa
import ray

from vfm_ops import op


def where():
    given = ray.get_runtime_context().get_assigned_resources()
    return f"{os.getpid()} {given.get('CPU', 0):g} {given.get('memory', 0) / 2**20:g}"


@op.op(adds={"first": pa.string()}, needs=op.View(8))
def first(images):
    return [where() for _ in images]


@op.op(needs=op.View(8))
def bright(images):
    return [bool(i.mean() > 60) for i in images]


class Second(op.Op):
    name, adds, needs = "second", {"second": pa.string(), "luma": pa.float32()}, op.View(8)

    def run(self, images):
        return {"second": [where() for _ in images], "luma": images.mean(axis=(1, 2, 3))}


@op.op(adds={"third": pa.string()}, needs=None, columns=("luma",))
def third(luma):
    return [where() for _ in luma]


class Late(op.Op):
    """Gives a value too few in its third batch."""

    name, adds, needs = "late", {"late": pa.int32()}, op.View(8)
    batches = 0

    def run(self, images):
        self.batches += 1
        return [1] * (len(images) - (self.batches > 2))
