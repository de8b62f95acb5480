"""Sliced inference: tiles cover the picture, what is seen twice is told once, and small things of large pictures are found."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.detect import command
from tests.vfm_ops.detect import tiny
from vfm_ops.detect import load_detector
from vfm_ops.detect.tiles import Tiles, detect_in_tiles, merge_boxes, tile_windows
from vfm_ops.detect.types import Detections
from vfm_ops.errors import UsageError
from vfm_ops.op_registry import load_op


@given(height=st.integers(1, 400), width=st.integers(1, 400), size=st.integers(16, 150), overlap=st.floats(0, 0.9))
def test_tiles_are_of_one_size_cover_every_pixel_and_overlap_as_asked(height, width, size, overlap):
    windows = tile_windows(height, width, Tiles(size, overlap))
    for axis, side in ((0, width), (1, height)):
        starts, stops = np.unique(windows[:, axis]), np.unique(windows[:, axis + 2])
        assert (starts[0], stops[-1]) == (0, side)
        assert set(stops - starts) == {min(size, side)}
        assert (stops[:-1] - starts[1:] >= np.floor(overlap * size) - 1).all()
    assert len(windows) == len(np.unique(windows, axis=0))


def blobs(images) -> list[Detections]:
    """Every connected bright region, as far as a picture shows it: a detector that is always right. Labels by colour."""
    found = []
    for image in images:
        rows: list[tuple] = []
        for prompt in (0, 1):
            _, _, stats, _ = cv2.connectedComponentsWithStats((image[..., prompt] > 0).astype(np.uint8))
            rows += [(x, y, x + w, y + h, prompt, 0.5 + 0.001 * (w * h % 97)) for x, y, w, h, _ in stats[1:]]
        table = np.array(rows, np.float32).reshape(-1, 6)
        found.append(Detections(table[:, :4], table[:, 5], table[:, 4].astype(np.int64), ("red", "green")))
    return found


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_each_thing_is_told_once_and_whole_wherever_the_tiles_cut_it(seed, overlap):
    rng = np.random.default_rng(seed)
    picture, expected = np.zeros((300, 420, 3), np.uint8), []
    # Things up to the overlap, 3 pixels apart at least, and one that is larger than a tile.
    cells = [(x, y) for x in range(0, 420, 28) for y in range(0, 150, 28) if y + 28 <= 150]
    for x, y in (cells[i] for i in rng.permutation(len(cells))[:30]):
        w, h = rng.integers(4, 24, 2)
        channel = int(rng.integers(2))
        picture[y : y + h, x : x + w, channel] = 255
        expected.append((x, y, x + w, y + h, channel))
    picture[170:290, 100:300, 0] = 255
    expected.append((100, 170, 300, 290, 0))
    found = detect_in_tiles(picture, Tiles(100, overlap), blobs, 0.5, 1000, 4)
    got = [(*map(int, box), int(p)) for box, p in zip(found.boxes, found.prompt_index)]
    assert sorted(got) == sorted(expected)
    assert (np.diff(found.scores) <= 0).all()
    assert len(detect_in_tiles(picture, Tiles(100, overlap), blobs, 0.5, 7, 4)) == 7


def test_a_part_goes_whatever_it_scores_and_labels_never_suppress_each_other():
    boxes = np.array([[0, 0, 20, 20], [0, 0, 10, 20], [0, 0, 10, 20], [1, 0, 20, 20], [30, 0, 40, 9]], float)
    scores, prompt = np.array([0.5, 0.9, 0.8, 0.4, 0.3]), np.array([0, 0, 1, 0, 0])
    cut = np.array([False, True, True, False, True])
    assert merge_boxes(boxes, scores, prompt, cut, 0.5).tolist() == [2, 0, 4]
    assert merge_boxes(boxes, scores, prompt, np.zeros(5, bool), 0.6).tolist() == [1, 2, 0, 4]
    assert merge_boxes(boxes[:0], scores[:0], prompt[:0], cut[:0], 0.5).tolist() == []


@pytest.mark.parametrize("family", ["grounding-dino", "owlvit", "owlv2", "omdet-turbo"])
def test_every_family_takes_tiles_and_a_picture_of_one_tile_is_as_without(load, family):
    detector = load(family)
    images = tiny.frames([(48, 80), (70, 40)])
    options = {"thresholds": 0.1, "nms_iou": 0.5}
    plain = [detector.detect([image], "cat . dog .", **options)[0] for image in images]
    for one, other in zip(detector.detect(images, "cat . dog .", tiles=Tiles(80), **options), plain):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    own = [["cat"], ["dog", "person"]]
    for found, image in zip(detector.detect(images, own, tiles=Tiles(32), thresholds={"cat": 0.1}), images):
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= [image.shape[1], image.shape[0]]).all()


def squares(height: int, width: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Red squares of the size that pocket-owl knows, far apart on grey."""
    picture, places = np.full((height, width, 3), 205, np.uint8), []
    for y in range(60, height - 80, 230):
        for x in range(70, width - 80, 310):
            picture[y : y + 50, x : x + 50] = (220, 30, 30)
            places.append((x, y))
    return picture, places


def test_small_things_of_a_large_picture_are_found_in_tiles_and_not_without():
    picture, places = squares(1080, 1920)
    detector = load_detector("owlvit:pocket", device="cpu")
    options = {"thresholds": 0.3, "nms_iou": 0.5}
    found = detector.detect([picture], "a red square .", tiles=Tiles(144), **options)[0]
    centres = [(b[0] + b[2], b[1] + b[3]) for b in found.boxes / 2]
    near = [any(np.hypot(x + 25 - cx, y + 25 - cy) < 8 for cx, cy in centres) for x, y in places]
    assert np.mean(near) > 0.9
    assert len(detector.detect([picture], "a red square .", **options)[0]) < len(places) / 4


def test_the_op_and_the_command_take_tiles_and_no_key_changes_without(tmp_path, capsys):
    picture, places = squares(320, 480)
    whole, sliced = (
        load_op({"detect": "a red square ."}),
        load_op({"detect": {"prompts": "a red square .", "tiles": {"size": 144}}}),
    )
    assert whole.key() == load_op({"detect": {"prompts": "a red square .", "tiles": None}}).key() != sliced.key()
    rows = sliced([picture])["rows"].to_pylist()[0]
    assert len(rows) >= len(places)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    command([tmp_path / "a.png"], "a red square .", tiles=144, as_json=True, device="cpu")
    boxes = json.loads(capsys.readouterr().out)["boxes"]
    expected = load_detector("owlvit:pocket", device="cpu").detect([picture], "a red square .", tiles=Tiles(144))[0]
    np.testing.assert_allclose([b["box"] for b in boxes], expected.boxes, atol=0.01)


@pytest.mark.parametrize(("size", "overlap"), [(8, 0.2), (100, 1.0), (100, -0.1)])
def test_tiles_that_are_none_are_refused(size, overlap):
    with pytest.raises(UsageError, match="tile"):
        Tiles(size, overlap)
