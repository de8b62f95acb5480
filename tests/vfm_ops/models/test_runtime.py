"""The seam gives the module's own results, whatever the batch, the runtime and the luck of the cache."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vfm_ops.errors import UsageError
from vfm_ops.models import cache, openvino_runtime, runtime, torch_runtime
from vfm_ops.models.calibration import dead_leaves, min_cosine
from vfm_ops.models.device import resolve_device
from vfm_ops.models.runtime import compile_module

RUNTIMES = ("torch", "openvino")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_told", set())
    return tmp_path / "cache"


class Small(nn.Module):
    """uint8 (B, 16, 16, 3) -> (B, 8) and (B, 64, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.head = nn.Linear(4, 8)

    def forward(self, x):
        maps = self.conv(x.float().permute(0, 3, 1, 2) / 255).relu().flatten(2)
        return self.head(maps.mean(2)), maps.transpose(1, 2)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(frames):
    with torch.no_grad():
        return tuple(o.numpy() for o in Small().eval()(torch.from_numpy(frames)))


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("size", [1, 3, 4, 11])
def test_any_batch_gives_the_modules_own_outputs(name, size, frames, expected):
    compiled = compile_module(Small().eval(), frames[:2], device="cpu", runtime=name, precision="exact", static_batch=4)
    assert (compiled.runtime, compiled.precision, compiled.batch) == (name, "exact", 4)
    for got, want in zip(compiled(frames[:size]), expected, strict=True):
        np.testing.assert_allclose(got, want[:size], atol=1e-5)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_a_frame_alone_and_in_a_batch_is_the_same(name, precision, frames):
    compiled = compile_module(Small().eval(), frames[:1], device="cpu", runtime=name, precision=precision)
    together = compiled(frames)
    alone = [compiled(frame[None]) for frame in frames]
    for index, output in enumerate(together):
        assert min_cosine((np.concatenate([a[index] for a in alone]),), (output,)) >= 0.9999


@pytest.mark.parametrize("name", RUNTIMES)
def test_stream_keeps_order_and_sizes(name, frames, expected):
    compiled = compile_module(Small().eval(), frames, device="cpu", runtime=name, precision="exact", static_batch=2)
    cuts = [slice(0, 3), slice(3, 3), slice(3, 4), slice(4, 11)]
    results = list(compiled.map(frames[c] for c in cuts))
    assert [len(r[0]) for r in results] == [3, 0, 1, 7]
    np.testing.assert_allclose(np.concatenate([r[0] for r in results]), expected[0], atol=1e-5)


def test_reversed_and_sliced_views_are_read_as_they_are(frames, expected):
    compiled = compile_module(Small().eval(), frames, device="cpu", runtime="openvino", precision="exact")
    np.testing.assert_allclose(compiled(frames[::-2])[0], expected[0][::-2], atol=1e-5)


def test_threads_may_share_one_callable(frames, expected):
    compiled = compile_module(Small().eval(), frames, device="cpu", runtime="openvino", precision="exact", streams=2)
    results: dict[int, np.ndarray] = {}

    def call(i: int) -> None:
        results[i] = compiled(frames[i : i + 1])[0]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.concatenate([results[i] for i in range(11)]), expected[0], atol=1e-5)


def test_streams_left_half_read_or_interleaved_disturb_nobody(frames, expected):
    compiled = compile_module(
        Small().eval(), frames, device="cpu", runtime="openvino", precision="exact", static_batch=1
    )
    abandoned = compiled.map(frames[i : i + 2] for i in range(10))
    next(abandoned)
    one, two = (compiled.map(frames[i : i + 1] for i in range(11)) for _ in range(2))
    pairs = [(a[0], b[0]) for a, b in zip(one, two, strict=True)]
    abandoned.close()
    for got in zip(*pairs, strict=True):
        np.testing.assert_allclose(np.concatenate(got), expected[0], atol=1e-5)


class InOrder:
    """A card's stream in the place of a module's copies: what is asked of it is done in order, and only when somebody waits."""

    ahead = torch_runtime.AHEAD

    def __init__(self) -> None:
        self.asked = self.done = 0
        self.waited_for: list[tuple[int, int]] = []  # what a reader waited for, of what was asked by then

    def upload(self, tensors):
        self.asked += 1  # the batch's copy and kernels
        return tensors

    def download(self, outputs):
        self.asked += 1
        mine = self.asked

        def read():
            self.done = max(self.done, mine)
            self.waited_for.append((self.done, self.asked))
            return outputs

        return read


def test_on_a_card_a_result_waits_for_no_later_batch(frames, expected):
    compiled = compile_module(Small().eval(), frames, device="cpu", runtime="torch", precision="exact", static_batch=1)
    compiled._copies = stream = InOrder()
    results = list(compiled.map(frames[i : i + 1] for i in range(6)))
    np.testing.assert_allclose(np.concatenate([r[0] for r in results]), expected[0][:6], atol=1e-5)
    assert len(stream.waited_for) == 6
    for waited, asked in stream.waited_for[:4]:
        assert asked - waited == 2 * torch_runtime.AHEAD, "the card has that much to do while the host handles one"


def test_tensors_on_the_device_are_answered_there(frames, expected):
    compiled = compile_module(Small().eval(), frames, device="cpu", runtime="torch", precision="exact", static_batch=11)
    for got, want in zip(compiled.on_device(torch.from_numpy(frames)), expected, strict=True):
        assert isinstance(got, torch.Tensor)
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("node", "device"), [("/dev/nvidiactl", "cuda"), ("/dev/dxg", "cuda"), ("/dev/other", "cpu")])
def test_auto_finds_the_card_of_linux_and_of_linux_inside_windows(monkeypatch, node, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == node)
    assert resolve_device("auto") == device


class Cancelling(nn.Module):
    """Its output is the small difference of large numbers: bfloat16's eight bits can't hold it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
        self.head = nn.Linear(16, 64)

    def forward(self, x):
        y = self.layers(x) + 1000
        return self.head(y) - self.head(y * 1.0001)


def test_auto_takes_float32_where_bfloat16_is_unfaithful():
    x = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    assert compile_module(Cancelling().eval(), x, device="cpu", calibration=x).precision == "exact"


def test_auto_stays_within_its_cosine_on_calibration_frames(frames, expected):
    compiled = compile_module(Small().eval(), frames, device="cpu", calibration=frames)
    assert min_cosine(compiled(frames), expected) >= runtime.FAITHFUL


def test_choice_and_graph_are_remembered_without_the_module(frames, expected, private_cache):
    first = compile_module(Small().eval, frames, device="cpu", cache_key="small")

    def never():
        raise AssertionError("the module was loaded although its graph is cached")

    second = compile_module(never, frames, device="cpu", cache_key="small")
    assert (second.runtime, second.precision) == (first.runtime, first.precision)
    np.testing.assert_array_equal(second(frames)[0], first(frames)[0])
    found = runtime.remembered(frames, cache_key="small", device="cpu")
    assert found == (first.runtime, first.precision)
    assert runtime.remembered(frames, cache_key="other", device="cpu") is None


def test_other_weights_never_get_the_cached_graph(frames):
    one = compile_module(Small().eval(), frames, device="cpu", precision="exact", cache_key="a")(frames)[0]
    other = Small().eval()
    nn.init.ones_(other.head.weight)
    two = compile_module(other, frames, device="cpu", precision="exact", cache_key="b")(frames)[0]
    assert np.abs(one - two).max() > 0.01


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "choice-cpu-auto-exact.json"])
def test_damaged_cache_is_made_anew(name, frames, expected, private_cache):
    arguments = {"device": "cpu", "precision": "exact", "cache_key": "small"}
    compile_module(Small().eval(), frames, **arguments)
    (file,) = private_cache.glob(f"ir/*/{name}")
    file.write_bytes(b"<half")
    np.testing.assert_allclose(compile_module(Small().eval(), frames, **arguments)(frames)[0], expected[0], atol=1e-5)


class Unconvertible(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x.reshape(-1, 4, 4) + torch.eye(4)).abs().sum(-1)[:, None]


def test_model_that_openvino_cannot_take_runs_on_torch_and_says_so_once(caplog):
    x = np.random.default_rng(0).random((2, 16)).astype(np.float32)
    for _ in range(2):
        compiled = compile_module(Unconvertible().eval(), x, device="cpu", precision="exact", calibration=x)
    assert compiled.runtime == "torch"
    assert logging.getLogger().level != logging.ERROR  # OpenVINO's importer would leave it there
    assert len([r for r in caplog.records if "torch runtime is used instead" in r.message]) == 1


def test_without_openvino_torch_serves_and_says_so(monkeypatch, caplog, frames, expected):
    monkeypatch.setattr(openvino_runtime, "core", lambda: None)
    openvino_runtime.native_precisions.cache_clear()
    compiled = compile_module(Small().eval(), frames, device="cpu", precision="exact")
    openvino_runtime.native_precisions.cache_clear()
    assert compiled.runtime == "torch"
    assert "openvino can't be imported" in caplog.text
    np.testing.assert_allclose(compiled(frames)[0], expected[0], atol=1e-5)


def test_unwritable_cache_costs_only_time(monkeypatch, frames, expected, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "file" / "below"))
    compiled = compile_module(Small().eval(), frames, device="cpu", precision="exact", cache_key="small")
    np.testing.assert_allclose(compiled(frames)[0], expected[0], atol=1e-5)
    assert "can't be written" in caplog.text


@pytest.mark.parametrize(
    ("settings_", "advice"),
    [
        ({"device": "tpu"}, "use auto, cpu"),
        ({"device": "cuda"}, "no CUDA device"),
        ({"runtime": "onnx"}, "auto, torch, openvino"),
        ({"precision": "int8"}, "auto, exact, bf16, fp16"),
    ],
)
def test_settings_that_cannot_be_honoured_are_answered_in_one_sentence(settings_, advice, frames):
    with pytest.raises(UsageError, match=advice):
        compile_module(Small().eval(), frames, **settings_)


def test_racing_writers_agree_on_the_first_choice(tmp_path):
    first = cache.write_once(tmp_path / "choice.json", {"precision": "bf16"})
    second = cache.write_once(tmp_path / "choice.json", {"precision": "exact"})
    assert first == second == json.loads((tmp_path / "choice.json").read_text()) == {"precision": "bf16"}
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 3.0))
def test_cosine_is_that_of_the_worst_frame(seed, angle):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((4, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    b = a.copy()
    b[2] = a[2] @ turn * 5
    assert min_cosine((b,), (a,)) == pytest.approx(np.cos(angle), abs=1e-9)


def test_calibration_frames_have_the_spectrum_of_photographs():
    grey = dead_leaves(8, 128, 128).mean(-1)
    power = np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2
    fx = np.fft.fftfreq(128) * 128
    radius = np.hypot(fx[:, None], fx[None])
    rings = np.arange(3, 30)
    ring_power = [power[:, (radius >= r) & (radius < r + 1)].mean() for r in rings]
    slope = np.polyfit(np.log(rings + 0.5), np.log(ring_power), 1)[0]
    assert -3.2 < slope < -1.6  # photographs: about -2


def test_importing_the_seam_imports_no_framework():
    code = (
        "import sys, vfm_ops.models.runtime, vfm_ops.embed, vfm_ops.models.catalogue;"
        "print([m for m in ('torch', 'timm', 'transformers', 'openvino') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
