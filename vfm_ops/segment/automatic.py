"""Every object of an image, without prompts: grids of points, candidates filtered by confidence, stability and overlap.

The method is SAM's (Kirillov et al. 2023, "Segment Anything", appendix B, automatic mask generation). A crop's candidates
come from `GridDecoder`; those that are sure enough are drawn on the crop, and those that are stable there and were not cut off
are kept as the bits of their boxes. Run lengths of the whole picture are made of those alone that nobody suppressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from vfm_ops.errors import UsageError
from vfm_ops.segment.crops import Crop, crop_layers
from vfm_ops.segment.geometry import Geometry
from vfm_ops.segment.grid_decoder import BYTES_AT_ONCE, Decoded, GridDecoder
from vfm_ops.segment.grid_settings import GridSettings
from vfm_ops.segment.segmenter import EncodedImage, Segmenter
from vfm_ops.track.frames import checked_rgb
from vfm_ops.track.masks import Rle, encode_rle
from vfm_ops.track.regions import without_small_regions

CROPS_AT_ONCE = 8
FED_BACK = 32.0  # logits that are fed back are clamped to +-32, as in SAM 2


@dataclass(frozen=True)
class AutoMask:
    """One object found. box: xyxy, float32. score: predicted IoU. point: the grid point that gave it, xy in pixels.
    crop_box: where the model saw it, xyxy."""

    rle: Rle
    box: np.ndarray
    area: int
    score: float
    stability: float
    point: np.ndarray
    crop_box: tuple[int, int, int, int]


@dataclass(frozen=True)
class _Found:
    """A mask before its run lengths: `bits` of its box (left, top, right, bottom; the last pixels inside) in the picture."""

    box: tuple[int, int, int, int]
    bits: np.ndarray
    area: int
    score: float
    stability: float
    point: np.ndarray
    crop: Crop


@torch.inference_mode()
def generate_masks(
    segmenter: Segmenter,
    image: np.ndarray | EncodedImage,
    settings: GridSettings | None = None,
    encoded: EncodedImage | None = None,
) -> list[AutoMask]:
    """All objects of an image, most confident first.

    Args:
        segmenter: of `load_segmenter`.
        image: uint8 (H, W, 3); its encoding alone will do where there are no layers of crops.
        settings: which points are asked, and which masks are kept.
        encoded: of the whole image, when it is encoded already.

    Returns:
        A mask for each object. Masks may overlap, as far as their boxes do by no more than the settings allow.

    Raises:
        UsageError: crops of an image whose pixels are not there.

    Example:
        >>> from vfm_ops.segment.segmenter import load_segmenter
        >>> picture = np.full((96, 128, 3), 220, np.uint8)
        >>> picture[20:60, 30:80] = 200, 30, 30
        >>> masks = generate_masks(load_segmenter("sam2:pocket", device="cpu"), picture, GridSettings(points_per_side=4))
        >>> all(mask.area > 0 for mask in masks)
        True
    """
    settings = settings or GridSettings()
    encoded = image if isinstance(image, EncodedImage) else encoded
    size = image.size if isinstance(image, EncodedImage) else checked_rgb(image).shape[:2]
    crops = crop_layers(size, settings.crop_n_layers, settings.crop_overlap_ratio)
    if isinstance(image, EncodedImage) and len(crops) > 1:
        raise UsageError("`crop_n_layers` needs the picture itself: give it beside its encoding")
    found: list[_Found] = []
    for crop, seen in _encoded(segmenter, image, crops, encoded):
        found += _in_crop(segmenter, seen, crop, settings, size)
    if len(crops) > 1:
        # The smaller crop shows more of a thing.
        found = _distinct(found, [1 / (f.crop.size[0] * f.crop.size[1]) for f in found], settings.crop_nms_thresh)
    if settings.min_mask_region_area:
        found = _mended(found, size, settings)
    return [_auto_mask(f, size) for f in sorted(found, key=lambda f: -f.score)]


def stability_scores(logits_NHW: Tensor, offset: float, threshold: float = 0.0) -> Tensor:
    """float32 (N,): pixels above threshold + offset over pixels above threshold - offset; 0 where there are none."""
    inner = (logits_NHW > threshold + offset).flatten(1).sum(1)
    outer = (logits_NHW > threshold - offset).flatten(1).sum(1)
    return torch.where(outer > 0, inner / outer.clamp(min=1), 0.0)


def _encoded(
    segmenter: Segmenter, image: np.ndarray | EncodedImage, crops: list[Crop], encoded: EncodedImage | None
) -> Iterator[tuple[Crop, EncodedImage]]:
    """Each crop with its encoding, a few in one pass of the encoder."""
    if encoded is not None:
        yield crops[0], encoded
        crops = crops[1:]
    # A large model's maps of several crops leave a CPU's caches: one by one is faster there.
    at_once = CROPS_AT_ONCE
    if segmenter.device.type == "cpu":
        at_once = max(1, min(at_once, BYTES_AT_ONCE // (24 * segmenter.geometry.image_size**2)))
    for start in range(0, len(crops), at_once):
        group = crops[start : start + at_once]
        yield from zip(group, segmenter.encode_batch([c.of(np.asarray(image)) for c in group], at_once), strict=True)


def _in_crop(
    segmenter: Segmenter, encoded: EncodedImage, crop: Crop, settings: GridSettings, size: tuple[int, int]
) -> list[_Found]:
    """Distinct masks of one crop of a picture of `size`, the most confident first."""
    left, top, _, _ = crop.box
    points = (settings.points(crop.layer) * np.array(encoded.size[::-1])).astype(np.float32)
    stable = stable_on_cpu if segmenter.device.type == "cpu" else stable_on_device
    found = []
    for part in _decoded(segmenter, encoded, points, settings):
        scores, owners = part.scores_M.tolist(), part.point_M.tolist()
        for i, stability, mask in stable(part.logits_Mhw, segmenter.geometry, encoded.size, settings):
            area = int(np.count_nonzero(mask))
            x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
            box = (x, y, x + width - 1, y + height - 1)
            if area < max(1, settings.min_area) or crop.cuts(box, size):
                continue
            placed = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
            bits = np.packbits(mask[y : y + height, x : x + width])
            found.append(_Found(placed, bits, area, scores[i], stability, points[owners[i]] + (left, top), crop))
    return _distinct(found, [f.score for f in found], settings.max_overlap)


def _decoded(
    segmenter: Segmenter, encoded: EncodedImage, points: np.ndarray, settings: GridSettings
) -> Iterator[Decoded]:
    """Candidates whose predicted IoU is high enough."""

    def every(scores: Tensor) -> Tensor:
        return torch.ones_like(scores, dtype=torch.bool)

    def sure(scores: Tensor) -> Tensor:
        return scores > settings.min_iou if settings.min_iou > 0 else every(scores)

    decoder = GridDecoder(segmenter.model, encoded.features)
    scaled = torch.from_numpy((points * segmenter.geometry.scale(encoded.size)).astype(np.float32))
    if not settings.use_m2m:
        yield from decoder.decode(scaled.to(segmenter.device), sure, settings.points_at_once)
        return
    # Meta's `use_m2m`: each candidate is fed back with its point, and judged by what comes of it.
    for part in decoder.decode(scaled.to(segmenter.device), every, settings.points_at_once):
        clicks = points[part.point_M.cpu().numpy(), None]
        refined = segmenter.segment(
            encoded,
            points=clicks,
            labels=np.ones(clicks.shape[:2], np.int64),
            mask_input=part.logits_Mhw.clamp(-FED_BACK, FED_BACK).cpu().numpy(),
            multimask_output=False,
        )
        keep = sure(refined.scores_NK[:, 0])
        if bool(keep.any()):
            logits, scores = refined.logits_NKhw[keep, 0], refined.scores_NK[keep, 0]
            yield Decoded(logits, scores, part.point_M[keep], part.candidate_M[keep])


def stable_on_cpu(
    logits_Mhw: Tensor, geometry: Geometry, size: tuple[int, int], settings: GridSettings
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Masks on the image that hardly depend on where logits are cut: (which of M, stability, bool (height, width))."""
    offset, cut, least = settings.stability_offset, settings.mask_threshold, np.float32(settings.min_stability)
    for i, logits in enumerate(geometry.each_on_image(logits_Mhw.numpy(), size)):
        outer = np.count_nonzero(logits > cut - offset)
        stability = np.float32(np.count_nonzero(logits > cut + offset)) / np.float32(max(1, int(outer)))
        if stability > least or settings.min_stability == 0:
            yield i, float(stability), logits > cut


def stable_on_device(
    logits_Mhw: Tensor, geometry: Geometry, size: tuple[int, int], settings: GridSettings
) -> Iterator[tuple[int, float, np.ndarray]]:
    """As `stable_on_cpu`, all of them at once where they lie."""
    on_image = geometry.to_image(logits_Mhw[None], size)[0]
    scores = stability_scores(on_image, settings.stability_offset, settings.mask_threshold)
    stable = (scores > settings.min_stability) | (settings.min_stability == 0)
    masks = (on_image[stable] > settings.mask_threshold).cpu().numpy()
    for i, mask in zip(torch.nonzero(stable).flatten().tolist(), masks, strict=True):
        yield i, float(scores[i]), mask


def _distinct(found: list[_Found], scores: list[float], max_overlap: float) -> list[_Found]:
    """Those that none of a higher score overlaps by more, the highest score first; of equal ones, the earlier."""
    if not found:
        return []
    from torchvision.ops import nms

    # Boxes of last pixels rather than edges, as in SAM's own filter: what is kept then is the same.
    boxes = torch.tensor([f.box for f in found], dtype=torch.float32)
    kept = nms(boxes, torch.tensor(scores), max_overlap)
    return [found[i] for i in kept.tolist()]


def _mended(found: list[_Found], size: tuple[int, int], settings: GridSettings) -> list[_Found]:
    """Without holes and islands of fewer than `min_mask_region_area` pixels; what has become alike then gives way to what
    was so from the start."""
    mended, untouched = [], []
    for f in found:
        mask, changed = without_small_regions(_on_picture(f, size), settings.min_mask_region_area)
        mended.append(_with_mask(f, mask) if changed else f)
        untouched.append(0.0 if changed else 1.0)
    kept = _distinct(mended, untouched, max(settings.max_overlap, settings.crop_nms_thresh))
    return [f for f in kept if f.area >= settings.min_area]


def _on_picture(found: _Found, size: tuple[int, int]) -> np.ndarray:
    """bool (height, width), in columns, as run lengths are made of."""
    left, top, right, bottom = found.box
    height, width = bottom + 1 - top, right + 1 - left
    mask = np.zeros(size, bool, order="F")
    mask[top : bottom + 1, left : right + 1] = np.unpackbits(found.bits, count=height * width).reshape(height, width)
    return mask


def _with_mask(found: _Found, mask: np.ndarray) -> _Found:
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    bits = np.packbits(mask[y : y + height, x : x + width])
    box = (x, y, x + width - 1, y + height - 1)
    return replace(found, box=box, bits=bits, area=int(np.count_nonzero(mask)))


def _auto_mask(found: _Found, size: tuple[int, int]) -> AutoMask:
    left, top, right, bottom = found.box
    box = np.array([left, top, right + 1, bottom + 1], np.float32)
    rle = encode_rle(_on_picture(found, size))
    return AutoMask(rle, box, found.area, found.score, found.stability, found.point, found.crop.box)
