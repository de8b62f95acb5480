"""What is drawn is where it should be, in a colour that stays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.vfm_ops.evaluate.rows import encode
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.overlay import caption, draw_objects, track_colour
from vfm_ops.evaluate.sheet import contact_sheet, default_columns, wrap


def frame(height=200, width=300):
    return np.full((height, width, 3), 60, np.uint8)


def test_a_track_keeps_its_colour_from_process_to_process():
    code = "from vfm_ops.evaluate.overlay import track_colour; print(track_colour('a:17'), track_colour(3))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.split("\n")[0] == f"{track_colour('a:17')} {track_colour(3)}"


def test_the_first_twelve_tracks_are_told_apart():
    colours = np.array([track_colour(i) for i in range(12)], float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distance[~np.eye(12, dtype=bool)].min() > 40


def test_box_and_mask_are_where_they_should_be_and_the_frame_is_left_alone():
    picture = frame()
    mask = np.zeros((200, 300), bool)
    mask[120:160, 200:260] = True
    drawn = draw_objects(picture, [{"box": [50, 60, 150, 140], "track_id": 5}, {"mask": encode(mask), "track_id": 6}])
    assert (picture == 60).all()
    assert tuple(drawn[100, 50]) == track_colour(5)
    assert (drawn[100, 100] == 60).all()
    inside = np.round(60 * 0.55 + np.array(track_colour(6)) * 0.45)
    np.testing.assert_allclose(drawn[150, 250], inside, atol=1)
    assert (drawn[180, 280] == 60).all()


def test_captions_stay_on_the_frame():
    for box in ([0, 0, 40, 40], [280, 180, 299, 199], [-50, -50, 20, 20]):
        drawn = draw_objects(frame(), [{"box": box, "track_id": 1, "label": "person", "score": 0.5}])
        plate = (drawn == track_colour(1)).all(-1)
        assert plate.sum() > 300


def test_invisible_objects_and_missing_fields_are_left_out():
    assert (draw_objects(frame(), [{"box": [5, 5, 50, 50], "track_id": 1, "visible": False}, {}]) == 60).all()
    assert caption({"track_id": "0f3a:12", "label": "café", "score": 0.876}) == "#12 caf? 0.88"
    assert caption({}) == ""


@pytest.mark.parametrize("item", [{"box": [0, 0, np.nan, 5]}, {"box": [1, 2, 3]}, {"mask": np.ones((9, 9), bool)}])
def test_objects_that_do_not_fit_are_refused(item):
    with pytest.raises(UsageError):
        draw_objects(frame(), [item])
    with pytest.raises(UsageError):
        draw_objects(frame().astype(float), [])


def test_a_contact_sheet_shows_every_picture_whole_and_undistorted():
    red, blue = np.zeros((100, 400, 3), np.uint8), np.zeros((300, 100, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    page = contact_sheet([red, blue, np.full((50, 50), 9, np.uint8)], ["wide", "tall\nsecond line", "grey"])
    for colour, (height, width) in (((200, 0, 0), (60, 240)), ((0, 0, 200), (180, 60)), ((9, 9, 9), (100, 100))):
        rows, columns = np.nonzero((page == colour).all(-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (height, width)


def test_a_contact_sheet_grows_by_whole_rows():
    pages = [contact_sheet([frame()] * n, columns=3) for n in (3, 4, 7)]
    assert pages[0].shape[1] == pages[2].shape[1]
    steps = np.diff([p.shape[0] for p in pages])
    assert steps[0] == steps[1] > 180
    assert default_columns(12, 100, 100) == 4


def test_captions_are_wrapped_between_words_and_cut_with_an_ellipsis():
    lines = wrap("one two three four five six seven eight nine ten eleven twelve", 120)
    assert len(lines) == 2
    assert lines[1].endswith("...")
    assert "one two three four five six seven eight nine".startswith(lines[0])
    assert wrap("short", 200) == ["short"]
    assert wrap("", 200) == []


@pytest.mark.parametrize(
    ("images", "captions"), [([], None), ([frame()], ["a", "b"]), ([frame()] * 401, None), ([frame() / 2], None)]
)
def test_a_sheet_that_can_not_be_drawn_is_refused(images, captions):
    with pytest.raises(UsageError):
        contact_sheet(images, captions)
