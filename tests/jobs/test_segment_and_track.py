"""`vfm segment` and `vfm track` say what is wrong in the words of their options; what they give is compared elsewhere."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from jobs.cli import main
from tests.vfm_ops.track.conftest import read_frames
from vfm_ops.media.encode import write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bikes):
    """A picture, a clip, and files of prompts that are wrong."""
    root = tmp_path_factory.mktemp("by-hand")
    cv2.imwrite(str(root / "picture.png"), np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    (root / "broken.png").write_bytes(b"no picture")
    write_video(root / "clip.mp4", iter(read_frames(bikes, 5, 64, 96)), 25.0)
    (root / "wrong.yaml").write_text("- {pionts: [[1, 2]]}")
    (root / "other.yaml").write_text("- {image: other.png, box: [1, 2, 30, 40]}")
    (root / "both.yaml").write_text("- {box: [1, 2, 30, 40], mask: picture.png}")
    return root


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("picture.png", "--box, --point or --prompt-file, or else --everything"),
        ("picture.png --everything --point 1,1", "or else --everything"),
        ("picture.png --everything --return-logits l.npz", "--return-logits goes with prompts"),
        ("picture.png --point 1", "--point 1: give 2 or 3 numbers"),
        ("picture.png --point 1,2,3", "the third number of a point is 1"),
        ("picture.png --box 1,2,3", "--box 1,2,3: give 4 numbers"),
        ("picture.png --point 500,1", "outside the 80 x 60"),
        ("picture.png --prompt-file none.yaml", "--prompt-file none.yaml can't be read"),
        ("picture.png --prompt-file wrong.yaml", "--prompt-file wrong.yaml, entry 1: pionts: unknown key"),
        ("picture.png --prompt-file other.yaml", "names other.png, which is none of the pictures"),
        ("absent.png --everything", "there is no file absent.png"),
        ("picture.png --everything --crop-n-layers 9", "--crop-n-layers is 9: it should be less than or equal to 4"),
        ("picture.png --everything --point-grids none.json", "--point-grids none.json can't be read as JSON"),
    ],
)
def test_a_wrong_segment_is_a_sentence_and_exit_code_2(folder, monkeypatch, capsys, options, said):
    monkeypatch.chdir(folder)
    assert main(["segment", *options.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("clip.mp4", "--box, --point or --prompt-file, or --prompts"),
        ("clip.mp4 --box 1,2,30,40 --prompts cat", "--box, --point or --prompt-file, or --prompts"),
        ("clip.mp4 --box 1,2,30,40 --frame 9", "--frame is 9, but the video has frames 0 to 4"),
        ("clip.mp4 --prompt-file wrong.yaml", "--prompt-file wrong.yaml, entry 1: pionts: unknown key"),
        ("clip.mp4 --prompt-file both.yaml", "a mask and points or a box"),
        ("absent.mp4 --box 1,2,30,40", "there is no file absent.mp4"),
    ],
)
def test_a_wrong_track_is_a_sentence_and_exit_code_2(folder, monkeypatch, capsys, options, said):
    monkeypatch.chdir(folder)
    assert main(["track", *options.split(), "--out", "out.mp4"]) == 2
    assert said in capsys.readouterr().err


def test_a_picture_that_is_none_costs_itself(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["segment", "broken.png", "picture.png", "--box", "10,10,50,50", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "1 pictures could not be read" in err
    (line,) = map(json.loads, out.splitlines())
    assert (line["picture"], len(line["objects"])) == ("picture.png", 1)


def test_tracking_backward_ends_at_the_first_frame(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = "--box 20,10,80,60 --frame 3 --direction backward --rows rows.jsonl --out out.mp4"
    assert main(["track", "clip.mp4", *options.split()]) == 0
    assert "5 frames, 1 objects" in capsys.readouterr().out
    rows = (folder / "rows.jsonl").read_text().splitlines()
    assert {json.loads(row)["frame_index"] for row in rows} <= {0, 1, 2, 3}
