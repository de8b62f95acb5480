"""`vfm bench gpu`, decoding: JPEGs and H.264 on the host by our own sandbox, on the card by nvJPEG and NVDEC where they are.

Pictures are synthetic, with the statistics of photographs (`dead_leaves`), so that nothing need be downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.bench.gpu_measure import Row, Session, Task, forever, rate
from vfm_ops.errors import MediaError
from vfm_ops.media.encode import write_video
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.jpeg import encode_jpeg
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View
from vfm_ops.models.calibration import dead_leaves
from vfm_ops.models.device import cpu_count

VIEW = View(224, 224, "crop", 0.9)
HOST = "our sandbox"
CHUNK = 32


@dataclass
class Corpus:
    """Files that are written when first asked for."""

    folder: Path
    quick: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of every picture."""
        return (160, 90) if self.quick else (1280, 720)

    @cached_property
    def pictures(self) -> np.ndarray:
        """uint8 (N, H, W, 3)."""
        width, height = self.size
        return dead_leaves(2 if self.quick else 16, height, width)

    @cached_property
    def jpegs(self) -> list[Path]:
        """The pictures as JPEGs of quality 90."""
        paths = []
        for i, rgb in enumerate(self.pictures):
            paths.append(self.folder / f"{i}.jpg")
            paths[-1].write_bytes(encode_jpeg(rgb, 90))
        return paths

    @cached_property
    def frames(self) -> int:
        """Of the video."""
        return 8 if self.quick else 300

    @cached_property
    def video(self) -> Path:
        """The pictures, each moving for a while, as H.264."""
        path, shot = self.folder / "video.mp4", 50
        moving = (np.roll(self.pictures[(i // shot) % len(self.pictures)], 4 * i, axis=1) for i in range(self.frames))
        write_video(path, moving, 25)
        return path


def tasks(session: Session) -> Iterator[Task]:
    """A row a decoder, and a row a number of decoding processes."""
    corpus = Corpus(session.folder, session.quick)
    width, height = corpus.size
    jpegs, video = f"JPEGs, {width} x {height}: images/s", f"H.264, {width} x {height}: frames/s"
    cores = 1 if session.quick else cpu_count()
    for count in process_counts(cores):
        yield {"what": jpegs, "way": f"{HOST}, {count} processes"}, partial(sandbox_images, session, corpus, count)
    for count in sorted({1, cores}):
        yield {"what": video, "way": f"{HOST}, {count} processes"}, partial(sandbox_video, session, corpus, count)
    yield {"what": jpegs, "way": "nvJPEG by torchvision"}, partial(nvjpeg, session, corpus)
    for package in NVDEC:
        yield {"what": video, "way": f"NVDEC by {package}"}, partial(nvdec, session, corpus, package)


def process_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and as many as there are cores."""
    return sorted({*(1 << k for k in range(cores.bit_length())), cores} & set(range(1, cores + 1)))


def settings() -> DecodeSettings:
    """What an embedding needs of a picture, and nothing else."""
    return DecodeSettings({"v": VIEW}, jpeg=False)


def _span(session: Session) -> float:
    return 0.2 if session.quick else 4.0


def sandbox_images(session: Session, corpus: Corpus, processes: int) -> Row:
    """Images/s of the product's decoder: read, decode, resize, in killable processes."""
    sources = forever([MediaSource(str(path)) for path in corpus.jpegs])
    with Sandbox(settings(), processes) as sandbox:
        found = checked(sandbox.images(sources))
        return {"ours": rate(found, 32 * processes, _span(session)), "note": "to views of 224 px"}


def checked(results: Iterator[Any]) -> Iterator[Any]:
    """Raises what a sandbox hands out in the place of a frame."""
    for result in results:
        if isinstance(result, MediaError):
            raise result
        yield result


def sandbox_video(session: Session, corpus: Corpus, processes: int) -> Row:
    """Frames/s of as many videos at once, every frame of each."""
    source = MediaSource(str(corpus.video))
    with Sandbox(settings(), processes) as sandbox, ThreadPoolExecutor(processes) as pool:
        probe = sandbox.probe(source)

        def stream(_: int) -> float:
            def endless() -> Iterator[Any]:
                while True:
                    yield from sandbox.frames(source, probe=probe)

            return rate(endless(), min(CHUNK, corpus.frames), _span(session))

        return {"ours": sum(pool.map(stream, range(processes))), "note": "every frame, to views of 224 px"}


def nvjpeg(session: Session, corpus: Corpus) -> Row:
    """Images/s of torchvision's decoder on the card, batch by batch; pictures stay there at full size."""
    if not session.is_card:
        return {"note": "needs a card"}
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in corpus.jpegs]
    batch = list(islice(forever(data), 64))
    timed = session.time(lambda: decode_jpeg(batch, mode=ImageReadMode.RGB, device=session.device))
    return {**session.row(len(batch), timed), "note": "to full size, on the card", "batch": len(batch)}


def nvdec(session: Session, corpus: Corpus, package: str) -> Row:
    """Frames/s of a whole video, opened anew each time; frames stay on the card at full size."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        return {"note": f"not installed: pip install {package.lower()}"}
    except Exception as error:  # it is there, and what it needs (FFmpeg's libraries, a driver) is not
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return {"note": f"{package} is installed and can't be loaded: {said}"}
    if not session.is_card:
        return {"note": "needs a card"}
    decode = NVDEC[package]
    frames = decode(corpus.video, session.device)
    timed = session.time(lambda: decode(corpus.video, session.device), warm=0)
    return {**session.row(frames, timed), "note": "one video at a time, to full size, on the card"}


def decode_by_torchcodec(path: Path, device: torch.device) -> int:
    """How many frames there were; RGB, on the card."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), device=str(device), seek_mode="approximate")
    count = len(decoder)
    for start in range(0, count, CHUNK):
        decoder.get_frames_in_range(start, min(start + CHUNK, count))
    if getattr(decoder, "cpu_fallback", False):
        raise RuntimeError(f"torchcodec decoded on the CPU: {decoder.cpu_fallback}")
    return count


def decode_by_pynvvideocodec(path: Path, device: torch.device) -> int:
    """How many frames there were; RGB, on the card."""
    import PyNvVideoCodec as nvc

    decoder = nvc.ThreadedDecoder(
        str(path),
        CHUNK,
        gpu_id=device.index or 0,
        use_device_memory=True,
        output_color_type=nvc.OutputColorType.RGB,
    )
    count = 0
    try:
        while frames := decoder.get_batch_frames(CHUNK):
            count += len(frames)
    finally:
        decoder.end()
    return count


# By the name of their module, which is also what pip installs.
NVDEC = {"torchcodec": decode_by_torchcodec, "PyNvVideoCodec": decode_by_pynvvideocodec}
