"""If these fail, a generated corpus can't be ingested, or its truth can't be read by the usual tools."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jobs.cli import main
from vfm_ops.world.clips import clip
from vfm_ops.world.corpus import write_corpus
from vfm_ops.world.scene import World, image

WORLD = World(seed=9, height=96, width=128, objects=(2, 4))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "corpus"
    write_corpus(WORLD, out, images=4, videos=2, frames=10, shots=2, fps=10)
    return out


def test_coco_reads_back_the_scenes(corpus: Path):
    coco = COCO(str(corpus / "annotations" / "images.json"))
    for i in range(4):
        scene = image(WORLD, i)
        rows = coco.loadAnns(coco.getAnnIds(imgIds=[i + 1]))
        assert len(rows) == sum(scene.mask(k).any() for k in range(len(scene.things)))
        for row, k in zip(rows, [k for k in range(len(scene.things)) if scene.mask(k).any()], strict=True):
            assert np.array_equal(coco.annToMask(row).astype(bool), scene.mask(k))
            assert coco.cats[row["category_id"]]["name"] == scene.things[k].kind.phrase()
        jpeg = cv2.imread(str(corpus / "images" / f"image{i:06d}.jpg"))[..., ::-1]
        assert np.abs(jpeg.astype(int) - scene.rgb).mean() < 8
        assert (corpus / "images" / f"image{i:06d}.txt").read_text().strip() == coco.imgs[i + 1]["caption"]


def test_videos_decode_to_the_rendered_frames(corpus: Path):
    with av.open(str(corpus / "videos" / "video000001.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    made = clip(WORLD, 1, frames=10, shots=2)
    assert len(frames) == 10
    assert np.abs(frames[6].astype(int) - made.frame(6).rgb).mean() < 12


def test_tracks_in_youtube_vis_and_mot_agree_with_the_masks(corpus: Path):
    truth = json.loads((corpus / "annotations" / "videos.json").read_text())
    made = clip(WORLD, 0, frames=10, shots=2)
    rows = [r for r in truth["annotations"] if r["video_id"] == 1]
    assert truth["videos"][0]["shots"] == [[s.start, s.stop] for s in made.shots]
    mot = [line.split(",") for line in (corpus / "annotations/mot/video000000/gt/gt.txt").read_text().splitlines()]
    for t in range(10):
        scene, first = made.frame(t), made.shot_of(t).first_track
        seen = {first + k: scene.mask(k) for k in range(len(scene.things)) if scene.mask(k).any()}
        assert {r["track_id"] for r in rows if r["bboxes"][t] is not None} == set(seen)
        assert {int(line[1]) for line in mot if int(line[0]) == t + 1} == set(seen)
        for row in rows:
            if row["track_id"] in seen:
                assert np.array_equal(coco_mask.decode(row["segmentations"][t]).astype(bool), seen[row["track_id"]])


def test_same_command_writes_the_same_bytes(corpus: Path, tmp_path: Path):
    write_corpus(WORLD, tmp_path / "again", images=4, videos=2, frames=10, shots=2, fps=10)
    for path in sorted(p for p in corpus.rglob("*") if p.is_file()):
        assert (tmp_path / "again" / path.relative_to(corpus)).read_bytes() == path.read_bytes(), path


def test_command_writes_a_corpus_and_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [
        "world",
        "--out",
        str(tmp_path / "w"),
        "--images",
        "2",
        "--videos",
        "1",
        "--frames",
        "4",
        "--size",
        "64x48",
    ]
    assert main(arguments) == 0
    assert len(list((tmp_path / "w" / "images").glob("*.jpg"))) == 2
    assert "2 images and 1 videos (4 frames)" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "0"], "nothing to write"),
        (["--videos", "1", "--size", "big"], "320x240"),
        (["--videos", "1", "--size", "65x48"], "even sides"),
        (["--images", "1", "--split", "test"], "no split 'test'"),
        (["--videos", "1", "--frames", "2", "--shots", "3"], "do not fit"),
    ],
)
def test_wrong_options_exit_2_with_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["world", "--out", str(tmp_path / "w"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
