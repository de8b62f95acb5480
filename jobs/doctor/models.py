"""Models: whether the default one's weights and those of a lake are here, and what would run them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from pipelines.lake import Lake
from pipelines.lake.health import Finding
from pipelines.lake.keys import op_keys
from pipelines.lake.schema import facts_of
from vfm_ops.embed import remembered_choice
from vfm_ops.errors import VfmError
from vfm_ops.models.checkpoint import remembered_digest
from vfm_ops.models.device import resolve_device
from vfm_ops.models.openvino_runtime import native_precisions
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.models.shipped import DEFAULT_EMBEDDER
from vfm_ops.op_registry import known_ops, load_op


def examine_models(lake: Lake | None) -> list[Finding]:
    """The default embedding model, and those whose values are in a lake. No model is loaded; weights are read once."""
    findings = [default_finding()]
    if lake is not None:
        findings += lake_models(lake)
    return findings


def default_finding() -> Finding:
    """Whether the default model's weights are here, and which runtime would be chosen."""
    spec = DEFAULT_EMBEDDER
    try:
        find_checkpoint(spec, "embed")
        chosen = remembered_choice(spec)
    except VfmError as error:
        return Finding(f"model {spec}", "weights are not here", False, str(error))
    if chosen:
        return Finding(f"model {spec}", f"weights here; runs on {chosen[0]} at {chosen[1]}, as measured")
    if resolve_device("auto") != "cpu":
        return Finding(f"model {spec}", "weights here; the first run measures precisions of torch on the card")
    if not native_precisions():
        advice = "pip install openvino: it is faster on a processor"
        return Finding(
            f"model {spec}", "weights here; runs on torch, openvino can't be imported", advice=advice, slow=True
        )
    precisions = ", ".join(native_precisions())
    return Finding(
        f"model {spec}", f"weights here; the first run measures openvino ({precisions}), and torch if none will do"
    )


def lake_models(lake: Lake) -> list[Finding]:
    """For each model whose values are in a lake: whether its weights are here, and are those that made the values."""
    digests: dict[str, tuple[str, Callable[[], str]]] = {}
    for field in lake.schema("frames"):
        facts = facts_of(field)
        if "spec" in facts and facts.get("digest"):
            digests[facts["spec"]] = facts["digest"], partial(_digest_of_spec, facts["spec"])
    for title, row in op_keys(lake).items():
        if row["digest"] and row["name"] != "embed" and row["name"] in known_ops():
            entry = {row["name"]: json.loads(row["settings"])}
            digests[f"of op {title}"] = row["digest"], partial(_digest_of_op, entry)
    return [_compared(f"model {what}", stored, here) for what, (stored, here) in digests.items()]


def _digest_of_spec(spec: str) -> str:
    return remembered_digest(find_checkpoint(spec, "embed"))


def _digest_of_op(entry: dict[str, Any]) -> str:
    return load_op(entry).digest()


def _compared(what: str, stored: str, here: Callable[[], str]) -> Finding:
    try:
        found = here()
    except VfmError as error:
        return Finding(what, "can't be had here, and made values of the lake", False, str(error))
    if found != stored:
        said = f"weights here have digest {found[:16]}, those of the lake's values {stored[:16]}"
        return Finding(what, said, False, "restore those weights, or fill the lake anew under another name")
    return Finding(what, "weights here are those of the lake's values")
