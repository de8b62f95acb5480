"""What people lose if their masks leave a lake as something else, or models are judged by what nobody said."""

from __future__ import annotations

import json
import shutil

import cv2
import pytest
from pycocotools.coco import COCO

from jobs.cli import main
from pipelines.lake import Lake
from pipelines.reporting.annotated import AnnotatedLake
from pipelines.reporting.evaluate import evaluate_by_annotations
from pipelines.reporting.export import export
from pipelines.reporting.names import AssetNames
from pipelines.reporting.tables import table_counts
from tests.pipelines.reporting.test_exports import SEEN, STORED, shelf, square  # noqa: F401
from vfm_ops.errors import UsageError
from vfm_ops.track.masks import encode_rle


@pytest.fixture
def lake(shelf, tmp_path) -> Lake:  # noqa: F811
    """The shelf, of which two pictures and a video are annotated, by ann, and one of the pictures by bob too."""
    lake = Lake.open(shutil.copytree(shelf.root, tmp_path / "lake"))
    names = AssetNames(lake)
    cat, dog, video = (names.find(name) for name in ("cats/1.png", "dogs/2.png", "clips/a.mp4"))
    mask = encode_rle(square(0))
    rows = [
        {"frame_id": f"{cat}:0", "object_id": "it", "label": "square", "mask": mask},
        {"frame_id": f"{dog}:0", "kind": "verdict", "label": "nothing here"},
        {"frame_id": f"{video}:1", "box": [1, 2, 30, 40], "label": "square"},  # is not stored
    ]
    lake.add_annotations(rows, author="ann")
    lake.add_annotations([{"frame_id": f"{cat}:0", "label": "circle", "box": [1, 2, 30, 40]}], author="bob")
    track = {"asset_id": video, "object_id": "it", "kind": "track", "label": "square"}
    tracked = [track | {"frame_index": t, "mask": square(t)} for t in SEEN]
    lake.add_annotations(tracked, author="ann")
    return lake


def test_a_report_counts_annotations_and_no_versions_of_them(lake):
    rows = {c["table"]: c["rows"] for c in table_counts(lake)}
    assert rows["annotations"] == len(lake.annotations) > 4
    lake.remove_annotations(lake.annotations.to_arrow()["annotation_id"][0].as_py(), author="ann")
    assert {c["table"]: c["rows"] for c in table_counts(lake)}["annotations"] == rows["annotations"] - 1


def test_coco_holds_what_was_said_of_the_frames_that_were_looked_at(lake, tmp_path):
    counts = export(lake, "coco", tmp_path / "coco.json", annotations=True, author="ann")
    coco = COCO(str(tmp_path / "coco.json"))
    named = {i["file_name"]: i for i in coco.loadImgs(coco.getImgIds())}
    # Of the video, which has tracks, all stored frames: it is known where the object is not.
    assert set(named) == {"cats/1.jpg", "dogs/2.jpg", "clips/a/000000.jpg", "clips/a/000005.jpg"}
    assert counts == {"images": 4, "annotations": 2, "categories": 1, "pictures": 4}
    (own,) = coco.loadAnns(coco.getAnnIds(named["cats/1.jpg"]["id"]))
    assert (coco.annToMask(own).astype(bool) == square(0)).all()
    assert own["bbox"] == [5, 15, 15, 15]
    assert "score" not in own
    (seen,) = coco.loadAnns(coco.getAnnIds(named["clips/a/000005.jpg"]["id"]))
    assert (coco.annToMask(seen).astype(bool) == square(5)).all()
    assert coco.getAnnIds(named["dogs/2.jpg"]["id"]) == []
    assert export(lake, "coco", tmp_path / "all.json", annotations=True)["categories"] == 2
    with pytest.raises(UsageError, match="no annotations by eve"):
        export(lake, "coco", tmp_path / "none.json", annotations=True, author="eve")


def test_tracks_go_to_the_formats_of_videos(lake, tmp_path):
    counts = export(lake, "youtube-vis", tmp_path / "vis.json", annotations=True, pictures=False)
    assert counts == {"videos": 1, "annotations": 1, "categories": 1}
    (video,) = json.loads((tmp_path / "vis.json").read_text())["videos"]
    assert (video["width"], video["height"]) == STORED
    export(lake, "mot", tmp_path / "mot", annotations=True)
    lines = (
        (tmp_path / "mot" / "clips__a.txt").read_text().splitlines()
        if (tmp_path / "mot" / "clips__a.txt").exists()
        else []
    )
    lines = lines or (tmp_path / "mot" / "a.txt").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines] == [t + 1 for t in SEEN]
    assert export(lake, "webdataset", tmp_path / "web", annotations=True)["frames"] == 4


def test_what_was_corrected_or_removed_is_not_exported(lake, tmp_path):
    cat = lake.annotations.to_pandas("kind = 'mask'").iloc[0]
    lake.add_annotations(
        [{"frame_id": cat["frame_id"], "object_id": "it", "label": "disc", "mask": encode_rle(square(2))}], author="ann"
    )
    lake.remove_annotations(lake.annotations.to_pandas("author = 'bob'")["annotation_id"], author="ann")
    export(lake, "coco", tmp_path / "coco.json", annotations=True, pictures=False)
    told = json.loads((tmp_path / "coco.json").read_text())
    assert sorted(c["name"] for c in told["categories"]) == ["disc", "square"]
    assert sorted(a["bbox"] for a in told["annotations"]) == [[9, 15, 15, 15], [15, 15, 15, 15]]


def test_of_a_file_that_changed_nothing_is_exported(lake):
    cat = AssetNames(lake).find("cats/1.png")
    for number, asset in enumerate(lake.read("assets", ["asset_id"])["asset_id"].to_pylist()):
        lake.update("assets", {"asset_no": str(number)}, f"asset_id = '{asset}'")
    lake.add_annotations(
        [{"frame_id": f"{cat}:0", "object_id": "new", "label": "n", "box": [1, 2, 30, 40]}], author="ann"
    )
    assert "n" in {r["label"] for r in AnnotatedLake(lake).read("detections").to_pylist()}
    lake.update("assets", {"asset_no": "99"}, f"asset_id = '{cat}'")
    assert "n" not in {r["label"] for r in AnnotatedLake(lake).read("detections").to_pylist()}
    assert lake.annotations.count("label = 'n'") == 1


def test_models_are_judged_by_what_people_said(lake):
    pytest.importorskip("trackeval", reason="pip install 'vfm-pipelines[eval]'")
    scores = evaluate_by_annotations(lake, "ann")
    assert scores["images"] == 4
    assert scores["videos"] == 1
    assert scores["HOTA"] == pytest.approx(1.0)  # the op's track is just where ann said
    assert scores["J&F"] == pytest.approx(1.0)
    assert any("not stored" in note for note in scores["notes"])
    rows = lake.annotations.to_arrow("kind = 'track'").to_pylist()
    moved = [
        {**{k: r[k] for k in ("asset_id", "frame_index", "object_id", "kind", "label")}, "mask": square(0)}
        for r in rows
    ]
    lake.add_annotations(moved, author="ann")
    assert evaluate_by_annotations(lake, "ann")["HOTA"] < 0.6


def test_the_commands_say_and_draw_what_was_annotated(lake, tmp_path, capsys):
    root = lake.root
    assert main(["export", "--lake", root, "--format", "coco", "--out", str(tmp_path / "a.json"), "--annotations"]) == 0
    assert "1 annotated frames are not stored" in capsys.readouterr().err
    assert main(["overlay", "--lake", root, "--out", str(tmp_path / "a.png"), "--annotations", "--author", "ann"]) == 0
    assert "2 frames" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "a.png")) is not None
    assert main(["overlay", "--lake", root, "--out", str(tmp_path / "a.mp4"), "--annotations"]) == 0
    assert "12 frames" in capsys.readouterr().out
    assert (
        main(["export", "--lake", root, "--format", "coco", "--out", str(tmp_path / "a.json"), "--author", "ann"]) == 2
    )
    assert "--author goes with --annotations" in capsys.readouterr().err
    assert main(["eval", "--lake", root]) == 2
    assert "--truth FILE, or --annotations" in capsys.readouterr().err
