"""A 64-bit perceptual hash by the discrete cosine transform (Zauner 2010, section 3.2.1).

Definition: luma is shrunk to 32 x 32 by area, transformed by an orthonormal DCT-II, and the 8 x 8 lowest frequencies
are kept. Bit k (row-major, bit 63 first) is 1 where coefficient k is above the median of the 63 that are not the constant
term. Near-copies differ in few bits: count them with `bin(a ^ b).count("1")`.
"""

from __future__ import annotations

import cv2
import numpy as np

_WEIGHTS = 2 ** np.arange(63, -1, -1, dtype=np.uint64)
_ALTERNATE = np.where(np.arange(8) % 2, -1.0, 1.0).astype(np.float32)


def low_frequencies(gray: np.ndarray) -> np.ndarray:
    """gray: uint8 (h, w). Returns float32 (8, 8): the lowest DCT coefficients, rows are vertical frequencies."""
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA)
    return cv2.dct(small.astype(np.float32))[:8, :8]


def phash(gray: np.ndarray) -> int:
    """The hash of uint8 luma (h, w), as an int that fits uint64."""
    return _bits(low_frequencies(gray))


def dihedral_phashes(gray: np.ndarray) -> np.ndarray:
    """Hashes of the eight rotations and flips, uint64 (8,), from one transform.

    Order: identity, mirrored left-right, upside down, both (180 degrees), then the same four of the transposed picture.
    A mirror negates the odd frequencies along its axis and a transpose transposes them, so no pixel is touched again.
    """
    low = low_frequencies(gray)
    hashes = []
    for block in (low, low.T):
        for rows in (False, True):
            for columns in (False, True):
                turned = block * _ALTERNATE[:, None] if rows else block
                hashes.append(_bits(turned * _ALTERNATE[None, :] if columns else turned))
    return np.array(hashes, np.uint64)


def _bits(low: np.ndarray) -> int:
    flat = low.reshape(-1)
    return int(_WEIGHTS[flat > np.median(flat[1:])].sum())
