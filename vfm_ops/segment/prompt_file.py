"""Prompts of pictures from a file, JSON or YAML: a list with one object an entry.

- {points: [[60, 40], [10, 10]], labels: [1, 0]}    # on every picture
- {image: cat.jpg, box: [70, 10, 120, 60]}          # on that one alone
- {image: cat.jpg, mask: coarse.png}                # a coarse mask, beside this file; or COCO RLE
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.segment.segmenter import Candidates, EncodedImage, Segmenter
from vfm_ops.track.prompt_file import Shown, checked, read_entries


class ImageEntry(Shown):
    """One object. image: name of the picture that it is on; without, it is asked for on each."""

    image: str | None = None


def read_image_prompts(path: Path) -> list[ImageEntry]:
    """The objects of a file. UsageError that names the file and the entry for what is none."""
    return [
        checked(ImageEntry, entry, f"`prompt_file` {path}, entry {number}")
        for number, entry in enumerate(read_entries(path), 1)
    ]


def segment_entry(
    segmenter: Segmenter,
    encoded: EncodedImage,
    entry: Shown,
    folder: Path = Path(),
    *,
    mask_input: np.ndarray | None = None,
    multimask_output: bool = True,
    max_hole_area: int = 0,
    max_sprinkle_area: int = 0,
) -> Candidates:
    """The candidates of one object. folder: where the mask's file lies. mask_input: logits (h, w) of an earlier answer."""
    mask = entry.mask_pixels(folder)
    if mask is not None and mask_input is not None:
        raise UsageError("a prompt has a mask and mask_input: give one or the other")
    coarse = mask if mask_input is None else mask_input
    return segmenter.segment(
        encoded,
        points=None if entry.points is None else [np.asarray(entry.points, np.float32)],
        labels=None if entry.labels is None else [np.asarray(entry.labels, np.int64)],
        boxes=None if entry.box is None else np.asarray([entry.box], np.float32),
        mask_input=None if coarse is None else [coarse],
        multimask_output=multimask_output,
        max_hole_area=max_hole_area,
        max_sprinkle_area=max_sprinkle_area,
    )
