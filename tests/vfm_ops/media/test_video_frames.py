"""Frames of a video in any order are those of one pass."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vfm_ops.track.conftest import read_frames
from vfm_ops.errors import MediaError
from vfm_ops.media.encode import write_video
from vfm_ops.media.source import MediaSource
from vfm_ops.media.video_frames import BACKWARD, VideoFrames, frame_sandbox

COUNT = 2 * BACKWARD + 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory, bikes):
    path = tmp_path_factory.mktemp("frames") / "clip.mp4"
    write_video(path, iter(read_frames(bikes, COUNT, 64, 96)), 25.0)
    return path


@pytest.fixture(scope="module")
def decoded(clip):
    """Its frames, by one pass."""
    with frame_sandbox() as sandbox:
        return [np.asarray(f.pixels).copy() for f in sandbox.frames(MediaSource(str(clip)))]


@pytest.mark.parametrize(
    "order",
    [range(COUNT), range(COUNT - 1, -1, -1), [3, 4, 5, 30, 29, 28, 27, 2, 2, 3, 0, COUNT - 1]],
    ids=["forward", "backward", "back and forth"],
)
def test_frames_in_any_order_are_those_of_one_pass(clip, decoded, order):
    with VideoFrames(str(clip)) as frames:
        assert len(frames) == len(decoded) == COUNT
        assert all(np.array_equal(frames[t], decoded[t]) for t in order)


def test_going_backward_decodes_each_group_once(clip, decoded):
    with frame_sandbox() as sandbox:
        asked = []
        stream = sandbox.frames
        sandbox.frames = lambda source, wanted, probe: asked.append(len(wanted)) or stream(source, wanted, probe)
        frames = VideoFrames(MediaSource(str(clip)), sandbox)
        assert all(np.array_equal(frames[t], decoded[t]) for t in range(COUNT - 1, -1, -1))
        frames.stop()
    assert len(asked) <= 2 + COUNT // BACKWARD


def test_a_frame_beyond_the_end_is_an_index_error_and_no_video_a_media_error(clip, tmp_path):
    with VideoFrames(str(clip)) as frames, pytest.raises(IndexError):
        frames[COUNT]
    (tmp_path / "none.mp4").write_bytes(b"nothing")
    with pytest.raises(MediaError), VideoFrames(str(tmp_path / "none.mp4")):
        pass
