"""Quality and hash against closed forms and slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from vfm_ops.media.phash import dihedral_phashes, low_frequencies, phash
from vfm_ops.media.quality import frame_quality, quality_gray


@pytest.fixture(scope="module")
def photo(photographs) -> np.ndarray:
    return np.asarray(Image.open(photographs[0]).convert("RGB"))


def hamming(a: int, b: int) -> int:
    return bin(int(a) ^ int(b)).count("1")


def test_quality_of_plain_pictures_is_known():
    flat = frame_quality(np.full((256, 256), 51, np.uint8))
    assert flat == {"sharpness": 0.0, "luminance": pytest.approx(0.2), "contrast": 0.0, "entropy": 0.0}
    halves = np.zeros((256, 256), np.uint8)
    halves[:, ::2] = 255
    stripes = frame_quality(halves)
    assert stripes["luminance"] == pytest.approx(0.5)
    assert stripes["contrast"] == pytest.approx(0.5)
    assert stripes["entropy"] == pytest.approx(1.0)
    assert stripes["sharpness"] == pytest.approx(510.0**2)  # the Laplacian is +-510 everywhere


def test_blur_and_darkness_lower_what_they_should(photo):
    import cv2

    sharp = frame_quality(quality_gray(photo))
    blurred = frame_quality(quality_gray(cv2.GaussianBlur(photo, (0, 0), 6)))
    dark = frame_quality(quality_gray(photo // 4))
    assert blurred["sharpness"] < sharp["sharpness"] / 4
    assert dark["luminance"] < sharp["luminance"] / 3
    assert dark["contrast"] < sharp["contrast"] / 3


@pytest.mark.parametrize("size", [(640, 360), (1999, 1501), (31, 17), (256, 1), (4000, 3)])
def test_quality_gray_has_one_size_whatever_comes_in(size):
    gray = quality_gray(np.zeros((size[1], size[0], 3), np.uint8))
    assert max(gray.shape) == 256


def test_same_picture_at_other_sizes_measures_alike(photo):
    import cv2

    small = cv2.resize(photo, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    a, b = frame_quality(quality_gray(photo)), frame_quality(quality_gray(small))
    assert a["luminance"] == pytest.approx(b["luminance"], rel=0.02)
    assert a["entropy"] == pytest.approx(b["entropy"], rel=0.02)


def test_hash_is_its_definition_by_scipys_transform(photo):
    gray = quality_gray(photo)
    small = np.asarray(Image.fromarray(gray).resize((32, 32), Image.Resampling.BOX), np.float64)
    low = dctn(small, norm="ortho")[:8, :8]
    assert np.abs(low_frequencies(gray) - low).max() < 16  # pixels of the small picture are rounded
    flat = low.ravel()
    bits = "".join("1" if value > np.median(flat[1:]) else "0" for value in flat)
    assert hamming(phash(gray), int(bits, 2)) <= 2
    assert 0 <= phash(gray) < 2**64


def test_near_copies_are_near_and_others_far(photo, photographs):
    import cv2

    gray = quality_gray(photo)
    recoded = cv2.imdecode(cv2.imencode(".jpg", photo, [1, 40])[1], cv2.IMREAD_COLOR)
    resized = cv2.resize(photo, (300, 300), interpolation=cv2.INTER_AREA)
    assert hamming(phash(gray), phash(quality_gray(recoded))) <= 6
    assert hamming(phash(gray), phash(quality_gray(resized))) <= 6
    other = np.asarray(Image.open(photographs[1]).convert("RGB"))
    assert hamming(phash(gray), phash(quality_gray(other))) > 16


def test_dihedral_hashes_are_those_of_the_turned_pictures(photo):
    gray = quality_gray(photo)
    hashes = dihedral_phashes(gray)
    assert hashes.dtype == np.uint64
    for start, base in ((0, gray), (4, gray.T)):
        turned = [base, base[:, ::-1], base[::-1], base[::-1, ::-1]]
        for value, picture in zip(hashes[start:], turned):
            assert hamming(value, phash(np.ascontiguousarray(picture))) <= 2
    assert len(set(hashes.tolist())) == 8
