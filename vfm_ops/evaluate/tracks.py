"""Tracking: HOTA (Luiten et al., IJCV 2020), IDF1 (Ristani et al. 2016), MOTA (Bernardin et al. 2008), by TrackEval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vfm_ops.errors import UsageError

Frame = Mapping[str, Any]
Sequences = Mapping[str, Sequence[Frame]] | Sequence[Frame]


def track_metrics(
    ground_truth: Sequences, predictions: Sequences, *, iou_threshold: float = 0.5, per_sequence: bool = False
) -> dict[str, Any]:
    """HOTA and its parts (means over localisation thresholds 0.05 to 0.95), IDF1, MOTA, and the counts behind them.

    A sequence is a list of frames; a frame maps `ids` to N ids (any hashable, unique on the frame) and either `boxes`
    to (N, 4) xyxy or `masks` to N COCO RLEs; `labels`, N names, is optional: boxes of different labels never match.
    Several sequences are a mapping name -> sequence, and combine as in the MOT challenge. iou_threshold is that of IDF1
    and MOTA. With per_sequence the result has `sequences` too: name -> figures. Raises UsageError for sequences that
    don't fit each other.
    """
    truth, found = _named(ground_truth), _named(predictions)
    if truth.keys() != found.keys():
        raise UsageError(f"sequences differ: {sorted(truth.keys() ^ found.keys())[0]!r} is on one side only")
    metrics = _metrics(iou_threshold)
    results: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    for sequence in truth:
        data = sequence_data(truth[sequence], found[sequence], sequence)
        for name, metric in metrics.items():
            results[name][sequence] = metric.eval_sequence(data)
    total = _figures({name: metric.combine_sequences(results[name]) for name, metric in metrics.items()})
    if per_sequence:
        alone = {s: {n: m.combine_sequences({s: results[n][s]}) for n, m in metrics.items()} for s in truth}
        total["sequences"] = {s: _figures(a) for s, a in alone.items()}
    return total


def _named(sequences: Sequences) -> dict[str, Sequence[Frame]]:
    named = dict(sequences) if isinstance(sequences, Mapping) else {"sequence": sequences}
    if not named:
        raise UsageError("there is no sequence to measure")
    return named


def _metrics(iou_threshold: float) -> dict[str, Any]:
    # TrackEval prints on import when a benchmark's extra package is missing; none of those is used here.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            from trackeval.metrics import CLEAR, HOTA, Identity
        except ImportError as error:
            raise UsageError("tracking metrics need TrackEval: pip install 'vfm-pipelines[eval]'") from error
    config = {"THRESHOLD": iou_threshold, "PRINT_CONFIG": False}
    return {"hota": HOTA(), "clear": CLEAR(config), "identity": Identity(config)}


def _figures(combined: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    hota, clear, identity = combined["hota"], combined["clear"], combined["identity"]
    figures: dict[str, Any] = {k: float(np.mean(hota[k])) for k in ("HOTA", "DetA", "AssA", "LocA")}
    figures |= {k: float(identity[k]) for k in ("IDF1", "IDR", "IDP")}
    figures |= {k: float(clear[k]) for k in ("MOTA", "MOTP")}
    counts = {"TP": "CLR_TP", "FN": "CLR_FN", "FP": "CLR_FP", "IDSW": "IDSW", "MT": "MT", "ML": "ML", "Frag": "Frag"}
    return figures | {ours: int(clear[theirs]) for ours, theirs in counts.items()}


def sequence_data(truth: Sequence[Frame], found: Sequence[Frame], name: str = "sequence") -> dict[str, Any]:
    """One sequence as TrackEval's metrics read it: ids as 0..K-1, similarities (ground truth x predictions) a frame."""
    if len(truth) != len(found):
        raise UsageError(f"sequence {name!r} has {len(truth)} frames of ground truth, {len(found)} of predictions")
    data: dict[str, Any] = {"num_timesteps": len(truth), "seq": name}
    for side, frames in (("gt", truth), ("tracker", found)):
        index: dict[Any, int] = {}
        ids = []
        for t, frame in enumerate(frames):
            own = [index.setdefault(i, len(index)) for i in frame["ids"]]
            if len(set(own)) != len(own):
                raise UsageError(f"frame {t} of sequence {name!r} has an id twice")
            ids.append(np.asarray(own, dtype=int))
        data |= {f"{side}_ids": ids, f"num_{side}_ids": len(index), f"num_{side}_dets": int(sum(map(len, ids)))}
    data["similarity_scores"] = [similarity(a, b) for a, b in zip(truth, found)]
    return data


def similarity(truth: Frame, found: Frame) -> np.ndarray:
    """IoU, float64 (ground truth, predictions), of masks where both have them, else of boxes; 0 between two labels."""
    from pycocotools import mask as rle

    shape = (len(truth["ids"]), len(found["ids"]))
    if 0 in shape:
        return np.zeros(shape)
    kind = "masks" if "masks" in truth and "masks" in found else "boxes"
    shapes = [_shapes(frame, kind) for frame in (truth, found)]
    scores = np.asarray(rle.iou(*shapes, [0] * shape[1]), dtype=np.float64).reshape(shape)
    if "labels" in truth and "labels" in found:
        same = np.asarray(list(truth["labels"]))[:, None] == np.asarray(list(found["labels"]))[None]
        scores = np.where(same, scores, 0.0)
    return scores


def _shapes(frame: Frame, kind: str) -> Any:
    count = len(frame["ids"])
    if kind not in frame or len(frame[kind]) != count:
        raise UsageError(f"a frame has {count} ids, but {len(frame.get(kind, ()))} {kind}")
    if kind == "masks":
        return [{"size": [int(v) for v in m["size"]], "counts": m["counts"]} for m in frame["masks"]]
    boxes = np.asarray(frame["boxes"], dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
