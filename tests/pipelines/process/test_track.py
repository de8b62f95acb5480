"""Tracks of a whole corpus: rows exactly once, ids that join boxes to masks, and a long video that survives a kill."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.random_detectors import save_random
from jobs.overlay import overlay_sheet, overlay_video
from pipelines.lake import Lake, verify_lake
from pipelines.lake.journal import Journal
from pipelines.process import process
from pipelines.process.frames import Outcome
from pipelines.process.measure import StageStats
from pipelines.process.ops import PlannedOp, plan_ops
from pipelines.process.recipe import Recipe
from pipelines.process.videos import RunOnVideos
from pipelines.reporting.export import export
from pipelines.settings import validate
from pipelines.sources import ingest
from tests.vfm_ops.track.conftest import tiny_model
from vfm_ops.media.encode import write_video
from vfm_ops.track.masks import rle_iou

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """Detect-then-track with tiny random weights in the real libraries' formats."""
    folder = tmp_path_factory.mktemp("weights")
    save_random("owlvit", folder / "owl")
    tiny_model().save_pretrained(folder / "sam2")
    return validate(
        Recipe,
        {
            "detect": {"prompts": "person . bicycle .", "model": f"owlvit:{folder / 'owl'}", "threshold": 0.05},
            "track": {"model": f"sam2:{folder / 'sam2'}", "detect_every": 6, "max_objects": 3, "chunk_frames": 8},
            "resources": {"cpus_per_actor": 2},
        },
        "test",
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory, vtest) -> Path:
    """Two short real clips."""
    from jobs.bench.media import read_frames

    folder = tmp_path_factory.mktemp("clips")
    frames = [f[::4, ::4] for f in read_frames(vtest, 44)]
    write_video(folder / "first.mp4", frames[:20], 10)
    write_video(folder / "second.mp4", frames[20:], 10)
    return folder


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, clips, recipe, ray_local) -> Lake:
    """A lake after one uninterrupted run."""
    root = tmp_path_factory.mktemp("tracked") / "lake"
    ingest([str(clips)], str(root))
    process(Lake.open(root), recipe)
    return Lake.open(root)


def track_rows(lake: Lake) -> list[dict]:
    rows = lake.read("tracks").to_pylist()
    return sorted(rows, key=lambda r: (r["asset_id"], r["frame_index"], r["track_id"]))


def assert_same_tracks(got: list[dict], want: list[dict]) -> None:
    """Equal but for what another number of threads changes: a pixel of a mask, half a pixel of a box."""
    near = ("box", "mask", "score")
    assert [{k: v for k, v in r.items() if k not in near} for r in got] == [
        {k: v for k, v in r.items() if k not in near} for r in want
    ]
    for one, other in zip(got, want, strict=True):
        assert one["box"] == pytest.approx(other["box"], abs=0.5)
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
        assert one["mask"] == other["mask"] or rle_iou([one["mask"]], [other["mask"]]).item() > 0.99


def test_a_corpus_becomes_boxes_and_tracks_that_verify(tracked):
    assert verify_lake(tracked).violations == []
    assert tracked.read("quarantine", ["message", "traceback"]).to_pylist() == []
    rows = track_rows(tracked)
    assert len({r["asset_id"] for r in rows}) == 2
    assert {r["label"] for r in rows} <= {"person", "bicycle"}
    assert any(r["visible"] and r["mask"]["size"] == [144, 192] for r in rows)
    frame_ids = set(tracked.read("frames", ["frame_id"])["frame_id"].to_pylist())
    boxes = tracked.read("detections").to_pylist()
    assert boxes
    assert {b["frame_id"] for b in boxes} <= frame_ids


def test_a_video_killed_between_chunks_goes_on_to_the_same_rows(tracked, tmp_path, clips, recipe, monkeypatch):
    """The journal of a run that died after its first chunk is all that the next run has."""
    root = tmp_path / "lake"
    ingest([str(clips / "first.mp4")], str(root))
    lake = Lake.open(root)
    saves: list[int] = []
    real = Journal.save

    def save_then_die(self, progress, state):
        real(self, progress, state)
        saves.append(progress["next_frame"])
        raise KeyboardInterrupt

    killed = _op_on(lake, recipe)
    monkeypatch.setattr(Journal, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        killed._run(_outcome(lake, recipe), _counted())
    monkeypatch.setattr(Journal, "save", real)
    killed.sandbox.close()
    assert saves == [8]
    resumed = _op_on(lake, recipe)
    decoded: list[int] = []
    frames = resumed.sandbox.frames
    monkeypatch.setattr(resumed.sandbox, "frames", lambda s, i, p: (decoded.extend(i.tolist()), frames(s, i, p))[1])
    outcome = _outcome(lake, recipe)
    resumed._run(outcome, _counted())
    resumed.sandbox.close()
    assert decoded[0] == 8
    lake.commit("tracks", outcome.written["tracks"])
    asset = outcome.asset_id
    assert_same_tracks(track_rows(lake), [r for r in track_rows(tracked) if r["asset_id"] == asset])


def test_a_run_killed_while_it_tracks_ends_with_the_same_rows(tmp_path, recipe, vtest, without_ray):
    """SIGKILL of the process group in the middle of a chunk, then the same command.

    VFM_TRACK_MINUTES: length of the video, of 10 frames/s.
    """
    from jobs.bench.media import read_frames

    minutes = float(os.environ.get("VFM_TRACK_MINUTES", "0.1"))
    shrunk = [f[::4, ::4] for f in read_frames(vtest, min(round(600 * minutes), 790))]
    write_video(tmp_path / "long.mp4", itertools.islice(itertools.cycle(shrunk), round(600 * minutes)), 10)
    if minutes > 1:  # chunks as long as usual, as each is a fragment
        (track,) = [entry["track"] for entry in recipe.ops if "track" in entry]
        recipe = validate(Recipe, recipe.model_dump() | {"track": track | {"chunk_frames": 256}}, "test")
    recipe = validate(Recipe, recipe.model_dump() | {"resources": {}}, "test")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    killed, never = tmp_path / "killed", tmp_path / "never"
    for root in (killed, never):
        ingest([str(tmp_path / "long.mp4")], str(root))
    command = [sys.executable, "-m", "jobs.process", "--lake", str(killed), "--recipe", str(tmp_path / "recipe.yaml")]
    moments, reached = random.Random(int(os.environ.get("VFM_KILL_SEED", "7"))), 0
    for _ in range(int(os.environ.get("VFM_KILLS", "1"))):
        reached = _killed_past(command, killed, reached, moments.uniform(0, 0.5))
        print(f"killed; goes on from frame {reached}")
    assert reached > 0
    assert subprocess.run(command, env=_alone(), capture_output=True).returncode == 0
    process(Lake.open(never), recipe)
    assert Lake.open(never).count("tracks") > 0
    assert_same_tracks(track_rows(Lake.open(killed)), track_rows(Lake.open(never)))
    assert verify_lake(Lake.open(killed)).violations == []


def _killed_past(command: list[str], root: Path, reached: int, delay_s: float) -> int:
    """Runs until the journal is past a frame, and a moment more; kills the process group. The frame to go on from."""
    run = subprocess.Popen(
        command, env=_alone(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while run.poll() is None and _next_frame(root) <= reached:
        time.sleep(0.02)
    time.sleep(delay_s)
    assert run.poll() is None, "it ended before it was killed"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return _next_frame(root)


def _next_frame(root: Path) -> int:
    """Of the only journal; 0 without one."""
    for path in (root / "journal").glob("*"):
        if not path.name.endswith(".part"):
            return json.loads(path.read_bytes().split(b"\n", 1)[0])["next_frame"]
    return 0


def _alone() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


def _counted() -> StageStats:
    return StageStats("track", "track")


def _track(lake: Lake, recipe: Recipe) -> PlannedOp:
    return next(one for one in plan_ops(recipe, lake.schema("frames")) if one.title == "track")


def _op_on(lake: Lake, recipe: Recipe) -> RunOnVideos:
    for table in ("tracks", "frames", "shots"):
        lake.ensure(table)
    return RunOnVideos(_track(lake, recipe), recipe, lake)


def _outcome(lake: Lake, recipe: Recipe) -> Outcome:
    (asset,) = lake.read("assets").to_pylist()
    return Outcome.of({**asset, "attempt": 1}, _track(lake, recipe).key, "track")


def test_exports_and_pictures_come_out_of_the_tables(tracked, tmp_path):
    from pycocotools.coco import COCO

    export(tracked, "coco", tmp_path / "coco.json")
    assert len(COCO(str(tmp_path / "coco.json")).getAnnIds()) == tracked.count("detections")
    assert export(tracked, "youtube-vis", tmp_path / "vis.json")["videos"] == 2
    assert export(tracked, "mot", tmp_path / "mot")["videos"] == 2
    assert export(tracked, "webdataset", tmp_path / "wds")["frames"] == tracked.count("frames")
    asset = track_rows(tracked)[0]["asset_id"]
    assert overlay_video(tracked, asset, tmp_path / "out.mp4") in (20, 24)
    assert overlay_sheet(tracked, None, tmp_path / "sheet.png", 4) >= 1
    assert np.fromfile(tmp_path / "sheet.png", np.uint8).size > 1000
