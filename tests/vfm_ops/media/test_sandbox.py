"""The pool of decoder processes: same results as in line, one bad item costs one item, nothing is left behind."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from vfm_ops.errors import MediaError, UsageError, VfmError
from vfm_ops.media.frame import DecodeSettings, Frame, image_frame
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import plan_decode
from vfm_ops.media.probe import probe_video
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.sandbox_protocol import ITEM
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View

SETTINGS = DecodeSettings(views={"small": View(64, 64), "native": View(fit="naflex", max_patches=64)})


@pytest.fixture(scope="module")
def stills(tmp_path_factory) -> list[MediaSource]:
    folder = tmp_path_factory.mktemp("stills")
    generator = np.random.default_rng(0)
    sources = []
    for number in range(100):
        coarse = generator.integers(0, 256, (6, 8, 3), np.uint8)
        path = folder / f"{number}.jpg"
        cv2.imwrite(str(path), cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC))
        sources.append(MediaSource(str(path)))
    return sources


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(SETTINGS, processes=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def hanging():
    """An object of a store that takes a request and never answers: a decoder hangs on it as on a bad disk."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"scheme=http&endpoint_override=127.0.0.1:{listener.getsockname()[1]}&region=us-east-1"
        yield MediaSource(f"s3://key:secret@bucket/hang.jpg?{place}")


def assert_same(ours: Frame, theirs: Frame) -> None:
    assert (ours.frame_index, ours.pts_s, ours.width, ours.height) == (0, 0.0, theirs.width, theirs.height)
    assert (ours.format, ours.jpeg) == (theirs.format, theirs.jpeg)
    assert ours.views.keys() == theirs.views.keys()
    for name in ours.views:
        assert np.array_equal(ours.views[name], theirs.views[name])


def test_frames_equal_those_made_in_line_even_when_all_are_kept(sandbox, stills):
    kept = list(sandbox.images(stills))
    for source, frame in zip(stills, kept):
        assert_same(frame, image_frame(source, SETTINGS))


def test_bad_items_come_back_as_errors_in_their_place(sandbox, stills, tmp_path):
    bad = tmp_path / "text.jpg"
    bad.write_text("no picture")
    mixed = [*stills[:5], MediaSource(str(bad)), MediaSource(str(tmp_path / "none.jpg")), *stills[5:9]]
    results = list(sandbox.images(mixed))
    assert [getattr(result, "kind", "ok") for result in results] == ["ok"] * 5 + ["not_media", "missing"] + ["ok"] * 4
    with pytest.raises(MediaError, match=r"text\.jpg"):
        sandbox.image(mixed[5])


def test_bytes_in_memory_cross_to_the_child(sandbox, stills):
    data = Path(stills[0].uri).read_bytes()
    frames = list(sandbox.images([MediaSource(f"row {i}", data=data) for i in range(20)]))
    assert_same(frames[19], image_frame(stills[0], SETTINGS))


def test_sources_are_drawn_only_as_needed(sandbox, stills):
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            yield stills[drawn % len(stills)]
            drawn += 1

    flow = sandbox.images(endless())
    for _ in range(50):
        next(flow)
    assert drawn < 50 + 2 * 4 * 16 + 16
    flow.close()
    assert isinstance(sandbox.image(stills[0]), Frame)


def test_hang_costs_one_item_within_the_deadline(stills, hanging):
    settings = DecodeSettings(limits=Limits(deadline_s=1.0))
    mixed = [*stills[:40], hanging, *stills[40:]]
    with Sandbox(settings, processes=2) as pool:
        results = list(pool.images(mixed))
    assert [i for i, result in enumerate(results) if isinstance(result, MediaError)] == [40]
    assert results[40].kind == "timeout"
    assert "hang.jpg" in str(results[40])
    for source, frame in zip(stills, [r for r in results if isinstance(r, Frame)]):
        assert frame.jpeg == Path(source.uri).read_bytes()


def signal_when_decoding(pool: Sandbox, item: int, number: int, times: int = 1) -> threading.Thread:
    """Sends a signal to the child that works on this item of a batch, as soon as its control page says so; then to the next.

    Only one batch may have an item of that number: else a child that passes another one's is hit."""

    def watch() -> None:
        pause, hit = threading.Event(), set[int]()
        while len(hit) < times:
            for child in list(pool._lent):
                process = child._process
                if process is None or process.pid in hit:
                    continue
                if process.is_alive and process._control[ITEM] == item:
                    os.kill(process.pid, number)
                    hit.add(process.pid)
            pause.wait(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_segfault_costs_one_item(stills, hanging):
    with Sandbox(DecodeSettings(), processes=2) as pool:
        thread = signal_when_decoding(pool, 15, signal.SIGSEGV, times=2)
        results = list(pool.images([*stills[:15], hanging, *stills[15:30]]))
        thread.join()
    assert [i for i, result in enumerate(results) if isinstance(result, MediaError)] == [15]
    assert results[15].kind == "crash"
    assert "SIGSEGV" in str(results[15])


def test_a_child_that_somebody_kills_costs_nothing(stills, bikes):
    """The system does, when memory is short: the file that was being decoded has done nothing."""
    with Sandbox(DecodeSettings(jpeg=False), processes=2) as pool:
        for number, result in enumerate(pool.images([s for _ in range(10) for s in stills[:60]])):
            assert isinstance(result, Frame)
            if number in (100, 300):
                os.kill(pool._lent[0].process.pid, signal.SIGKILL)
        assert number == 599
        source, seen, thumbnails, killed = MediaSource(str(bikes)), [], 0, False
        for chunk, frames in pool.frames_and_thumbnails(source):
            seen += [frame.frame_index for frame in frames]
            thumbnails += 0 if chunk is None else len(chunk)
            if len(seen) > 60 and not killed:
                os.kill(pool._lent[0].process.pid, signal.SIGKILL)
                killed = True
    assert killed
    assert (seen, thumbnails) == (list(range(250)), 250)


def test_child_that_dies_idle_costs_nothing(sandbox, stills, bikes):
    for _ in range(2):
        sandbox.image(stills[0])
        for process in psutil.Process().children():
            if "sandbox_worker" in " ".join(process.cmdline()):
                process.kill()
                process.wait()
        assert all(isinstance(result, Frame) for result in sandbox.images(stills[:40]))
    assert sandbox.probe(MediaSource(str(bikes))).frame_count == 250


def test_video_frames_have_their_times_and_views(sandbox, bikes):
    source = MediaSource(str(bikes))
    probe = sandbox.probe(source)
    here = probe_video(source, Limits())
    assert np.array_equal(probe.pts, here.pts)
    assert np.array_equal(probe.packet_rank, here.packet_rank)
    assert (probe.width, probe.fps, probe.time_base) == (here.width, here.fps, here.time_base)
    frames = list(sandbox.frames(source, np.array([200, 3, 77]), probe))
    assert [frame.frame_index for frame in frames] == [3, 77, 200]
    assert [frame.pts_s for frame in frames] == [here.pts_s[i] for i in (3, 77, 200)]
    assert all(frame.views["small"].shape == (64, 64, 3) and frame.jpeg for frame in frames)
    assert cv2.imdecode(np.frombuffer(frames[0].jpeg, np.uint8), 1).shape == (272, 640, 3)


def test_one_pass_gives_thumbnails_of_all_and_frames_of_some(sandbox, bikes):
    source = MediaSource(str(bikes))
    alone = np.concatenate(list(sandbox.thumbnails(source)))
    assert alone.shape == (250, 27, 48, 3)
    thumbnails, numbers = [], []
    for chunk, frames in sandbox.frames_and_thumbnails(source, np.array([5, 130])):
        thumbnails += [] if chunk is None else [chunk.copy()]
        numbers += [frame.frame_index for frame in frames]
    assert numbers == [5, 130]
    assert np.array_equal(np.concatenate(thumbnails), alone)


def test_whole_pixels_on_request_equal_a_decode_in_line(bikes):
    from vfm_ops.media.decode import PyAVDecoder

    source = MediaSource(str(bikes))
    probe = probe_video(source, Limits())
    expected = dict(PyAVDecoder(source, probe, plan_decode(probe, np.arange(60)), Limits()).frames())
    settings = DecodeSettings(pixels=True, jpeg=False)
    with Sandbox(settings) as pool:
        kept = list(pool.frames(source, np.arange(60), probe))
    assert all(np.array_equal(frame.pixels, expected[frame.frame_index]) for frame in kept)
    assert len(kept) == 60


def test_streams_interleave_in_one_thread_without_deadlock(bikes, stills):
    with Sandbox(DecodeSettings(jpeg=False), processes=1) as pool:
        first, second = pool.frames(MediaSource(str(bikes))), pool.frames(MediaSource(str(bikes)))
        for _ in range(5):
            assert next(first).frame_index == next(second).frame_index
        assert isinstance(pool.image(stills[0]), Frame)
        first.close()
        second.close()
        assert pool.probe(MediaSource(str(bikes))).frame_count == 250


def test_damaged_video_yields_what_is_whole_then_raises(sandbox, tmp_path):
    from tests.vfm_ops.media.video_files import encode_video

    path = encode_video(tmp_path / "v.mkv", count=120)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    numbers: list[int] = []
    with pytest.raises(MediaError) as caught:
        numbers.extend(frame.frame_index for frame in sandbox.frames(MediaSource(str(path))))
    assert caught.value.kind == "truncated"
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 20


def test_threads_share_the_pool(sandbox, stills):
    results: dict[int, list] = {}

    def work(number: int) -> None:
        results[number] = list(sandbox.images(stills[number : number + 30]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert [frame.jpeg for frame in results[number]] == [
            Path(s.uri).read_bytes() for s in stills[number : number + 30]
        ]


def test_memory_guard_costs_one_item(tmp_path, stills):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGBA", (9000, 9000)).save(buffer, "PNG")
    large = MediaSource("large.png", data=buffer.getvalue())
    with Sandbox(DecodeSettings(limits=Limits(memory_mb=256))) as pool:
        results = list(pool.images([stills[0], large, stills[1]]))
    assert [getattr(result, "kind", "ok") for result in results] == ["ok", "memory", "ok"]


PARENT = """
import sys
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.sandbox_protocol import ITEM
from vfm_ops.media.source import MediaSource
pool = Sandbox(DecodeSettings())
pool.image(MediaSource(sys.argv[1]))
print("ready", flush=True)
pool.image(MediaSource(sys.argv[2]))
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["hanging", "stopped"])
def test_children_die_with_a_killed_parent(stills, hanging, stopped):
    command = [sys.executable, "-c", PARENT, stills[0].uri, hanging.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as parent:
        assert parent.stdout.readline() == b"ready\n"
        children = psutil.Process(parent.pid).children()
        assert len(children) == 1
        if stopped:
            children[0].suspend()
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_closing_stops_every_child_and_frames_stay_valid(stills):
    pool = Sandbox(SETTINGS, processes=2)
    frames = list(pool.images(stills[:40]))
    children = [p for p in psutil.Process().children() if "sandbox_worker" in " ".join(p.cmdline())]
    pool.close()
    assert_same(frames[39], image_frame(stills[39], SETTINGS))
    with pytest.raises(VfmError, match="closed"):
        pool.image(stills[0])
    assert sum(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in children) >= 2
    with pytest.raises(UsageError):
        Sandbox(SETTINGS, processes=0)


@pytest.mark.parametrize("decode", ["images", "frames", "thumbnails"])
def test_a_stream_that_outlives_its_pool_ends_at_once_and_starts_no_process(stills, bikes, decode):
    """It did wait a minute, in whatever the garbage collector interrupted, for what no process was asked for."""
    with Sandbox(SETTINGS) as pool:
        source = stills if decode == "images" else MediaSource(str(bikes))
        unfinished, asked = [getattr(pool, decode)(source) for _ in "ab"], time.monotonic()
        for stream in unfinished:
            next(stream)
    pids = {p.pid for p in psutil.Process().children(recursive=True)}
    unfinished.pop().close()
    with contextlib.suppress(VfmError):  # which says that the pool is closed, unless there was nothing left to ask for
        list(unfinished.pop())
    assert time.monotonic() - asked < 20
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= pids


def test_long_video_streams_with_flat_shared_memory(sandbox, bikes):
    """Slabs are bounded: frames that are not kept leave nothing behind."""
    assert sum(1 for _ in sandbox.frames(MediaSource(str(bikes)))) == 250
    sizes = [os.stat(f"/proc/self/fd/{fd}").st_size for fd in os.listdir("/proc/self/fd") if _is_slab(fd)]
    assert sizes
    assert max(sizes) <= 32 << 20


def _is_slab(fd: str) -> bool:
    try:
        return "vfm-slab" in os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return False


def test_the_decoder_process_loads_no_model_library():
    code = "import sys, vfm_ops.media.sandbox_worker, vfm_ops.media.sandbox, vfm_ops.media.shots; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, check=True, text=True, cwd=Path(__file__).parents[3]).stdout
    assert not {"torch", "transformers", "timm", "ray", "lance", "decord", "pyarrow"} & set(loaded.split())
