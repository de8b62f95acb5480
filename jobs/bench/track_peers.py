"""Our tracker beside transformers' session on the same weights and frames: frames a second, and memory over time.

The two take turns frame by frame, so that whatever else the machine does slows both alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from vfm_ops.track.frames import squared
from vfm_ops.track.load import compile_image_encoder
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.network import Sam2Network
from vfm_ops.track.prompts import Prompt, clicks_in_model_pixels
from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

# Both sides go forward alone, and are corrected nowhere.
FORWARD = TrackerSettings(bank=BankPolicy(history=0), feed_previous_masks=False)
WARM_UP = 20  # frames after which every memory slot and pointer is in use


def random_network(device: str = "cpu") -> Sam2Network:
    """A small SAM 2 (128 px, hidden 128, memory 64) with random weights: speed does not depend on what they say."""
    from vfm_ops.pocket.sam2 import make_model

    torch.manual_seed(0)
    return Sam2Network(make_model(), device)


def boxes_for(count: int, height: int, width: int, seed: int = 0) -> list[Prompt]:
    """Box prompts for `count` objects, a third of the frame wide, anywhere on it."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 2 / 3, (count, 2)) * (width, height)
    return [Prompt(i + 1, box=[x, y, x + width / 3, y + height / 3]) for i, (x, y) in enumerate(corners)]


class TransformersSession:
    """transformers' own streaming session, with the frames and prompts that our tracker gets."""

    def __init__(self, network: Sam2Network, size: tuple[int, int]) -> None:
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        self.network = network
        self.session = Sam2VideoInferenceSession(
            video_height=size[0],
            video_width=size[1],
            inference_device=network.device,
            inference_state_device=network.device,
            video_storage_device=network.device,
            dtype=network.dtype,
        )
        self.size = size

    def track(self, rgb: np.ndarray, prompts: Sequence[Prompt] = ()) -> torch.Tensor:
        """Mask logits (N, h, w) of all objects on the next frame."""
        encoder = self.network.image_encoder
        square = squared(rgb, self.network.image_size, self.network.device)
        pixels = (square.permute(0, 3, 1, 2).float() - encoder.mean) / encoder.std
        index = self.session.num_frames or 0
        for prompt in prompts:
            clicks = clicks_in_model_pixels(prompt, *self.size, self.network.image_size)
            assert clicks is not None  # boxes only
            inputs = {
                "point_coords": torch.from_numpy(clicks.points)[None, None],
                "point_labels": torch.from_numpy(clicks.labels)[None, None],
            }
            self.session.add_point_inputs(self.session.obj_id_to_idx(prompt.object_id), index, inputs)
        self.session.obj_with_new_inputs = [p.object_id for p in prompts]
        return self.network.model(self.session, frame=pixels.to(self.network.dtype)).pred_masks[:, 0]


def compare_speed(
    network: Sam2Network,
    frames: Sequence[np.ndarray],
    objects: Sequence[int] = (1, 4, 8),
    timed_frames: int = 60,
    runtime: str = "auto",
) -> list[dict[str, Any]]:
    """Frames a second of our tracker, of ours with its image encoder in a faster runtime, and of transformers' session.

    frames: uint8 (H, W, 3), repeated as needed. runtime: of the faster encoder; "torch" leaves that column out. Returns a
    row for each number of objects: `objects`, `ours`, `ours_runtime`, `transformers` (frames/s, from the median frame),
    `speedup` (ours over transformers) and `against_one` (our time a frame, over that of the first row).
    """
    height, width = frames[0].shape[:2]
    encoder = None if runtime == "torch" else compile_image_encoder(network, runtime, "exact")  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = []
    for count in objects:
        runs: dict[str, Any] = {
            "ours": Sam2Tracker(network, FORWARD, network.image_encoder),
            "transformers": TransformersSession(network, (height, width)),
        }
        if encoder is not None:
            runs["ours_runtime"] = Sam2Tracker(network, FORWARD, encoder)
        prompts = boxes_for(count, height, width)
        seconds = _take_turns(network, runs, frames, prompts, timed_frames)
        row: dict[str, Any] = {"objects": count, **{name: 1 / s for name, s in seconds.items()}}
        row["speedup"] = row["ours"] / row["transformers"]
        row["against_one"] = (rows[0] if rows else row)["ours"] / row["ours"]
        rows.append(row)
    return rows


def _take_turns(
    network: Sam2Network, runs: dict[str, Any], frames: Sequence[np.ndarray], prompts: list[Prompt], timed_frames: int
) -> dict[str, float]:
    """Median seconds a frame of each tracker, once all memory slots are in use."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for t, rgb in enumerate(islice(cycle(frames), WARM_UP + timed_frames)):
        for name, tracker in runs.items():
            start = time.perf_counter()
            tracker.track(rgb, prompts=prompts if t == 0 else ())
            if network.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values[WARM_UP:])) for name, values in seconds.items()}


def memory_over_time(
    network: Sam2Network,
    frames: Sequence[np.ndarray],
    objects: int = 4,
    ours_at: tuple[int, int] = (500, 5000),
    theirs_at: tuple[int, int] = (100, 500),
) -> dict[str, float]:
    """Resident memory of the process as a video gets longer.

    Returns, in MB, `ours_early`, `ours_late` and their `ours_ratio` at the two frame counts, `bank_early`, `bank_late`
    (bytes of memories held), and for transformers' session `theirs_early`, `theirs_late` and `theirs_per_frame`.
    """
    height, width = frames[0].shape[:2]
    prompts = boxes_for(objects, height, width)
    tracker = Sam2Tracker(network, FORWARD)
    (ours_early, bank_early), (ours_late, bank_late) = _watch(tracker, frames, prompts, ours_at)
    session = TransformersSession(network, (height, width))
    (theirs_early, _), (theirs_late, _) = _watch(session, frames, prompts, theirs_at)
    return {
        "ours_early": ours_early,
        "ours_late": ours_late,
        "ours_ratio": ours_late / ours_early,
        "bank_early": bank_early,
        "bank_late": bank_late,
        "theirs_early": theirs_early,
        "theirs_late": theirs_late,
        "theirs_per_frame": (theirs_late - theirs_early) / (theirs_at[1] - theirs_at[0]),
    }


def _watch(
    tracker: Any, frames: Sequence[np.ndarray], prompts: list[Prompt], at: tuple[int, int]
) -> list[tuple[float, float]]:
    """(resident MB, MB of memories held) after each of the two numbers of frames."""
    import psutil

    out = []
    for t, rgb in enumerate(islice(cycle(frames), at[1])):
        tracker.track(rgb, prompts=prompts if t == 0 else ())
        if t + 1 in at:
            gc.collect()
            held = tracker.nbytes() if isinstance(tracker, Sam2Tracker) else 0
            out.append((psutil.Process().memory_info().rss / 2**20, held / 2**20))
    return out


def bench_track(
    spec: str | None,
    frames: Sequence[np.ndarray],
    *,
    device: str = "cpu",
    objects: Sequence[int] = (1, 4, 8),
    timed_frames: int = 60,
    runtime: str = "auto",
    memory: bool = True,
) -> dict[str, Any]:
    """The whole benchmark. spec: a checkpoint, or None for small random weights. memory: watch 5,000 frames too (minutes).

    Returns `model`, `parameters`, `device`, `threads`, `speed` (see `compare_speed`) and `memory` (`memory_over_time`).
    """
    from vfm_ops.track.load import load_network

    network = random_network(device) if spec is None else load_network(spec, device=device)
    return {
        "model": spec or "random, 128 px",
        "parameters": sum(p.numel() for p in network.model.parameters()),
        "device": str(network.device),
        "threads": torch.get_num_threads(),
        "speed": compare_speed(network, frames, objects, timed_frames, runtime),
        "memory": memory_over_time(network, frames) if memory else None,
    }
