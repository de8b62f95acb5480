"""A small lake with everything that a page can show, made without a pipeline run: real photographs, a real clip, its shots,
detections and a track; embedded by a tiny CLIP with random weights. And tiny models for each task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.cli import main
from pipelines.lake import Lake, embedding_field, make_frame_id
from vfm_ops.embed import load_embedder
from vfm_ops.media.frame import DecodeSettings, jpeg_luma
from vfm_ops.media.limits import Limits
from vfm_ops.media.quality import frame_quality
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.track.masks import encode_rle

# The clip's hard cuts come after these frames.
CUTS = (29, 75, 136, 186, 241)


def tiny_clip(folder: Path) -> str:
    """Spec of a CLIP of a few thousand weights, with a tokenizer of its own."""
    import torch

    from vfm_ops.pocket.clip import make_model, save
    from vfm_ops.pocket.text import make_tokenizer

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    folder.mkdir(parents=True)
    save(make_model(tokenizer, width=32, depth=1, text_depth=1).eval(), tokenizer, folder)
    return f"clip:{folder}"


def tiny_detector(folder: Path) -> str:
    """Spec of an OWL-ViT with random weights."""
    from jobs.bench.random_detectors import save_random

    return f"owlvit:{save_random('owlvit', folder)}"


def tiny_sam2(folder: Path) -> str:
    """Spec of a SAM 2 video checkpoint with random weights, of 128-pixel inputs."""
    from transformers import Sam2ImageProcessor

    from tests.vfm_ops.segment.conftest import enliven
    from tests.vfm_ops.track.conftest import tiny_model

    model = tiny_model(0)
    enliven(model, 0)
    model.save_pretrained(folder)
    Sam2ImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder)
    return f"sam2:{folder}"


def make_lake(root: Path, media: Path, spec: str) -> Lake:
    """Ingests a folder of stills and videos, and fills the tables as a run would."""
    assert main(["ingest", str(media), "--lake", str(root)]) == 0
    lake = Lake.open(root)
    embedder = load_embedder(spec)
    facts = {n: getattr(embedder, n) for n in ("digest", "runtime", "precision")} | {"preprocess": "fast"}
    field = embedding_field(spec, embedder.dim, facts)
    for table in ("frames", "shots", "detections", "tracks", "ledger"):
        lake.ensure(table, [field] if table == "frames" else [])
    settings = DecodeSettings(views={"m": embedder.view}, jpeg_max_side=640)
    rows: list[dict] = []
    with Sandbox(settings) as sandbox:
        for asset in lake.read("assets").to_pylist():
            source = MediaSource(asset["uri"])
            if asset["media_type"] == "image":
                frames = [sandbox.image(source)]
            else:
                frames = list(sandbox.frames(source, np.arange(0, sandbox.probe(source).frame_count, 15)))
            rows += [frame_row(asset["asset_id"], f) | {"view": f.views["m"]} for f in frames]
            _write_asset(lake, asset, frames)
    vectors = embedder.embed_images(np.stack([r.pop("view") for r in rows])).astype(np.float16)
    for row, vector in zip(rows, vectors):
        row[field.name] = vector.tolist()
    write(lake, "frames", rows)
    return lake


def frame_row(asset_id: str, frame) -> dict:
    """A row of frames, but for the embedding."""
    return {
        "frame_id": make_frame_id(asset_id, frame.frame_index),
        "asset_id": asset_id,
        "run_key": "r.1",
        "frame_index": frame.frame_index,
        "pts_s": frame.pts_s,
        "width": frame.width,
        "height": frame.height,
        "jpeg": frame.jpeg,
        "quality": frame_quality(jpeg_luma(frame.jpeg, Limits())),
    }


def write(lake: Lake, table: str, rows: list[dict]) -> None:
    """Commits rows; what they lack is null."""
    schema = lake.schema(table)
    columns = [pa.array([r.get(f.name) for r in rows], f.type) for f in schema]
    lake.commit(table, lake.write_fragments(table, pa.table(columns, schema)))


def _write_asset(lake: Lake, asset: dict, frames: list) -> None:
    own = {"asset_id": asset["asset_id"], "run_key": "r.1"}
    first = frames[0]
    boxes = [(0.2, 0.2, 0.6, 0.7, "cat", 0.91), (0.55, 0.3, 0.95, 0.9, "person", 0.64)]
    size = np.array([first.width, first.height] * 2)
    detections = [
        {
            "detection_id": f"{asset['asset_id']}:{f.frame_index}:{i}",
            "frame_id": make_frame_id(asset["asset_id"], f.frame_index),
            "frame_index": f.frame_index,
            "model": "owlvit:tiny",
            "prompt": label,
            "label": label,
            "score": score,
            "box": (np.array(box) * size).tolist(),
            **own,
        }
        for f in frames[:1]
        for i, (*box, label, score) in enumerate(boxes)
    ]
    write(lake, "detections", detections)
    counts = {"shots": 0, "frames": len(frames), "detections": len(detections), "tracks": 0}
    if asset["media_type"] == "video":
        counts |= _write_video(lake, own, frames, first)
    write(lake, "ledger", [{**own, "recipe": "r", "attempt": 1, **counts, "run_id": "test"}])


def _write_video(lake: Lake, own: dict, frames: list, first) -> dict:
    fps = 25.0
    starts, ends = [0, *(c + 1 for c in CUTS)], [*CUTS, frames[-1].frame_index]
    shots = [
        {
            "shot_id": f"{own['asset_id']}:{a}",
            "start_frame": a,
            "end_frame": b,
            "start_s": a / fps,
            "end_s": (b + 1) / fps,
            "detector": "hsv",
            **own,
        }
        for a, b in zip(starts, ends)
        if a <= b
    ]
    write(lake, "shots", shots)
    tracks = []
    for f in frames[:6]:
        mask = np.zeros((first.height, first.width), bool)
        x = 20 + f.frame_index
        mask[60:140, x : x + 60] = True
        track = {
            "track_id": f"{own['asset_id']}:1",
            "frame_index": f.frame_index,
            "pts_s": f.pts_s,
            "label": "bicycle",
            "box": [x, 60, x + 60, 140],
            "mask": encode_rle(mask),
            "score": 0.8,
            "visible": True,
            **own,
        }
        tracks.append(track)
    write(lake, "tracks", tracks)
    return {"shots": len(shots), "tracks": len(tracks)}
