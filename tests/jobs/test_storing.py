"""What an annotator loses if what `vfm segment` and `vfm track` made is stored elsewhere, twice, or in other pixels."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.cli import main
from pipelines.annotation import find_frames, lake_video, read_frames, rows_of
from pipelines.lake import Lake, verify_lake
from pipelines.process import process
from pipelines.process.recipe import Recipe
from pipelines.sources import ingest
from tests.vfm_ops.track.conftest import read_frames as decoded
from vfm_ops.errors import UsageError
from vfm_ops.media.encode import write_video
from vfm_ops.segment.automatic import GridSettings, generate_masks
from vfm_ops.segment.segmenter import load_segmenter
from vfm_ops.track.load import load_tracker
from vfm_ops.track.masks import decode_rle
from vfm_ops.track.session import VideoSession

HEIGHT, WIDTH, FRAMES, SIDE = 96, 160, 6, 80  # frames are stored with half their sides


@pytest.fixture(scope="module")
def made(tmp_path_factory, bikes) -> Path:
    """A lake of a picture of two discs and a clip, stored at 80 pixels."""
    root = tmp_path_factory.mktemp("storing")
    (root / "media").mkdir()
    picture = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    cv2.circle(picture, (40, 48), 20, (30, 30, 220), -1)
    cv2.circle(picture, (120, 48), 24, (220, 60, 30), -1)
    cv2.imwrite(str(root / "media" / "discs.png"), picture)
    write_video(root / "media" / "clip.mp4", iter(decoded(bikes, FRAMES, HEIGHT, WIDTH)), 25.0)
    ingest([str(root / "media")], str(root / "lake"))
    recipe = {"sampling": {"fps": 5}, "shots": {"detector": "content"}, "ops": [], "jpeg": {"max_side": SIDE}}
    process(Lake.open(root / "lake"), Recipe.model_validate(recipe))
    return root


@pytest.fixture
def lake(made, tmp_path, monkeypatch) -> Lake:
    import shutil

    monkeypatch.chdir(tmp_path)
    return Lake.open(shutil.copytree(made / "lake", tmp_path / "lake"))


def run(command: str) -> None:
    assert main(command.split()) == 0


def test_masks_of_a_picture_are_stored_in_pixels_of_the_stored_frame(lake, capsys):
    run("segment --lake lake --store discs.png --point 20,24 --box 48,12,72,36 --label disc --author ann --json")
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    rows = lake.annotations.to_arrow().to_pylist()
    assert sorted(r["mask"]["counts"] for r in rows) == sorted(o["mask"]["counts"] for o in line["objects"])
    for row in rows:
        assert row["mask"]["size"] == [HEIGHT // 2, WIDTH // 2]
        assert (row["author"], row["label"], row["kind"]) == ("ann", "disc", "mask")
        assert row["source"] == "vfm segment sam2:pocket"
        assert row["frame_id"].endswith(":0")
        assert row["pts_s"] == 0.0
    said = [json.loads(r["prompts"])["prompts"] for r in rows]
    assert {"points": [[20.0, 24.0]], "labels": [1]} in [entry for (entry,) in said]
    assert verify_lake(lake).violations == []


def test_the_same_command_again_makes_versions_and_a_further_click_too(lake):
    command = "segment --lake lake --store discs.png --point"
    run(f"{command} 20,24 --author ann")
    run(f"{command} 20,24 --author ann")
    assert main([*command.split(), "20,24 60,24,0", "--author", "ann"]) == 0
    assert lake.annotations.to_pandas()["version"].tolist() == [3]
    run(f"{command} 60,24 --author ann")  # another thing
    run(f"{command} 20,24")  # another opinion
    assert sorted(lake.annotations.to_pandas()["author"]) == sorted(["ann", "ann", getpass.getuser()])


def test_what_was_clicked_can_be_clicked_again(lake, tmp_path):
    run("segment --lake lake --store discs.png --box 48,12,72,36 --author ann --no-multimask-output --max-hole-area 3")
    (before,) = lake.annotations.to_arrow().to_pylist()
    said = json.loads(before["prompts"])
    assert (said["multimask_output"], said["max_hole_area"]) == (False, 3)
    Path("again.yaml").write_text(json.dumps(said["prompts"]))
    again = "--prompt-file again.yaml --author ann --no-multimask-output --max-hole-area 3"
    run(f"segment --lake lake --store discs.png {again}")
    (after,) = lake.annotations.to_arrow().to_pylist()
    assert (after["annotation_id"], after["version"], after["mask"]) == (before["annotation_id"], 2, before["mask"])


def test_everything_again_by_fewer_masks_leaves_none_of_the_old(lake):
    command = "segment --lake lake --store discs.png --everything --points-per-side 4 --min-stability 0 --author ann"
    run(f"{command} --min-iou 0.1")
    many = len(lake.annotations)
    assert many > 1
    run(f"{command} --min-iou 0.1")
    assert len(lake.annotations) == many
    assert set(lake.annotations.to_pandas()["version"]) == {2}


def test_tracks_are_stored_frame_by_frame_as_they_were_followed(lake):
    command = "track --lake lake clip.mp4 --prompt-file prompts.yaml --author ann --store"
    calls = [
        {"frame_idx": 0, "obj_id": 1, "box": [10, 8, 50, 40], "label": "bike"},
        {"frame_idx": 2, "obj_id": 2, "points": [[40, 20]], "labels": [1], "object": "rider"},
    ]
    Path("prompts.yaml").write_text(json.dumps(calls))
    run(f"{command} --rows rows.jsonl")
    rows = lake.annotations.to_pandas()
    told = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert {(t["frame_index"], t["mask"]["counts"]) for t in told} == {
        (i, m["counts"]) for i, m in zip(rows["frame_index"], rows["mask"])
    }
    assert len(rows) == len(told) > FRAMES
    assert set(rows["kind"]) == {"track"}
    assert {(r["label"], r["object_id"] == "rider") for r in lake.annotations.to_arrow().to_pylist()} == {
        ("bike", False),
        (None, True),
    }
    assert len(set(rows["object_id"])) == 2
    assert rows["mask"].map(lambda m: list(m["size"])).tolist() == [[HEIGHT // 2, WIDTH // 2]] * len(rows)
    assert rows["pts_s"].max() == pytest.approx((rows["frame_index"].max()) / 25, abs=1e-3)
    assert verify_lake(lake).violations == []
    calls += [{"propagate_in_video": {}}, {"frame_idx": 3, "obj_id": 1, "points": [[5, 5]], "labels": [0]}]
    Path("prompts.yaml").write_text(json.dumps(calls))
    run(command)
    corrected = lake.annotations.to_pandas()
    assert set(corrected["object_id"]) == set(rows["object_id"])
    assert set(corrected["version"]) == {2}
    own = corrected[corrected["object_id"] != "rider"]
    assert [len(json.loads(p)["prompts"]) for p in set(own["prompts"])] == [4]  # its calls, and how it was tracked


def test_objects_that_words_found_are_stored_with_their_labels(lake):
    run("track --lake lake clip.mp4 --prompts person --author ann --store --out drawn.mp4")
    assert set(lake.annotations.to_pandas()["label"]) <= {"person"}
    assert Path("drawn.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("segment discs.png --box 1,2,30,40 --store", "--store needs --lake"),
        ("segment discs.png --box 1,2,30,40 --author ann", "--author and --label go with --store"),
        ("segment --lake lake none.png --box 1,2,30,40", "the lake has no asset 'none.png'"),
        ("segment --lake lake clip.mp4 --box 1,2,30,40", "clip.mp4 is a video: name one of its frames"),
        ("segment --lake lake clip.mp4:99 --box 1,2,30,40", "the video has frames 0 to 5"),
        ("track --lake lake discs.png --box 1,2,30,40 --store", "discs.png is a picture"),
        ("track --lake lake clip.mp4 --box 1,2,30,40", "say what to make of it: --out, --rows or --store"),
    ],
)
def test_a_wrong_command_is_a_sentence_and_stores_nothing(lake, capsys, command, said):
    assert main(command.split()) == 2
    assert said in capsys.readouterr().err
    assert len(lake.annotations) == 0


def test_frames_of_a_lake_have_the_pixels_of_the_stored_ones(lake):
    frames = lake.read("frames", ["frame_id", "frame_index", "width", "height"]).to_pylist()
    stored = {r["frame_index"] for r in frames if "clip" in find_frames(lake, [r["frame_id"]])[0].name}
    missing = next(i for i in range(FRAMES) if i not in stored)
    named = find_frames(lake, ["clip.mp4:0", f"clip.mp4:{missing}", "discs"])
    assert [rgb.shape for _, rgb in read_frames(lake, named)] == [(HEIGHT // 2, WIDTH // 2, 3)] * 3
    _, video = lake_video(lake, "clip.mp4")
    with video:
        assert video[FRAMES - 1].shape == (HEIGHT // 2, WIDTH // 2, 3)
        (_, rgb), *_ = read_frames(lake, named[:1])
        assert np.abs(rgb.astype(int) - video[0].astype(int)).mean() < 4  # but for JPEG


def test_what_models_give_becomes_rows(lake):
    (frame,) = find_frames(lake, ["discs.png"])
    ((_, rgb),) = read_frames(lake, [frame])
    segmenter = load_segmenter("sam2:pocket")
    found = segmenter.segment(segmenter.encode(rgb), points=[[[20, 24]], [[60, 24]]], labels=[[1], [1]])
    rows = rows_of(found, frame.frame_id, object_ids=["left", "right"], labels=["red", None], prompts={"by": "hand"})
    lake.add_annotations(rows, author="ann", source="sam2:pocket")
    stored = {r["object_id"]: r for r in lake.annotations.to_arrow().to_pylist()}
    assert (decode_rle(stored["left"]["mask"]) == found.best()[0][0]).all()
    assert (stored["left"]["label"], stored["right"]["label"]) == ("red", None)
    everything = generate_masks(segmenter, rgb, GridSettings(points_per_side=4, min_iou=0.1, min_stability=0.0))
    assert [r["mask"] for r in rows_of(everything, frame.frame_id)] == [m.rle for m in everything]
    asset_id, video = lake_video(lake, "clip.mp4")
    with video:
        session = VideoSession(load_tracker("sam2:pocket"), video)
        session.add_new_points_or_box(0, 7, box=[10, 8, 50, 40])
        for masks in session.propagate_in_video():
            rows = rows_of(masks, asset_id, labels={7: "bike"})
            assert [(r["object_id"], r["label"], r["frame_index"]) for r in rows] in (
                [("7", "bike", masks.frame_index)],
                [],
            )
            lake.add_annotations(rows, author="ann")
    assert lake.annotations.count("kind = 'track'") > 1
    with pytest.raises(UsageError, match="no asset"):
        lake_video(lake, "none.mp4")
