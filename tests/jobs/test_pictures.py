"""The pictures of the documentation: small, and what they are said to show."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from jobs import pictures

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"


@pytest.mark.parametrize("name", ["segment", "track"])
def test_a_picture_is_small_and_opens(name):
    file = FOLDER / f"{name}.webp"
    assert file.stat().st_size < 60_000
    assert cv2.imread(str(file)).shape[1] == 752


def test_crops_show_more_of_the_small_things():
    (_, scene), (_, without), (_, with_crops) = pictures.everything(8)
    tinted = [(picture != scene).any(2).mean() for picture in (without, with_crops)]
    assert 0 < tinted[0] < tinted[1]
