"""`vfm bench gpu`, detection: Grounding DINO tiny and OWLv2 base at their published sizes, with random weights.

Whole calls of the product's detectors, then their halves: preparing pictures, and the network on prepared ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from jobs.bench.detect_peers import PROMPTS
from jobs.bench.gpu_measure import Row, Session, Task, count
from jobs.bench.random_detectors import save_random
from vfm_ops.detect.base import Detector
from vfm_ops.detect.loading import load_detector
from vfm_ops.models.calibration import dead_leaves
from vfm_ops.models.runtime import Precision

OURS = "ours, precision auto"
FAMILIES = {"grounding-dino": "Grounding DINO tiny", "owlv2": "OWLv2 base"}


def tasks(session: Session) -> Iterator[Task]:
    """Rows of each family."""
    for family, name in FAMILIES.items():
        detector = cache(partial(make_detector, session, family))
        what = {"what": f"detect, {session.named(name)}: images/s"}
        for batch in (2,) if session.quick else (1, 8):
            yield {**what, "way": OURS, "batch": batch}, partial(whole, session, detector, "auto", batch)
        yield {**what, "way": "float32", "batch": batch}, partial(whole, session, detector, "exact", batch)
        yield {**what, "way": "pictures prepared", "batch": batch}, partial(prepared, session, detector, batch)
        for label, layout in (("network alone", None), ("network alone, channels-last", torch.channels_last)):
            yield {**what, "way": label, "batch": batch}, partial(network, session, detector, batch, layout)


def make_detector(session: Session, family: str, precision: Precision) -> Detector:
    """The product's detector of a family, batches of any size at once."""
    folder = session.folder / family
    if not folder.exists():
        save_random(family, folder, size="tiny" if session.quick else "real")
    return load_detector(f"{family}:{folder}", device=str(session.device), precision=precision, batch_size=8)


def pictures(session: Session, batch: int) -> list[np.ndarray]:
    """uint8 (H, W, 3) each."""
    return list(dead_leaves(batch, 60, 80) if session.quick else dead_leaves(batch, 720, 1280))


def whole(session: Session, detector: Callable[[Precision], Detector], precision: Precision, batch: int) -> Row:
    """Pictures on the host to boxes on the host."""
    made, images = detector(precision), pictures(session, batch)
    timed = session.time(lambda: made.detect(images, list(PROMPTS)))
    note = str(made.autocast or torch.float32).removeprefix("torch.")
    return session.row(batch, timed, count(lambda: made.detect(images, list(PROMPTS))), note)


def prepared(session: Session, detector: Callable[[str], Detector], batch: int) -> Row:
    """Pictures on the host to the network's inputs on the device, by the detector's own processor."""
    made, images = detector("auto"), pictures(session, batch)
    return session.row(batch, session.time(lambda: _prepare(made, images)))


def network(session: Session, detector: Callable[[str], Detector], batch: int, layout: Any) -> Row:
    """The network on inputs that lie on the device, text tower included, answers left there."""
    made, images = detector("auto"), pictures(session, batch)
    processor: Any = made.processor  # type: ignore[attr-defined]
    texts: Any = [". ".join(PROMPTS) + "."] * batch
    if made.family == "grounding-dino":
        words = processor.tokenizer(texts, return_tensors="pt", return_token_type_ids=True)
    else:
        words = processor(text=[list(PROMPTS)] * batch, return_tensors="pt")
    inputs = {**words.to(made.device), **_prepare(made, images)}
    model: Any = made.model  # type: ignore[attr-defined]
    model = model.to(memory_format=layout) if layout is not None else model

    @torch.no_grad()
    def run() -> Any:
        with torch.autocast(made.device.type, dtype=made.autocast, enabled=made.autocast is not None):
            return model(**inputs)

    return session.row(batch, session.time(run), count(run))


def _prepare(detector: Any, images: list[np.ndarray]) -> dict[str, Any]:
    return dict(
        detector.processor.image_processor(
            images, return_tensors="pt", input_data_format="channels_last", device=detector.device
        )
    )
