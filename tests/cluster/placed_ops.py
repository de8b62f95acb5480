"""Ops that tell on which node they ran, and how many of them shared its device."""

from __future__ import annotations

import pyarrow as pa
import ray

from vfm_ops import op


def where() -> str:
    context = ray.get_runtime_context()
    return f"{context.get_node_id()} {context.get_assigned_resources().get('card1', 0):g}"


class Near(op.Op):
    """Where frames are decoded."""

    name, adds, needs = "near", {"near": pa.string()}, op.View(8)

    def run(self, images):
        return [where() for _ in images]


class Model(op.Op):
    """A model on the device."""

    name, adds, needs = "model", {"model_at": pa.string()}, op.View(96)

    def run(self, images):
        return [where() for _ in images]


class Other(op.Op):
    """Another one, that shares it."""

    name, adds, needs = "other", {"other_at": pa.string()}, op.View(64)

    def run(self, images):
        return [where() for _ in images]
