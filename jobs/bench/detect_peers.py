"""How fast the detectors are beside transformers' own ways to run the same weights, and whether the boxes agree.

Two peers for each: the batch (processor, model, post-processing, as the model's documentation has it), and the
`zero-shot-object-detection` pipeline, which runs the model once a prompt. YOLO-World is in neither; it runs with its
vocabulary online and folded.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.bench.random_detectors import clip_text_config, clip_tokenizer, save_random
from vfm_ops.detect.base import Detector
from vfm_ops.detect.loading import load_detector
from vfm_ops.errors import UsageError
from vfm_ops.models.device import autocast_dtype, resolve_device
from vfm_ops.models.runtime import Precision

PEERS = {
    "grounding-dino": "GroundingDinoForObjectDetection",
    "owlvit": "OwlViTForObjectDetection",
    "owlv2": "Owlv2ForObjectDetection",
    "omdet-turbo": "OmDetTurboForObjectDetection",
}
PROMPTS = ("person", "bicycle", "red car", "dog", "cat", "traffic light", "couch", "the car")
THRESHOLD = 0.05


def bench_detect(
    families: Sequence[str] = (*PEERS, "yolo-world"),
    *,
    size: str = "tiny",
    device: str = "auto",
    precision: Precision = "exact",
    images: Sequence[np.ndarray] | None = None,
    batch: int = 4,
    rounds: int = 5,
    pipeline: bool = True,
) -> dict[str, Any]:
    """Time every family on random weights of 'tiny' or 'real' size.

    images: RGB uint8 of any sizes; None draws `batch` of 480 x 640. Runs alternate, and the median of `rounds` counts.
    Returns what was run (device, size, batch, prompts) and `families`: family -> images/s of "ours", "transformers",
    "pipeline" (for yolo-world "online" and "folded"), "speedup" over transformers' batch, and the largest difference of
    boxes in pixels and of scores.
    """
    unknown = [f for f in families if f not in (*PEERS, "yolo-world")]
    if unknown:
        raise UsageError(f"there is no benchmark of {unknown[0]!r}: {', '.join((*PEERS, 'yolo-world'))}")
    where = torch.device(resolve_device(device))
    pictures = list(images) if images is not None else _pictures(batch)
    report: dict[str, Any] = {}
    for family in families:
        if family == "yolo-world":
            report[family] = _bench_yolo_world(size, where, precision, pictures, rounds)
        else:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = save_random(family, Path(folder), size=size)
                report[family] = _bench_family(family, checkpoint, where, precision, pictures, rounds, pipeline)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    settings = {"device": name, "size": size, "precision": precision, "batch": len(pictures), "prompts": len(PROMPTS)}
    return settings | {"families": report}


def _bench_family(
    family: str,
    checkpoint: Path,
    device: torch.device,
    precision: Precision,
    pictures: list[np.ndarray],
    rounds: int,
    pipeline: bool,
) -> dict[str, float]:
    detector = load_detector(
        f"{family}:{checkpoint}", device=str(device), precision=precision, batch_size=len(pictures)
    )
    nms = 0.5 if family == "omdet-turbo" else None
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: detector.detect(
            pictures,
            list(PROMPTS),
            thresholds=THRESHOLD,
            nms_iou=nms,
            max_detections=10**6,
            clip=family == "omdet-turbo",
        ),
        "transformers": _transformers_batch(family, checkpoint, device, pictures),
    }
    if pipeline and family != "omdet-turbo":
        runs["pipeline"] = _transformers_pipeline(checkpoint, device, pictures)
    figures = _rates(runs, len(pictures), rounds, device)
    figures["speedup"] = figures["ours"] / figures["transformers"]
    return figures | _differences(runs["ours"](), runs["transformers"]())


def _transformers_batch(
    family: str, checkpoint: Path, device: torch.device, pictures: list[np.ndarray]
) -> Callable[[], list[dict[str, Any]]]:
    import transformers

    model = getattr(transformers, PEERS[family]).from_pretrained(checkpoint).eval().to(device)
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    sizes = [p.shape[:2] for p in pictures]
    texts = [list(PROMPTS)] * len(pictures)

    @torch.inference_mode()
    def run() -> list[dict[str, Any]]:
        inputs = processor(images=pictures, text=texts, return_tensors="pt").to(device)
        after = processor.post_process_grounded_object_detection
        more = {"input_ids": inputs["input_ids"]} if family == "grounding-dino" else {}
        return after(model(**inputs), threshold=THRESHOLD, target_sizes=sizes, **more)

    return run


def _transformers_pipeline(checkpoint: Path, device: torch.device, pictures: list[np.ndarray]) -> Callable[[], Any]:
    from PIL import Image
    from transformers import pipeline

    run = pipeline("zero-shot-object-detection", model=str(checkpoint), device=device)
    inputs = [{"image": Image.fromarray(p), "candidate_labels": list(PROMPTS)} for p in pictures]
    return lambda: run(inputs, threshold=THRESHOLD)


def _bench_yolo_world(
    size: str, device: torch.device, precision: Precision, pictures: list[np.ndarray], rounds: int
) -> dict[str, float]:
    online, folded = (
        _random_yolo_world("s" if size == "tiny" else "l", device, precision, len(pictures)) for _ in "ab"
    )
    folded.set_vocabulary(list(PROMPTS))
    if size == "tiny":
        online.image_size = folded.image_size = 160

    def run(detector: Detector) -> Callable[[], Any]:
        return lambda: detector.detect(pictures, list(PROMPTS), thresholds=THRESHOLD)

    figures = _rates({"online": run(online), "folded": run(folded)}, len(pictures), rounds, device)
    return figures | {"speedup": figures["folded"] / figures["online"]}


def _random_yolo_world(size: str, device: torch.device, precision: Precision, batch: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from vfm_ops.detect.yolo_world.backbone import SIZES
    from vfm_ops.detect.yolo_world.detector import YoloWorld
    from vfm_ops.detect.yolo_world.network import YoloWorldNetwork
    from vfm_ops.detect.yolo_world.text import TextEncoder

    torch.manual_seed(0)
    text = CLIPTextModelWithProjection(CLIPTextConfig(**clip_text_config(), num_hidden_layers=2)).eval().to(device)
    tokenizer = clip_tokenizer(77)
    encoder = TextEncoder(text, lambda texts: tokenizer(texts, padding=True, return_tensors="pt")["input_ids"])
    network = YoloWorldNetwork(SIZES[size])
    return YoloWorld(network, encoder, device, autocast_dtype(precision, device.type), batch)


def _rates(runs: dict[str, Callable[[], Any]], images: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Images a second of each run: a warm-up each, then rounds in turn, so that a slow phase hits all alike."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
    return {name: images / statistics.median(t) for name, t in times.items()}


def _differences(ours: list[Any], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """Largest difference of boxes (pixels) and scores, both sorted by score; infinite when the counts differ."""
    boxes = scores = 0.0
    for a, b in zip(ours, theirs):
        order = torch.argsort(b["scores"], descending=True, stable=True)
        if len(a) != len(order):
            return {"box_difference_px": float("inf"), "score_difference": float("inf")}
        if len(a):
            boxes = max(boxes, float(np.abs(a.boxes - b["boxes"][order].float().cpu().numpy()).max()))
            scores = max(scores, float(np.abs(a.scores - b["scores"][order].float().cpu().numpy()).max()))
    return {"box_difference_px": boxes, "score_difference": scores}


def _pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 15, 20, 3), dtype=np.uint8)
    return [np.ascontiguousarray(np.kron(c, np.ones((32, 32, 1), np.uint8))) for c in coarse]
