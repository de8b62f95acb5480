"""Every container and codec: exact times, the right picture for every frame number, rotation, salvage."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import debian_program
from tests.vfm_ops.media.video_files import encode_video, pyav_times, read_number
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.decode import BACKENDS, PyAVDecoder, choose_backend, open_decoder
from vfm_ops.media.decode.choose import measure_backends
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import plan_decode
from vfm_ops.media.probe import probe_video
from vfm_ops.media.source import MediaSource

LIMITS = Limits()
BFRAMES = {"bf": "2"}
OPEN_GOP_264 = {"x264-params": "open-gop=1:keyint=12:bframes=3"}
OPEN_GOP_265 = {"x265-params": "open-gop=1:keyint=12:min-keyint=12"}
KINDS = [
    ("mp4", "libx264", BFRAMES),
    ("mov", "libx264", BFRAMES),
    ("mkv", "libx264", BFRAMES),
    ("ts", "libx264", BFRAMES),
    ("avi", "libx264", BFRAMES),
    ("3gp", "libx264", BFRAMES),
    ("mp4", "libx264", OPEN_GOP_264),
    ("mp4", "libx265", {}),
    ("mp4", "libx265", OPEN_GOP_265),
    ("ts", "libx265", {}),
    ("webm", "libvpx-vp9", {}),
    ("webm", "libvpx", {}),
    ("webm", "libsvtav1", {}),
    ("mp4", "libsvtav1", {}),
    ("avi", "mpeg4", BFRAMES),
    ("mp4", "mpeg4", BFRAMES),
    ("mpg", "mpeg1video", BFRAMES),
    ("mpg", "mpeg2video", BFRAMES),
    ("ts", "mpeg2video", BFRAMES),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join([kind[0], kind[1], *kind[2]]))
def video(request, tmp_path_factory) -> Path:
    extension, codec, options = request.param
    return encode_video(tmp_path_factory.mktemp("video") / f"v.{extension}", codec, options=options)


def decode(path: Path, indices=None, decoder="pyav") -> list[tuple[int, np.ndarray]]:
    source = MediaSource(str(path))
    probe = probe_video(source, LIMITS)
    wanted = None if indices is None else np.array(indices)
    return list(open_decoder(source, probe, plan_decode(probe, wanted), LIMITS, decoder).frames())


def test_times_equal_pyavs_in_every_container(video):
    probe = probe_video(MediaSource(str(video)), LIMITS)
    assert np.abs(probe.pts_s - pyav_times(video)).max() <= 1e-6
    assert (probe.width, probe.height, probe.streams) == (128, 96, 1)
    assert not probe.cut_short


@pytest.mark.parametrize("indices", [None, [0, 13, 25, 26, 59], [59], [11, 12], list(range(3, 60, 10))])
def test_each_frame_number_gives_its_own_picture(video, indices):
    frames = decode(video, indices)
    assert [index for index, _ in frames] == (indices or list(range(60)))
    assert [read_number(picture) for _, picture in frames] == [index for index, _ in frames]


def test_all_backends_agree_on_numbers_and_nearly_on_pixels(bikes):
    wanted = [0, 40, 41, 133, 249]
    reference = decode(bikes, wanted)
    for decoder in BACKENDS:
        frames = decode(bikes, wanted, decoder)
        assert [i for i, _ in frames] == wanted
        for (_, ours), (_, theirs) in zip(reference, frames):
            assert np.abs(ours.astype(int) - theirs).mean() < 2.0, decoder


def test_planned_pixels_are_identical_to_a_full_decode(bikes):
    import av

    with av.open(str(bikes)) as container:
        full = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for index, picture in decode(bikes, range(7, 250, 23)):
        assert np.array_equal(picture, full[index])


def test_plan_jumps_over_groups_and_feeds_few_packets(tmp_path):
    path = encode_video(tmp_path / "long.mp4", count=240, options={"g": "24", "bf": "2", "sc_threshold": "0"})
    probe = probe_video(MediaSource(str(path)), LIMITS)
    plan = plan_decode(probe, np.array([0, 100, 239]))
    assert probe.keyframes.tolist() == list(range(0, 240, 24))
    assert len(plan.starts) == 3
    assert plan.packets_fed <= 1 + 8 + 24
    assert [i for i, _ in decode(path, [0, 100, 239])] == [0, 100, 239]


@pytest.mark.parametrize("extension", ["mp4", "mkv", "mov"])
def test_variable_rate_and_late_start_keep_exact_times(tmp_path, extension):
    steps = np.random.default_rng(0).integers(1, 9, 60)
    ticks = (np.cumsum(steps) * 100 + 5000).tolist()
    path = encode_video(tmp_path / f"v.{extension}", pts=ticks, ticks_per_second=10_000, options=BFRAMES)
    probe = probe_video(MediaSource(str(path)), LIMITS)
    expected = (np.array(ticks) - ticks[0]) / 10_000
    # Matroska rounds to milliseconds when it is written.
    assert np.abs(probe.pts_s - expected).max() <= (1.1e-3 if extension == "mkv" else 1e-6)
    assert np.abs(probe.pts_s - pyav_times(path)).max() <= 1e-6
    assert [read_number(p) for _, p in decode(path, [5, 30])] == [5, 30]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_video_comes_out_upright_as_ffmpeg_shows_it(tmp_path, rotation):
    path = encode_video(tmp_path / "r.mp4", count=30, rotation=rotation)
    command = [debian_program("ffmpeg"), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    probe = probe_video(MediaSource(str(path)), LIMITS)
    shown = raw.reshape(30, probe.height, probe.width, 3)
    for decoder in ("pyav", "opencv") if rotation == 180 else BACKENDS:
        for index, picture in decode(path, [0, 17], decoder):
            assert np.abs(picture.astype(int) - shown[index]).mean() < 3.0, decoder


def test_the_default_stream_is_taken_and_said(tmp_path):
    path = encode_video(tmp_path / "sound.mp4", audio_first=True)
    probe = probe_video(MediaSource(str(path)), LIMITS)
    assert (probe.stream_index, probe.streams) == (1, 1)
    assert [read_number(p) for _, p in decode(path, [42])] == [42]


def test_audio_alone_says_so(tmp_path):
    import av

    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="only audio") as caught:
        probe_video(MediaSource(str(path)), LIMITS)
    assert caught.value.kind == "no_video"


def salvage(source: MediaSource) -> tuple[list[int], MediaError]:
    probe = probe_video(source, LIMITS)
    frames: list[tuple[int, np.ndarray]] = []
    with pytest.raises(MediaError) as caught:
        frames.extend(PyAVDecoder(source, probe, plan_decode(probe), LIMITS).frames())
    assert [read_number(picture) for _, picture in frames] == [index for index, _ in frames]
    return [index for index, _ in frames], caught.value


@pytest.mark.parametrize(("name", "codec"), [("v.mkv", "libx264"), ("v.avi", "mpeg4"), ("fast.mp4", "libx264")])
def test_truncated_video_keeps_the_frames_before_the_damage(tmp_path, name, codec):
    path = encode_video(tmp_path / name, codec, count=120)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    numbers, error = salvage(MediaSource(str(path)))
    assert error.kind == "truncated"
    assert "kept" in str(error)
    assert 0 < len(numbers) < 100
    assert numbers == list(range(len(numbers)))


def test_video_without_its_index_is_called_cut_short(tmp_path):
    path = encode_video(tmp_path / "v.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match="no index") as caught:
        probe_video(MediaSource(str(path)), LIMITS)
    assert caught.value.kind == "truncated"


def test_text_named_mp4_is_not_given_to_ffmpeg(tmp_path):
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    with pytest.raises(MediaError) as caught:
        probe_video(MediaSource(str(path)), LIMITS)
    assert caught.value.kind == "not_media"


def test_member_of_an_archive_decodes_like_the_file(tmp_path, bikes):
    data = bikes.read_bytes()
    archive = tmp_path / "shard,1:a.tar"
    archive.write_bytes(b"x" * 1000 + data + b"y" * 1000)
    for source in (MediaSource(str(archive), 1000, len(data)), MediaSource("cell", data=data)):
        probe = probe_video(source, LIMITS)
        frames = list(PyAVDecoder(source, probe, plan_decode(probe, np.array([77])), LIMITS).frames())
        assert np.array_equal(frames[0][1], decode(bikes, [77])[0][1])


def test_resolution_that_changes_midway_does_not_stop_decoding(tmp_path):
    first = encode_video(tmp_path / "a.ts", "mpeg2video", count=24)
    second = encode_video(tmp_path / "b.ts", "mpeg2video", count=24, size=(192, 112), pts=list(range(24, 48)))
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    sizes = {picture.shape[:2] for _, picture in decode(both)}
    assert sizes == {(96, 128), (112, 192)}


def test_limits_are_checked_before_decoding(bikes):
    source = MediaSource(str(bikes))
    for limits, kind in (
        (Limits(max_pixels=1000), "bomb"),
        (Limits(max_duration_s=5), "too_long"),
        (Limits(max_bytes=1000), "too_large"),
    ):
        with pytest.raises(MediaError) as caught:
            probe_video(source, limits)
        assert caught.value.kind == kind


def test_forced_decoder_that_cannot_read_says_why(tmp_path):
    path = encode_video(tmp_path / "v.webm", "libsvtav1", count=10)
    with pytest.raises(MediaError, match="AV1"):
        decode(path, [0], "decord")
    with pytest.raises(UsageError, match="pyav"):
        decode(path, [0], "ffmpeg")


def test_sparse_plans_go_to_the_seeking_decoder_by_measured_cost(bikes):
    source = MediaSource(str(bikes))
    probe = probe_video(source, LIMITS)
    assert choose_backend(plan_decode(probe, np.array([240])), probe, source) == "pyav"
    costs = measure_backends(source)
    assert set(costs) == set(BACKENDS)
    assert all(cost.decode_ms > 0 and cost.open_ms > 0 for cost in costs.values())


def test_closing_a_half_read_video_closes_its_file(bikes):
    source = MediaSource(str(bikes))
    probe = probe_video(source, LIMITS)
    frames = PyAVDecoder(source, probe, plan_decode(probe), LIMITS).frames()
    next(frames)
    assert str(bikes) in [file.path for file in psutil.Process().open_files()]
    frames.close()
    assert str(bikes) not in [file.path for file in psutil.Process().open_files()]
