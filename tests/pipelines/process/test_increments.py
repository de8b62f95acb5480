"""If these fail, an op that is added, changed or removed decodes or computes what is there already, or leaves holes."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.lake import Lake, verify_lake
from pipelines.lake.coverage import FOLD_SURPLUS, AssetSet, cover
from pipelines.lake.maintenance import maintain
from pipelines.process.recipe import Recipe
from pipelines.process.run import process
from pipelines.process.units import cut_units
from pipelines.sources import ingest
from tests.chaos.rows import differences
from vfm_ops.errors import UsageError
from vfm_ops.media.encode import write_video

OPS = """
import os
import numpy as np
import pyarrow as pa
from pydantic import Field
from vfm_ops import op

def note(name, count):
    with open(os.environ["CALLS"], "a") as file:
        file.write(f"{name} {count}\\n")

@op.op(adds={"shade": pa.float32()}, needs=op.View(16))
def shade(images):
    note("shade", len(images))
    return images.mean(axis=(1, 2, 3))

class Bounds(op.Settings):
    least: float | None = None
    scale: float = 1.0
    later: int = 0  # as the next release adds one

class Measure(op.Op):
    name, adds, needs, main = "measure", {"red": pa.float32()}, op.View(16), "least"
    bounds, Settings = ("least",), Bounds
    def run(self, images):
        note("measure", len(images))
        return images[..., 0].mean(axis=(1, 2)) * self.settings.scale
    def keep(self, red):
        return [f"red below {self.settings.least:g}" if r < self.settings.least else None for r in red]

@op.op(needs=op.View(16))
def greener(images):
    note("greener", len(images))
    return [bool(i[..., 1].mean() >= i[..., 2].mean()) for i in images]

class BlobSettings(op.Settings):
    least: int = 128

class Blobs(op.Op):
    name, main, Settings = "blobs", "least", BlobSettings
    table = op.Table("blobs", {"row": pa.int32(), "level": pa.float32()})
    def run(self, images):
        note("blobs", len(images))
        bright = [image[..., 0].mean(axis=1) for image in images]
        return [[{"row": i, "level": float(v)} for i, v in enumerate(b) if v > self.settings.least][:3] for b in bright]

class Changes(op.VideoOp):
    name, table, chunk_frames = "changes", op.Table("changes", {"frame_index": pa.int64(), "luma": pa.float32()}), 8
    def begin(self, video):
        return 0.0
    def chunk(self, video, state, frames):
        note("changes", len(frames))
        assert {f.pixels.shape for f in frames} == {(video.height, video.width, 3)}
        rows = [{"frame_index": f.index, "luma": float(f.pixels.mean())} for f in frames]
        return state + len(rows), rows
    def dumps(self, state):
        return str(state).encode()
    def loads(self, video, data):
        return float(data)
    def end(self, video, state):
        assert state == video.frames
        return []

class Stir(op.ShotOp):
    name, adds, needs, frames_per_shot = "stir", {"moved": pa.float32(), "seen": pa.int32()}, op.View(16), 3
    def run(self, shots):
        note("stir", sum(map(len, shots)))
        moved = [float(np.abs(np.diff(s.astype(int), axis=0)).mean()) for s in shots]
        return {"moved": moved, "seen": [len(s) for s in shots]}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    ramp = np.tile(np.linspace(0, 255, 96, dtype=np.uint8), (64, 1))
    for i in range(8):
        picture = np.stack(
            [np.roll(ramp, 9 * i, axis=1) // (1 + i % 3), np.full_like(ramp, 30 * i), ramp[:, ::-1]], axis=2
        )
        Image.fromarray(picture).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
    write_video(folder / "clip.mp4", (np.roll(base, 4 * i, axis=1) // (1 + i // 12) for i in range(24)), 6)
    return folder


@pytest.fixture
def lake(tmp_path, corpus, monkeypatch) -> Lake:
    """An ingested lake, its sources in a folder of their own, and ops of another package whose calls are counted."""
    (tmp_path / "their_ops.py").write_text(OPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_ops", raising=False)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "in").symlink_to(corpus)
    ingest([str(corpus)], str(tmp_path / "lake"))
    return Lake.open(tmp_path / "lake")


def calls(tmp_path: Path) -> dict[str, int]:
    """Pictures that each op has seen since this was last asked."""
    path, seen = tmp_path / "calls", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        name, count = line.split()
        seen[name] = seen.get(name, 0) + int(count)
    path.unlink(missing_ok=True)
    return seen


def run(lake: Lake, *ops, **sections):
    return process(lake, Recipe(ops=ops, **sections)).counts


def test_ops_of_another_package_work_in_a_recipe_whatever_their_kind(lake, tmp_path):
    """A column, two filters (one measures), a table, and an op on videos; after a filter, an op sees what is left."""
    ops = [
        "their_ops:shade",
        {"their_ops:Measure": 50},
        "their_ops:greener",
        {"their_ops:Blobs": 20},
        "their_ops:Changes",
    ]
    counts = run(lake, *ops)
    seen = calls(tmp_path)
    frames = 8 + 4
    assert seen["shade"] == seen["measure"] == frames
    assert seen["greener"] < frames
    assert seen["blobs"] == lake.count("frames") == frames - lake.count("dropped") < seen["greener"]
    assert seen["changes"] == 24 == lake.count("changes")
    assert counts["dropped"] == lake.count("dropped") > 0
    reasons = set(lake.read("dropped", ["reason"])["reason"].to_pylist())
    assert reasons == {"red below 50", "greener"}
    assert lake.count("frames", "shade IS NULL OR blobs_count IS NULL") == 0
    assert lake.count("blobs") == sum(lake.read("frames", ["blobs_count"])["blobs_count"].to_pylist()) > 0
    assert verify_lake(lake).violations == []
    assert run(lake, *ops).get("assets", 0) == 0
    assert calls(tmp_path) == {}


def test_a_run_over_many_segments_is_one_run(lake, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.process.plan.SEGMENT", 2)
    monkeypatch.setattr("pipelines.process.run.cut_units", partial(cut_units, first=2, largest=2))
    told = []
    summary = process(lake, Recipe(ops=["their_ops:shade"]), progress=lambda committer, total: told.append(total))
    assert summary.counts["assets"] == lake.count("assets") == 9
    assert set(told) == {9}
    assert calls(tmp_path) == {"shade": 12}
    assert verify_lake(lake).violations == []


def test_what_comes_late_equals_what_came_first_and_opens_no_source(lake, tmp_path, corpus):
    ops = [
        "quality",
        "phash",
        {"embed": {"model": "timm:pocket"}},
        "their_ops:shade",
        {"their_ops:Measure": 50},
        "their_ops:Blobs",
    ]
    late = Lake.create(tmp_path / "late")
    ingest([str(corpus)], late.root)
    run(lake, *ops)
    run(late)
    moved = corpus.rename(corpus.with_name("gone"))  # no source can be opened any more
    try:
        for i in range(1, len(ops) + 1):
            run(late, *ops[:i])
    finally:
        moved.rename(corpus)
    assert differences(lake, late, ignore={"dropped"}) == []
    assert late.count("dropped") == lake.count("dropped") > 0


def test_only_what_changed_is_computed(lake, tmp_path):
    base = ["their_ops:shade", {"their_ops:Blobs": 128}]
    run(lake, *base)
    frames = lake.count("frames")
    assert calls(tmp_path) == {"shade": frames, "blobs": frames}
    before = lake.count("blobs")
    run(lake, "their_ops:shade", {"their_ops:Blobs": 60})
    assert calls(tmp_path) == {"blobs": frames}, "only the op whose settings changed"
    assert lake.count("blobs") > before
    assert verify_lake(lake).violations == []
    run(lake, "their_ops:shade", {"their_ops:Blobs": 60}, {"their_ops:Measure": {}})
    assert calls(tmp_path) == {"measure": frames}, "only the op that is new"
    run(lake, "their_ops:shade")
    run(lake, "their_ops:shade", {"their_ops:Blobs": 60}, {"their_ops:Measure": {}})
    assert calls(tmp_path) == {}, "an op that was removed and put back has its values"
    run(lake, {"their_ops:Measure": {"scale": 2.0}})
    assert calls(tmp_path) == {"measure": frames}
    maintain(lake)
    run(lake, {"their_ops:Measure": {"scale": 2.0}}, "their_ops:shade")
    assert calls(tmp_path) == {}, "progress is not read off files that maintenance rewrites"


def test_a_setting_with_a_default_that_the_next_release_adds_makes_nothing_pending(lake, tmp_path, monkeypatch):
    old = OPS.replace("    later: int = 0  # as the next release adds one\n", "")
    (tmp_path / "their_ops.py").write_text(old)
    run(lake, "quality", {"their_ops:Measure": 50}, "their_ops:Changes")
    assert calls(tmp_path).keys() == {"measure", "changes"}
    (tmp_path / "their_ops.py").write_text(OPS)
    monkeypatch.delitem(sys.modules, "their_ops")
    run(lake, "quality", {"their_ops:Measure": 50}, "their_ops:Changes")
    assert calls(tmp_path) == {}


def test_a_filter_loosened_tightened_and_removed_computes_nothing_twice(lake, tmp_path):
    run(lake, {"their_ops:Measure": 50}, "their_ops:shade")
    total = lake.count("frames") + lake.count("dropped")
    kept = lake.count("frames")
    assert calls(tmp_path) == {"measure": total, "shade": kept}
    run(lake, {"their_ops:Measure": 30}, "their_ops:shade")
    looser = lake.count("frames")
    assert looser > kept
    assert calls(tmp_path) == {"shade": looser - kept}, "only of the frames that came back"
    run(lake, {"their_ops:Measure": 60}, "their_ops:shade")
    assert lake.count("frames") < looser
    run(lake, {"their_ops:Measure": {}}, "their_ops:shade")
    assert (lake.count("frames"), lake.count("dropped")) == (total, 0)
    assert calls(tmp_path) == {"shade": total - looser}
    run(lake, "their_ops:greener", "their_ops:shade")
    assert calls(tmp_path) == {"greener": total}
    assert verify_lake(lake).violations == []
    run(lake, "their_ops:shade")
    assert (lake.count("frames"), lake.count("dropped")) == (total, 0)


def test_another_sampling_and_back_decodes_only_what_is_missing(lake, tmp_path):
    """From 1 to 3 frames a second and back, with a filter: each frame is decoded and measured once; stills never again."""
    ops = ["their_ops:shade", {"their_ops:Measure": 50}]
    shots = {"detector": "content"}
    run(lake, *ops, shots=shots)
    total = lake.count("frames") + lake.count("dropped")
    sparse = sorted(lake.read("frames", ["frame_id"])["frame_id"].to_pylist())
    assert calls(tmp_path)["shade"] == total == 8 + 4
    run(lake, *ops, shots=shots, sampling={"fps": 3})
    assert calls(tmp_path)["shade"] == 12 - 4, "the clip's frames that were not there"
    dense = sorted(lake.read("frames", ["frame_id"])["frame_id"].to_pylist())
    assert len(dense) > len(sparse)
    assert verify_lake(lake).violations == []
    for fps, expected in ((1, sparse), (3, dense)):
        run(lake, *ops, shots=shots, sampling={"fps": fps})
        assert sorted(lake.read("frames", ["frame_id"])["frame_id"].to_pylist()) == expected
        assert calls(tmp_path) == {}
        assert verify_lake(lake).violations == []
    run(lake, *ops, "phash", shots=shots, sampling={"fps": 1})
    run(lake, *ops, "phash", shots=shots, sampling={"fps": 3})
    assert lake.count("frames", "phash IS NULL") == 0
    run(lake, *ops, "phash", shots=shots, jpeg={"quality": 80})
    assert calls(tmp_path)["shade"] == 12, "other pictures: everything anew"
    assert lake.count("ledger") == 9
    assert verify_lake(lake).violations == []


def test_an_asset_that_comes_later_is_done_alone(lake, tmp_path, corpus):
    ops = ["their_ops:shade", {"their_ops:Measure": 50}, "their_ops:Blobs", "their_ops:Changes"]
    run(lake, *ops)
    calls(tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(new / "red.jpg")
    ingest([str(new)], lake.root)
    assert run(lake, *ops)["assets"] == 1
    assert calls(tmp_path) == {"shade": 1, "measure": 1, "blobs": 1}
    Image.new("RGB", (40, 40), (10, 200, 10)).save(
        new / "red.jpg"
    )  # changed: its old values are those of another picture
    ingest([str(new)], lake.root)
    run(lake, *ops)
    assert calls(tmp_path) == {"shade": 1, "measure": 1}
    assert verify_lake(lake).violations == []


def test_a_run_leaves_coverage_folded_and_computes_nothing_again_for_it(lake, tmp_path):
    """As many commits as a long run makes."""
    run(lake, "their_ops:shade")
    (key,) = set(lake.read("coverage", ["key"])["key"].to_pylist())
    for number in range(FOLD_SURPLUS):
        cover(lake, {key: "shade"}, AssetSet([number % 9]), "earlier")
    calls(tmp_path)
    run(lake, "their_ops:shade")
    assert lake.count("coverage") == 1
    assert calls(tmp_path) == {}
    assert verify_lake(lake).violations == []


def test_an_op_on_videos_is_not_tried_again_by_its_frames(lake):
    with pytest.raises(UsageError, match="op changes is on videos: what it failed on is in quarantine"):
        process(lake, Recipe(ops=["their_ops:Changes"]), retry="changes")
    assert lake.count("ledger") == 0


def test_values_of_an_op_that_left_the_recipe_are_pending_for_what_came_since_and_violated_where_it_was_done(
    lake, tmp_path, corpus
):
    ops = ["their_ops:shade", {"their_ops:Blobs": 20}]
    run(lake, *ops)
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "late.png")
    ingest([str(tmp_path / "late.png")], lake.root)
    run(lake, "their_ops:shade")
    report = verify_lake(lake)
    assert report.violations == []
    assert [p.startswith("frames: 1 rows have no blobs_count yet") for p in report.pending] == [True]
    some = lake.read("frames", ["frame_id"], "blobs_count > 0")["frame_id"][0].as_py()
    lake.update("frames", {"shade": "NULL", "blobs_count": "NULL"}, f"frame_id = '{some}'")
    said = verify_lake(lake).violations
    assert any("1 rows have no shade, though op shade is done with them" in v for v in said)
    assert any("1 rows have no blobs_count, though op blobs is done with them" in v for v in said)
    assert any("blobs: rows of op blobs are not those that blobs_count counts" in v for v in said)
    for op in ("shade", "blobs"):
        process(lake, Recipe(ops=ops), retry=op)
    assert verify_lake(lake).violations == verify_lake(lake).pending == []


def test_rows_of_an_ops_table_that_moved_to_another_frame_are_found(lake):
    """There are as many as the frames say altogether."""
    run(lake, {"their_ops:Blobs": 20})
    first, second = lake.read("frames", ["frame_id"], "blobs_count > 0")["frame_id"].to_pylist()[:2]
    lake.update("blobs", {"frame_id": f"'{second}'"}, f"frame_id = '{first}'")
    assert any("blobs: rows of op blobs are not those" in v for v in verify_lake(lake).violations)


def test_an_op_on_videos_that_fails_costs_its_rows_of_that_video_and_is_tried_again_by_name(
    lake, tmp_path, monkeypatch
):
    (tmp_path / "their_ops.py").write_text(OPS.replace('note("changes", len(frames))', "raise ValueError('no luck')"))
    ops = ["their_ops:shade", "their_ops:Changes"]
    counts = run(lake, *ops)
    assert counts["quarantined"] == 1
    (row,) = lake.read("quarantine", ["op", "stage", "message"]).to_pylist()
    assert (row["op"], row["stage"]) == ("changes", "changes")
    assert "no luck" in row["message"]
    assert lake.count("frames") == 12
    assert verify_lake(lake).violations == []
    (tmp_path / "their_ops.py").write_text(OPS)
    monkeypatch.delitem(sys.modules, "their_ops")
    assert run(lake, *ops).get("videos", 0) == 0, "what failed is not tried again by itself"
    assert process(lake, Recipe(ops=ops), retry=True).counts["videos"] == 1
    assert (lake.count("quarantine"), lake.count("changes")) == (0, 24)
    assert verify_lake(lake).violations == []


def test_an_op_on_shots_gives_a_row_a_shot(lake, tmp_path):
    with pytest.raises(ValueError, match=r"stir is on shots: set shots.detector to"):
        run(lake, "their_ops:Stir")
    shots = {"detector": "content", "min_length_s": 1.0}
    run(lake, "their_ops:Stir", shots=shots)
    there = lake.read("shots", ["shot_id", "start_frame", "end_frame"]).to_pylist()
    assert len(there) >= 2, "the clip darkens at its twelfth frame"
    rows = {row["shot_id"]: row for row in lake.read("stir").to_pylist()}
    assert rows.keys() == {shot["shot_id"] for shot in there}
    assert all(
        row["seen"] == min(3, s["end_frame"] - s["start_frame"] + 1) for s in there for row in [rows[s["shot_id"]]]
    )
    assert all(row["moved"] > 0 and row["end_s"] > row["start_s"] for row in rows.values())
    assert calls(tmp_path)["stir"] == sum(row["seen"] for row in rows.values())
    assert verify_lake(lake).violations == []
    run(lake, "their_ops:Stir", "their_ops:shade", shots=shots, sampling={"fps": 3})
    assert "stir" not in calls(tmp_path), "another sampling changes nothing about a shot"
    run(lake, "their_ops:Stir", "their_ops:shade", shots={**shots, "threshold": 200.0})
    assert calls(tmp_path)["stir"] == 3 == lake.read("stir", ["seen"])["seen"].to_pylist()[0], "other shots: anew"
    assert lake.count("stir") == lake.count("shots") == 1
    assert verify_lake(lake).violations == []


def test_two_of_a_kind_have_a_name_each(lake):
    with pytest.raises(UsageError, match="op blobs is in the recipe twice: call one of them something else, with `as`"):
        run(lake, {"their_ops:Blobs": 128}, {"their_ops:Blobs": 60})
    run(lake, {"their_ops:Blobs": 128}, {"their_ops:Blobs": {"least": 60, "as": "dim"}}, "their_ops:shade")
    assert lake.count("blobs", "op = 'dim'") > lake.count("blobs", "op = 'blobs'") > 0
    assert {"blobs_count", "dim_count"} <= set(lake.schema("frames").names)
    assert verify_lake(lake).violations == []
    twin = {"their_ops:Measure": {"as": "twin"}}  # differs from the one that is there in nothing but its name
    run(lake, {"their_ops:Measure": {}})
    run(lake, {"their_ops:Measure": {}}, twin)
    assert lake.count("frames", "twin IS NULL") == lake.count("frames", "red IS NULL") == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('at import')", "can't be imported: RuntimeError: at import"),
        (
            "from vfm_ops import op\nclass O(op.Op):\n    name = 'o'\n    def __init__(self): 1 / 0",
            "op wrong:O can't be built",
        ),
        (
            "import pyarrow as pa\nfrom vfm_ops import op\nclass O(op.Op):\n    name = 'o'\n"
            "    table = op.Table('frames', {'x': pa.int32()})",
            "op o has a table 'frames', which is the lake's own",
        ),
        (
            "import pyarrow as pa\nfrom vfm_ops import op\nclass O(op.Op):\n    name = 'o'\n"
            "    table = op.Table('things', {'x': pa.int32()})\n    def run(self, images): return [[{'y': 1}]] * len(images)",
            "op o gave a row .* rows of table things are dicts of",
        ),
        (
            "from vfm_ops import op\nclass O(op.Op):\n    name = 'o'\n    def run(self, images): return [3.5] * len(images)",
            "op o decided 3.5: a filter gives booleans, or reasons and None",
        ),
    ],
)
def test_wrong_ops_are_named_and_cost_no_other_rows(lake, tmp_path, monkeypatch, source, message):
    run(lake, "their_ops:shade")
    (tmp_path / "wrong.py").write_text(source)
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    with pytest.raises(Exception, match=message):
        run(lake, "their_ops:shade", "wrong:O")
    assert lake.count("frames", "shade IS NULL") == 0
    assert verify_lake(lake).violations == []
