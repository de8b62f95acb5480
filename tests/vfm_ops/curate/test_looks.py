"""Looks: what a user would lose if blank slides, dark frames and coloured shapes passed for copies of one another."""

from __future__ import annotations

from itertools import combinations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from vfm_ops.curate.hashing import hash_pairs, match_hashes
from vfm_ops.curate.looks import is_plain, look_at, same_colours, same_look, turned
from vfm_ops.media.jpeg import encode_jpeg
from vfm_ops.media.phash import phash
from vfm_ops.media.quality import quality_gray


def plain_pictures() -> dict[str, np.ndarray]:
    """Pictures that differ, and that a luma hash or an embedding of 224 pixels hardly tells apart."""
    found = {}
    tones = {"white": (255,) * 3, "black": (0,) * 3, "grey": (84,) * 3, "red": (220, 0, 0), "green": (0, 150, 0)}
    for name, colour in tones.items():
        found[f"flat {name}"] = Image.new("RGB", (640, 480), colour)
    rng = np.random.default_rng(0)
    for i in range(2):
        found[f"dark {i}"] = Image.fromarray((rng.random((480, 640, 3)) * 3).astype(np.uint8))
    for text in ("Results for 2019: revenue 12.3 M", "Results for 2024: revenue 99.8 M", "page 3 of 9", "page 4 of 9"):
        found[text] = Image.new("RGB", (960, 540), "white")
        ImageDraw.Draw(found[text]).text((60, 60), text, fill="black")
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 120, 30)}.items():
        found[f"disc {name}"] = Image.new("RGB", (640, 480), "white")
        ImageDraw.Draw(found[f"disc {name}"]).ellipse((220, 140, 420, 340), fill=colour)
    return {name: np.asarray(image) for name, image in found.items()}


def stored(image: np.ndarray, quality: int = 90) -> np.ndarray:
    data = np.frombuffer(encode_jpeg(image, quality), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    return {name: stored(image) for name, image in plain_pictures().items()}


def test_different_plain_pictures_never_have_the_same_look(pictures):
    assert all(is_plain(picture) for picture in pictures.values())
    looks = {name: look_at(picture, close=True) for name, picture in pictures.items()}
    assert [pair for pair in combinations(looks, 2) if same_look(looks[pair[0]], looks[pair[1]])] == []


@pytest.mark.parametrize(
    "copy",
    [
        lambda im: stored(im, 30),
        lambda im: cv2.resize(im, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
        lambda im: stored(cv2.resize(im, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_CUBIC), 50),
        lambda im: stored(cv2.resize(im, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), 85),
    ],
    ids=["jpeg30", "smaller", "smaller-jpeg50", "larger"],
)
def test_a_plain_pictures_own_copy_has_its_look(pictures, copy):
    found = {n: same_look(look_at(p, True), look_at(copy(p), True)) for n, p in pictures.items()}
    # Noise of two grey levels does not outlive a JPEG: such a copy stays, rather than that another frame goes for it.
    assert [name for name, same in found.items() if not same and not name.startswith("dark")] == []


def test_turned_looks_are_those_of_the_turned_picture(pictures):
    image = pictures["page 3 of 9"]
    looks = turned(look_at(image, True))
    for view in (np.rot90(image), np.rot90(image, 2), image[:, ::-1], np.rot90(image[::-1])):
        target = look_at(np.ascontiguousarray(view), True)
        assert sum(same_look(target, look) for look in looks) == 1


def test_colours_agree_with_a_brighter_copy_and_not_with_another_dye(photographs):
    image = np.asarray(Image.open(photographs[2]).convert("RGB"))
    base = look_at(image, close=False).colours
    for factor in (0.75, 1.25):
        assert same_colours(base, look_at(np.clip(image * factor, 0, 255).astype(np.uint8), False).colours)
    assert same_colours(base, look_at(stored(image, 20), False).colours)
    assert not same_colours(base, look_at(np.ascontiguousarray(image[..., ::-1]), False).colours)


def test_flat_frames_of_any_colour_have_no_hash_neighbours(photographs):
    flats = [np.full((90, 160, 3), colour, np.uint8) for colour in ((0, 0, 0), (220, 0, 0), (0, 150, 0), (90, 90, 90))]
    picture = np.asarray(Image.open(photographs[0]).convert("RGB"))
    hashes = np.array([phash(quality_gray(p)) for p in (*flats, picture, picture)], np.uint64)
    assert [(b.i.tolist(), b.j.tolist()) for b in hash_pairs(hashes, 8)] == [([4], [5])]
    found = match_hashes(hashes, hashes, 8)
    assert set(zip(found.i.tolist(), found.j.tolist())) == {(4, 4), (4, 5), (5, 4), (5, 5)}
