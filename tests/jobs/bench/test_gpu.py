"""If this fails, who borrows a card for ten minutes gets a traceback, or wrong floors.

No test has a card: all parts run at toy sizes on a CPU, with CUDA forbidden; what only a card can run is not shown here.
"""

from __future__ import annotations

import json
import time
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jobs.bench import cards, command, gpu
from jobs.bench.gpu_conclusions import conclusions
from jobs.bench.gpu_decode import process_counts
from jobs.bench.gpu_measure import Floors, Work, count, count_batches
from jobs.cli import run
from vfm_ops.errors import UsageError

# What a machine without the card or the package has no figure of.
LACKING = ("needs a card", "not installed: pip install", "is installed and can't be loaded")


def forbid_cuda() -> None:
    raise AssertionError("CUDA was started on a CPU run")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(rows, the file that they were kept in) of the whole benchmark."""
    kept = tmp_path_factory.mktemp("gpu") / "rows.json"
    with mock.patch.object(torch.cuda, "_lazy_init", forbid_cuda):
        return gpu.measure(True, kept, "cpu"), kept


def test_every_part_runs_whole_on_a_cpu_and_nothing_fails(report):
    rows, _ = report
    without = [row for row in rows if row["ours"] is None and row["what"] != "card"]
    assert [row for row in without if not any(reason in row["note"] for reason in LACKING)] == []
    for start in (
        "JPEGs, ",
        "H.264, ",
        "embed, ",
        "JPEGs to vectors",
        "track, ",
        "detect, ",
        "pretrain, ",
        "views for ",
    ):
        assert any(row["what"].startswith(start) and row["ours"] > 0 for row in rows if row["ours"]), start
    assert len({gpu.identity(row) for row in rows}) == len(rows), "two rows have one name"


def test_a_floor_is_that_of_the_peaks_measured_in_the_run(report):
    rows, _ = report
    floored = [row for row in rows if row["MFU"] is not None]
    assert {row["what"].partition(",")[0] for row in floored} == {"embed", "track", "detect", "pretrain"}
    for row in floored:
        assert row["ratio"] == pytest.approx(row["ours"] / row["floor"])
        assert row["ratio"] >= row["MFU"] * 0.999, "the roofline is never below the FLOPs alone"
        assert row["bound by"] != "FLOPs" or row["ratio"] == pytest.approx(row["MFU"])


def test_what_was_measured_is_not_measured_again(report):
    rows, kept = report
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "rows": rows}))  # as the command leaves it
    again = []

    def attempt(make):
        again.append(make)
        return {"note": LACKING[0]}

    with mock.patch.object(gpu, "attempt", attempt):
        second = gpu.measure(True, kept, "cpu")
    figures = [row for row in rows if row["ours"] is not None or row["what"] == "card"]
    assert [row for row in second if row["ours"] is not None or row["what"] == "card"] == figures
    assert len(again) == sum(row["ours"] is None for row in rows) - 1, (
        "what had no figure is tried again, the card aside"
    )
    assert json.loads(kept.read_text())["device"] == "cpu"


def test_a_part_in_a_process_of_its_own_hands_over_its_rows_and_its_end():
    request = {"device": "cpu", "quick": True, "ends": time.time() + 250, "rows": []}
    rows = list(gpu.run_apart("floors", request))
    assert [row["what"] for row in rows if row.get("ours", 1) > 0] == [row["what"] for row in rows]
    assert len(rows) == 3
    (broken,) = gpu.run_apart("nothing", request)
    assert "gpu_nothing" in broken["note"]


def test_a_part_that_hangs_is_ended_and_its_other_rows_go_on_next_time():
    late = {"device": "cpu", "quick": True, "ends": time.time() - gpu.GRACE_S, "rows": []}
    (row,) = gpu.run_apart("floors", late)
    assert row == {"what": "floors: the rest", "note": gpu.NOT_REACHED}
    assert all(row["note"] == gpu.NOT_REACHED for row in gpu.run_part("floors", late))


def test_one_way_that_fails_costs_its_row():
    def explode():
        raise RuntimeError("no kernel image\nmore")

    assert gpu.attempt(explode) == {"note": "failed: RuntimeError: no kernel image"}
    with mock.patch.object(gpu, "gc"):
        assert gpu.attempt(mock.Mock(side_effect=torch.OutOfMemoryError())) == {"note": "out of memory"}


def test_flops_and_bytes_of_a_layer_are_those_of_the_textbook():
    layer, x = nn.Linear(64, 32).to(torch.bfloat16), torch.zeros(8, 64, dtype=torch.bfloat16)
    assert count(lambda: layer(x)) == Work(2 * 8 * 64 * 32, 2 * (8 * 64 + 64 * 32 + 32 + 8 * 32))
    q = torch.zeros(2, 4, 16, 8)
    assert count(lambda: F.scaled_dot_product_attention(q, q, q)).flops == 2 * 2 * (2 * 4) * 16 * 16 * 8
    with torch.inference_mode():
        assert count(lambda: layer(x)).flops == 2 * 8 * 64 * 32


def test_flops_of_a_step_are_three_times_those_of_its_forward():
    layer, x = nn.Linear(64, 32), torch.zeros(8, 64, requires_grad=True)
    assert count(lambda: layer(x).sum().backward()).flops == 3 * 2 * 8 * 64 * 32


def test_a_vit_b_has_the_flops_that_its_authors_count():
    """Products of a patch embedding, 12 blocks of width 768 and 197 tokens: 17.6 billion multiply-adds an image."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0).eval().requires_grad_(False)
    work = count_batches(lambda batch: model(torch.zeros(batch, 3, 224, 224, device="meta")))
    tokens, width = 197, 768
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    assert work(5).flops == pytest.approx(5 * 2 * (196 * 768 * width + 12 * block), rel=1e-6)
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert work(64).bytes < 64 * work(1).bytes - 62 * 0.9 * weights, "weights are read once a batch"


def test_the_roofline_is_the_slower_of_its_two_floors():
    floors = Floors(flops=1e12, bytes=1e9)
    assert floors.seconds(Work(2e12, 1e9)) == 2
    assert floors.bound(Work(2e12, 1e9)) == "FLOPs"
    assert floors.seconds(Work(1e12, 3e9)) == 3
    assert floors.bound(Work(1e12, 3e9)) == "bytes"


def rated(what: str, way: str, ours: float, batch: int | None = None) -> dict:
    return {"what": what, "way": way, "ours": ours, "batch": batch}


def test_conclusions_name_the_fastest_way_and_what_the_card_waits_for():
    rows = [
        rated("JPEGs, 1280 x 720: images/s", "our sandbox, 1 processes", 100),
        rated("JPEGs, 1280 x 720: images/s", "our sandbox, 8 processes", 400),
        rated("JPEGs, 1280 x 720: images/s", "nvJPEG by torchvision", 9000),
        rated("embed, ViT-B/16: images/s", "ours, runtime auto", 500, 32),
        rated("embed, ViT-B/16: images/s", "ours, runtime auto", 600, 128),
        rated("embed, ViT-B/16: images/s", "CUDA graph, bf16 weights", 800, 128),
        rated("detect, OWLv2 base: images/s", "ours, precision auto", 5, 8),
        rated("detect, OWLv2 base: images/s", "network alone", 50, 8),
        rated("detect, OWLv2 base: images/s", "float32", 2, 8),
    ]
    with mock.patch("os.cpu_count", return_value=8):
        embed, detect, cores = conclusions(rows)
    assert (embed["ratio"], embed["ours"], embed["floor"]) == (0.75, 600, 800)
    assert "fastest: CUDA graph, bf16 weights, batch 128; ours: ours, runtime auto, batch 128" in embed["note"]
    assert detect["ratio"] == 1
    assert cores["ours"] == 600 / (400 / 8)
    assert "the bottleneck is decoding" in cores["note"]
    with mock.patch("os.cpu_count", return_value=16):
        assert "the bottleneck is the card" in conclusions(rows)[-1]["note"]
    assert conclusions([]) == []


def test_decoding_is_measured_at_powers_of_two_and_on_all_cores():
    assert [process_counts(n) for n in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]


def test_without_a_card_one_sentence_says_so(capsys):
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        assert run(command, ["gpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "torch sees no CUDA device" in error
    assert "--device cpu --quick" in error


def test_another_benchmark_has_no_device(capsys):
    assert run(command, ["decode", "--device", "cpu"]) == 2
    assert "--device is of gpu" in capsys.readouterr().err
    with pytest.raises(UsageError, match="unknown device"):
        gpu.measure(True, None, "tpu")


def test_rows_of_a_machine_with_another_card_are_others(tmp_path):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 16\n")
    assert cards(tmp_path) == ["NVIDIA H200"]
    assert cards(tmp_path / "none") == []
