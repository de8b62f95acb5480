"""`vfm bench gpu`, tracking: SAM 2 at the sizes of its Hiera tiny and base-plus checkpoints, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from jobs.bench.gpu_measure import Row, Session, Task, count, graphed
from jobs.bench.track_peers import FORWARD, WARM_UP, boxes_for
from vfm_ops.models.calibration import dead_leaves
from vfm_ops.track.load import compile_image_encoder
from vfm_ops.track.network import ImageEncoder, Sam2Network
from vfm_ops.track.tracker import Sam2Tracker

OURS = "ours, as loaded"
# facebook/sam2.1-hiera-base-plus, config.json; tiny is what transformers builds when nothing is said.
BASE_PLUS = {
    "hidden_size": 112, "num_attention_heads": 2, "blocks_per_stage": [2, 3, 16, 3],
    "embed_dim_per_stage": [112, 224, 448, 896], "num_attention_heads_per_stage": [2, 4, 8, 16],
    "global_attention_blocks": [12, 16, 20], "window_positional_embedding_background_size": [14, 14],
    "window_size_per_stage": [8, 4, 14, 7], "model_type": "sam2_hiera_det_model",
}  # fmt: skip


def tasks(session: Session) -> Iterator[Task]:
    """Rows of each model: a video of one object and of eight, then the image encoder's other ways, those that may fail last."""
    low = torch.bfloat16 if session.is_card else torch.float32
    last: list[Task] = []
    for size in ("pocket",) if session.quick else ("Hiera tiny", "Hiera base-plus"):
        network = cache(partial(make_network, size, session.device, low))
        for objects in (1,) if session.quick else (1, 8):
            what = {"what": f"track, SAM 2 {size}, {objects} objects: frames/s"}
            yield {**what, "way": OURS}, partial(frames_per_s, session, network, objects, None)
        for name, way in ENCODERS.items():
            yield {**what, "way": name}, partial(frames_per_s, session, network, objects, way)
        if session.is_card:
            full = partial(make_network, size, session.device, torch.float32)
            yield {**what, "way": "all in float32"}, partial(frames_per_s, session, full, objects, None)
            for name, way in CARD_ENCODERS.items():
                last.append(({**what, "way": name}, partial(frames_per_s, session, network, objects, way)))
    yield from last


def make_network(size: str, device: torch.device, dtype: torch.dtype) -> Sam2Network:
    """A SAM 2 with random weights."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    from vfm_ops.pocket.sam2 import make_model

    torch.manual_seed(0)
    if size == "pocket":
        return Sam2Network(make_model(), device, dtype)
    config: Any = Sam2VideoConfig()
    if size == "Hiera base-plus":
        vision = {"backbone_config": BASE_PLUS, "backbone_channel_list": [896, 448, 224, 112]}
        config = Sam2VideoConfig(vision_config={"model_type": "sam2_vision_model", **vision})
    return Sam2Network(Sam2VideoModel(config), device, dtype)


def frames_per_s(
    session: Session,
    network: Callable[[], Sam2Network],
    objects: int,
    encoder: Callable[[Sam2Network], ImageEncoder] | None,
) -> Row:
    """Frames/s of one video whose memory is full, each frame from the host, each answer's scores on it.

    encoder: another way to run the image encoder.
    """
    made = network()
    made.model.to(memory_format=torch.contiguous_format)  # whatever an earlier way made of it
    pictures = dead_leaves(2, 120, 160) if session.quick else dead_leaves(4, 720, 1280)
    frames = cycle(pictures)
    tracker = Sam2Tracker(made, FORWARD, encoder(made) if encoder is not None else None)
    tracker.track(next(frames), prompts=boxes_for(objects, *pictures.shape[1:3]))
    for _ in range(warm := 2 if session.quick else WARM_UP):
        tracker.track(next(frames))
    timed = session.time(lambda: tracker.track(next(frames)).scores, warm=0)
    return session.row(1, timed, _work(made, pictures, objects, warm), str(made.dtype).removeprefix("torch."))


def _work(network: Sam2Network, pictures: np.ndarray, objects: int, warm: int) -> Any:
    """Of a frame, with the network's own image encoder, whatever runs it."""
    tracker = Sam2Tracker(network, FORWARD)
    frames = cycle(pictures)
    tracker.track(next(frames), prompts=boxes_for(objects, *pictures.shape[1:3]))
    for _ in range(warm):
        tracker.track(next(frames))
    return count(lambda: tracker.track(next(frames)))


def _auto(network: Sam2Network) -> ImageEncoder:
    return compile_image_encoder(network, "auto")


def _channels_last(network: Sam2Network) -> ImageEncoder:
    return network.image_encoder.to(memory_format=torch.channels_last)


def _graphed(network: Sam2Network) -> ImageEncoder:
    return graphed(network.image_encoder)


def _compiled(network: Sam2Network) -> ImageEncoder:
    return torch.compile(network.image_encoder, dynamic=False)


ENCODERS = {"image encoder: runtime auto": _auto, "image encoder: channels-last": _channels_last}
CARD_ENCODERS = {"image encoder: CUDA graph": _graphed, "image encoder: torch.compile": _compiled}
