"""Limits that protect the machine from one item: how many pixels, bytes and seconds it may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vfm_ops.errors import MediaError, UsageError


@dataclass(frozen=True)
class Limits:
    """What one image or video may cost before it is refused with a MediaError.

    max_pixels, max_side: of a still or of one video frame, read from the header before anything is decoded.
    max_image_bytes, max_bytes: encoded size of a still, of a video.
    max_duration_s: of a video.
    deadline_s: a decoder that makes no progress for this long is killed.
    memory_mb: address space that a decoder process may add to what it starts with.
    """

    max_pixels: int = 100_000_000
    max_side: int = 32_767
    max_image_bytes: int = 256 * 2**20
    max_bytes: int = 64 * 2**30
    max_duration_s: float = 24 * 3600.0
    deadline_s: float = 60.0
    memory_mb: int = 3072

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise UsageError(f"{field.name} must be above zero, not {getattr(self, field.name)}.")

    def check_size(self, width: int, height: int, name: str) -> None:
        """Raises MediaError('bomb' | 'empty') when width x height pixels are more than may be decoded, or none."""
        if width <= 0 or height <= 0:
            raise MediaError("empty", f"{name} declares {width} x {height} pixels; there is nothing to decode.")
        if width * height > self.max_pixels or max(width, height) > self.max_side:
            raise MediaError(
                "bomb",
                f"{name} declares {width} x {height} pixels, over the limit of {self.max_pixels:,} pixels or "
                f"{self.max_side:,} a side; shrink it, or raise decode.max_pixels / decode.max_side if you trust it.",
            )
