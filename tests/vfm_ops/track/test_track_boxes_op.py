"""The op `track_boxes`: rows of a video's tracks, whatever chunks it comes in."""

from __future__ import annotations

import numpy as np
import pytest

from vfm_ops.detect.types import Detections
from vfm_ops.errors import UsageError
from vfm_ops.op import Video, VideoFrame
from vfm_ops.op_registry import load_op

FRAMES = 24
VIDEO = Video("asset", "file.mp4", 96, 64, 25.0, FRAMES)


class Squares:
    """A detector that finds the bright square of a frame; on every fourth it is not sure."""

    default_threshold = 0.3

    def __init__(self) -> None:
        self.asked: list[float] = []

    def detect(self, images, prompts, *, thresholds, nms_iou):
        self.asked.append(thresholds)
        return [self._one(image, thresholds) for image in images]

    def _one(self, rgb: np.ndarray, least: float) -> Detections:
        rows, columns = np.flatnonzero(rgb[..., 0].any(1)), np.flatnonzero(rgb[..., 0].any(0))
        box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
        score = np.array([rgb[..., 0].max() / 255], np.float32)
        kept = score > least
        return Detections(box[kept], score[kept], np.zeros(int(kept.sum()), np.int64), ("square",))


def frames() -> list[VideoFrame]:
    made = []
    for t in range(FRAMES):
        pixels = np.zeros((64, 96, 3), np.uint8)
        pixels[20:40, 2 * t : 2 * t + 20] = 50 if t % 4 == 3 else 200
        made.append(VideoFrame(t, t / 25, pixels, t in (0, 12)))
    return made


def rows_of(settings: dict, chunk: int) -> tuple[list[dict], Squares]:
    op = load_op({"track_boxes": {"prompts": "square", **settings}})
    op.__dict__["detector"] = Squares()
    state, rows = op.begin(VIDEO), []
    shown = frames()
    for start in range(0, FRAMES, chunk):
        state, more = op.chunk(VIDEO, state, shown[start : start + chunk])
        state = op.loads(VIDEO, op.dumps(state))
        rows += op.checked(more)
    return rows, op.detector


@pytest.mark.parametrize("method", ["bytetrack", "ocsort"])
def test_rows_are_the_same_whatever_the_chunks_and_no_track_crosses_a_cut(method):
    whole, _ = rows_of({"method": method}, FRAMES)
    assert rows_of({"method": method}, 5)[0] == whole
    ids = {row["frame_index"]: row["track_id"] for row in whole}
    assert set(ids.values()) == {"asset:b1", "asset:b2"}
    assert all((t < 12) == (i == "asset:b1") for t, i in ids.items())
    # Only ByteTrack asks for weak detections, which continue a track.
    assert (3 in ids) == (method == "bytetrack")
    first = whole[0]
    assert (first["frame_index"], first["label"], first["pts_s"]) == (1, "square", 1 / 25)
    assert first["box"] == [2.0, 20.0, 22.0, 40.0]


def test_thresholds_follow_the_detector_unless_they_are_given():
    assert rows_of({}, FRAMES)[1].asked == [pytest.approx(0.1)]
    assert rows_of({"threshold": 0.6}, FRAMES)[1].asked == [pytest.approx(0.2)]
    assert rows_of({"threshold": 0.6, "low_threshold": 0.5}, FRAMES)[1].asked == [0.5]
    assert rows_of({"method": "ocsort"}, FRAMES)[1].asked == [0.3]
    with pytest.raises(UsageError, match=r"low_threshold: 0\.7 is above the threshold, 0\.6"):
        rows_of({"threshold": 0.6, "low_threshold": 0.7}, FRAMES)


def test_appearance_takes_any_embedding_model():
    op = load_op({"track_boxes": {"prompts": "square", "appearance": "clip:pocket"}})
    op.__dict__["detector"] = Squares()
    state, _ = op.chunk(VIDEO, op.begin(VIDEO), frames()[:3])
    (track,) = state.tracks
    assert np.linalg.norm(track.looks) == pytest.approx(1)
    assert len(track.looks) == op.embedder.dim
    assert op.digest() != load_op({"track_boxes": "square"}).digest()


def test_chunks_change_no_key():
    assert load_op({"track_boxes": {"prompts": "a", "chunk_frames": 3}}).key() == load_op({"track_boxes": "a"}).key()
