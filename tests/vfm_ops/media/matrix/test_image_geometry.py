"""Thin, tiny and odd stills: all that is asked for is made of them, and a fault of ours is never called damage."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from tests.vfm_ops.media.matrix.image_files import encoded, heic, picture, psnr
from vfm_ops.errors import MediaError
from vfm_ops.media.frame import DecodeSettings, image_frame
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.media.phash import phash
from vfm_ops.media.quality import frame_quality
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View

COLOUR = (200, 100, 50)
# Width and height.
THIN = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 20),
    (20, 1),
    (1, 5000),
    (1, 5001),
    (5000, 1),
    (5001, 1),
    (2, 400),
    (3, 3),
    (1, 32767),
]
FITS = ("crop", "squash", "letterbox", "naflex", "native")
FILTERS = ("area", "bilinear", "bicubic", "lanczos")
VIEWS = {
    f"{f} {i} {c}": View(64, 96, fit=f, interpolation=i, crop_pct=c) for f, i, c in product(FITS, FILTERS, (1.0, 0.875))
}


@pytest.mark.parametrize("size", THIN, ids=str)
def test_thin_stills_get_views_measures_and_a_jpeg(size):
    width, height = size
    data = encoded(np.full((height, width, 3), COLOUR, np.uint8), "PNG")
    frame = image_frame(
        MediaSource("thin.png", data=data), DecodeSettings(views=VIEWS | {"luma": View(fit="luma")}, jpeg_max_side=320)
    )
    assert (frame.width, frame.height) == size
    luma = frame.views["luma"][..., 0]
    assert frame_quality(luma)["sharpness"] == pytest.approx(0, abs=1e-6)
    assert 0 <= phash(luma) < 1 << 64
    assert max(decode_image(frame.jpeg, Limits()).shape[:2]) == min(320, max(size))
    for name, view in VIEWS.items():
        pixels = frame.views[name].reshape(-1, 3)
        if view.fit == "letterbox":
            pixels = pixels[pixels.any(1)]
        assert len(pixels), name
        assert np.abs(pixels.astype(int) - COLOUR).max() <= 2, name


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 3), (17, 33), (31, 8)], ids=str)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIC"])
def test_odd_sizes_come_out_whole(kind, size):
    stored = picture(*size)
    options = {
        "JPEG": {"quality": 98, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 98, "subsampling": "4:4:4"},
    }
    data = heic(stored, quality=98) if kind == "HEIC" else encoded(stored, kind, **options.get(kind, {}))
    assert psnr(decode_image(data, Limits()), stored) >= 25


@dataclass(frozen=True)
class FaultyView(View):
    def apply(self, rgb: np.ndarray) -> np.ndarray:
        raise ValueError("no such filter")


def test_an_error_of_a_view_is_not_called_damage():
    data = encoded(picture(), "PNG")
    with pytest.raises(
        MediaError, match=r"sound\.png decodes \(96 x 64 pixels\), but view 'm' .*no such filter.*sound"
    ) as caught:
        image_frame(MediaSource("sound.png", data=data), DecodeSettings(views={"m": FaultyView()}))
    assert caught.value.kind == "view"


def test_thin_stills_pass_through_the_decoder_process():
    data = encoded(np.full((5001, 1, 3), COLOUR, np.uint8), "PNG")
    with Sandbox(DecodeSettings(views={"m": View()})) as pool:
        frame = pool.image(MediaSource("thin.png", data=data))
    assert frame.views["m"].shape == (224, 224, 3)
