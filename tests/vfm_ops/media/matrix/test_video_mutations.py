"""Damaged copies of every kind of video: whoever trusts a corpus trusts that "done" means the file was sound.

The judge is `ffmpeg -xerror -err_detect explode`, which ends at the first thing that is wrong. A video that we call sound it
must accept, and show the same pictures; no file may take the sandbox's process, or its deadline, with it unnoticed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import av
import av.error
import numpy as np
import pytest

from tests.conftest import chaos_count
from tests.vfm_ops.media.matrix.video_kinds import KINDS, Kind, mutations, psnr, write
from vfm_ops.errors import MediaError
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.limits import Limits
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource

LIMITS = Limits(deadline_s=30, max_pixels=4_000_000)
SETTINGS = DecodeSettings(jpeg=False, pixels=True, limits=LIMITS)
# What decoders of other versions than the judge's may read in another way: a harmless message in HEVC's header.
TOLERATED = ("from hvcC failed",)


def judged(path: Path) -> tuple[str, bytes]:
    """What ffmpeg has against a file (empty: nothing), and the RGB pictures that it shows."""
    strict = ["-threads", "1", "-xerror", "-err_detect", "explode"]
    raw = ["-map", "0:V:0", "-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = ["ffmpeg", "-nostdin", "-v", "error", *strict, "-i", str(path), *raw]
    done = subprocess.run(command, capture_output=True, timeout=120)
    return (done.stderr.decode(errors="replace") or "refused") if done.returncode else "", done.stdout


def newer_libraries_agree(frames: list[np.ndarray], path: Path) -> bool:
    """Whether the FFmpeg that PyAV brings, as strict and read in order, accepts the file and shows these pictures.

    The judge is of another version. Some damage no code can tell, as entropy coding without checksums has no wrong bits: two
    versions then show two pictures, and neither complains.
    """
    strict = {"err_detect": "explode"}
    try:
        with av.open(str(path), container_options=strict) as container:
            stream = container.streams.best("video")
            stream.thread_type, stream.codec_context.options = "NONE", strict
            theirs = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except av.error.FFmpegError:
        return False
    return len(theirs) == len(frames) and all(psnr(a, b) >= 35 for a, b in zip(frames, theirs))


def disagreement(frames: list[np.ndarray], path: Path) -> str:
    """Why a video that decoded without complaint should have been complained of; empty where it is sound."""
    complaint, raw = judged(path)
    if complaint:
        return "" if any(text in complaint for text in TOLERATED) else complaint
    theirs, (height, width) = np.frombuffer(raw, np.uint8), frames[0].shape[:2]
    if len(theirs) != len(frames) * height * width * 3:
        return f"{len(frames)} frames of {width} x {height}, ffmpeg shows {len(theirs)} bytes"
    worst = min(map(psnr, frames, theirs.reshape(len(frames), height, width, 3)))
    return "" if worst >= 35 else f"{worst:.1f} dB"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(SETTINGS) as opened:
        yield opened


@pytest.mark.chaos
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_done_means_that_a_strict_judge_finds_the_file_sound(kind: Kind, sandbox: Sandbox, tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg as the judge: apt-get install ffmpeg")
    data = write(tmp_path / f"a.{kind.extension}", kind).read_bytes()
    other = write(tmp_path / f"b.{kind.extension}", kind, 20).read_bytes()
    path, faults, outcomes, versions_differ = tmp_path / f"m.{kind.extension}", [], set(), 0
    for name, mutated in mutations(data, other, seed=7, count=chaos_count(4, 500)):
        path.write_bytes(mutated)
        frames, error = [], None
        try:
            frames += [frame.pixels.copy() for frame in sandbox.frames(MediaSource(str(path)))]
        except MediaError as problem:
            error = problem
            outcomes.add(problem.kind)
        if error is None and (fault := disagreement(frames, path)):
            agree = newer_libraries_agree(frames, path)
            versions_differ += agree
            faults += [] if agree else [f"{name}: {fault}"]
        if error is not None and error.kind in ("crash", "timeout"):
            faults.append(f"{name}: {error}")
    assert faults == []
    assert versions_differ <= chaos_count(1, 5)
    assert len(outcomes) >= chaos_count(0, 1), "so much damage, and none of it was seen"
