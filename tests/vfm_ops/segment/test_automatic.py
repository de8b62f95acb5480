"""Automatic masks against transformers' mask generation on the same weights, and against plain forms of SAM's filters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MaskGenerationPipeline, Sam2ImageProcessor, Sam2Model, SamImageProcessor, SamModel

from tests.vfm_ops.track.test_regions import mended_by_hand
from vfm_ops.errors import UsageError
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.segment import crops
from vfm_ops.segment.automatic import (
    GridSettings,
    generate_masks,
    stability_scores,
    stable_on_cpu,
    stable_on_device,
)
from vfm_ops.segment.crops import crop_layers
from vfm_ops.segment.geometry import Geometry
from vfm_ops.segment.grid_settings import point_grid
from vfm_ops.segment.segmenter import load_segmenter
from vfm_ops.track.masks import decode_rle
from vfm_ops.world.scene import World
from vfm_ops.world.scene import image as generated

# Loose enough that masks of random weights pass, tight enough that each filter drops some.
LOOSE = {
    "sam": {"min_iou": 0.05, "min_stability": 0.5, "max_overlap": 0.95},
    "sam2": {"min_iou": 0.4, "min_stability": 0.6, "max_overlap": 0.97},
}
SIDE = 6
SHIPPED = {"min_iou": 0.5, "min_stability": 0.6, "max_overlap": 0.7}  # for pocket-sam2 on the scene below
FACTOR = 512 / 1500


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A generated picture with nine small things; its crops are squares, as it is."""
    world = World(seed=3, height=245, width=245, objects=(7, 9), radius=(0.05, 0.12), photographic=0, degrade=False)
    return generated(world, 0).rgb


def peer(name: str, folder) -> MaskGenerationPipeline:
    """transformers' pipeline with the weights of a folder."""
    model, processor = (SamModel, SamImageProcessor) if name == "sam" else (Sam2Model, Sam2ImageProcessor)
    return MaskGenerationPipeline(
        model=model.from_pretrained(folder).eval(), image_processor=processor.from_pretrained(folder)
    )


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_the_grid_finds_what_transformers_pipeline_finds(name, sam_folder, sam2_folder, photograph):
    # transformers places SAM 2's grid as if the image were padded, so that only a square one is a fair comparison.
    image = photograph if name == "sam" else np.ascontiguousarray(photograph[:, :150])
    limits, folder = LOOSE[name], sam_folder if name == "sam" else sam2_folder
    pipeline, segmenter = peer(name, folder), load_segmenter(f"{name}:{folder}", device="cpu")
    with torch.no_grad():
        expected = pipeline(
            Image.fromarray(image),
            points_per_crop=SIDE,
            points_per_batch=16,
            pred_iou_thresh=limits["min_iou"],
            stability_score_thresh=limits["min_stability"],
            crops_nms_thresh=limits["max_overlap"],
            output_bboxes_mask=True,
        )
    ours = generate_masks(segmenter, image, GridSettings(points_per_side=SIDE, points_at_once=16, **limits))
    assert len(expected["masks"]) > 2, f"nothing to compare: {len(expected['masks'])}"
    assert len(ours) == len(expected["masks"])
    np.testing.assert_allclose([m.score for m in ours], expected["scores"].numpy(), atol=1e-5)
    for mask, their_mask in zip(ours, expected["masks"]):
        assert (decode_rle(mask.rle) != np.asarray(their_mask)).mean() < 1e-4


@dataclasses.dataclass(frozen=True)
class Expected:
    mask: np.ndarray
    box: np.ndarray
    score: float
    crop_box: tuple[int, ...]


def transformers_candidates(pipeline, image, limits, layers) -> list[Expected]:
    """What transformers' pipeline has before it suppresses overlaps, crop by crop."""
    found = []
    for inputs in pipeline.preprocess(
        Image.fromarray(image), points_per_batch=16, points_per_crop=SIDE, crops_n_layers=layers
    ):
        crop = tuple(int(v) for v in inputs["input_boxes"][0])
        with torch.no_grad():
            out = pipeline._forward(
                inputs, pred_iou_thresh=limits["min_iou"], stability_score_thresh=limits["min_stability"]
            )
        for rle, box, score in zip(out["masks"], out["boxes"].numpy(), out["iou_scores"].tolist()):
            counts = rle["counts"]
            mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rle["size"][::-1]).T
            found.append(Expected(mask, box, score, crop))
    return found


def greedy(found: list[Expected], scores: list[float], limit: float) -> list[Expected]:
    """Non-maximum suppression by the book."""
    kept: list[Expected] = []
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        if all(box_iou(found[i].box, other.box) <= limit for other in kept):
            kept.append(found[i])
    return kept


def box_iou(a, b) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inter = np.prod(np.clip(high - low, 0, None))
    return inter / max(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter, 1e-9)


def expected_of_crops(pipeline, image, limits, crop_nms_thresh) -> list[Expected]:
    """transformers' candidates on the picture and its four crops, suppressed as SAM does: within each crop by predicted IoU,
    then in favour of smaller crops. (transformers does it once, over all crops, by predicted IoU.)"""
    found = transformers_candidates(pipeline, image, limits, layers=1)
    boxes = [c.box for c in crop_layers(image.shape[:2], 1, FACTOR)]
    assert {f.crop_box for f in found} == set(boxes)
    within = []
    for crop in boxes:
        own = [f for f in found if f.crop_box == crop]
        within += greedy(own, [f.score for f in own], limits["max_overlap"])
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (f.crop_box for f in within)]
    kept = greedy(within, [1 / a for a in areas], crop_nms_thresh)
    assert len(kept) < len(within) < len(found), "a filter drops nothing"
    return sorted(kept, key=lambda f: -f.score)


def assert_alike(ours, expected: list[Expected]) -> None:
    assert len(ours) == len(expected)
    for mask, other in zip(ours, expected, strict=True):
        assert mask.score == pytest.approx(other.score, abs=1e-5)
        assert mask.crop_box == other.crop_box
        assert (decode_rle(mask.rle) != other.mask).mean() < 1e-4
        np.testing.assert_allclose(mask.box, other.box + np.array([0, 0, 1, 1]), atol=1)


def test_crops_find_what_transformers_finds(scene):
    pipeline = peer("sam2", find_checkpoint("sam2:pocket", "segment").folder)
    settings = GridSettings(points_per_side=SIDE, crop_n_layers=1, crop_nms_thresh=0.6, **SHIPPED)
    ours = generate_masks(load_segmenter("sam2:pocket", device="cpu"), scene, settings)
    assert_alike(ours, expected_of_crops(pipeline, scene, SHIPPED, 0.6))


def test_crops_of_sam_keep_their_shape(sam_folder, photograph, monkeypatch):
    # Masks of random weights reach every edge, so that masks at a cut are kept here, by both.
    monkeypatch.setattr(crops, "NEAR_PX", -1)
    monkeypatch.setattr(
        "transformers.models.sam.image_processing_sam._is_box_near_crop_edge",
        lambda boxes, *edges: torch.zeros(len(boxes), dtype=torch.bool),
    )
    limits = {**LOOSE["sam"], "min_stability": 0.3}
    settings = GridSettings(points_per_side=SIDE, crop_n_layers=1, crop_nms_thresh=0.6, **limits)
    ours = generate_masks(load_segmenter(f"sam:{sam_folder}", device="cpu"), photograph, settings)
    assert_alike(ours, expected_of_crops(peer("sam", sam_folder), photograph, limits, 0.6))


def test_a_coarser_grid_in_crops_is_that_grid(scene):
    segmenter = load_segmenter("sam2:pocket", device="cpu")
    common = {"crop_n_layers": 1, **SHIPPED}
    halved = GridSettings(points_per_side=SIDE, crop_n_points_downscale_factor=2, **common)
    told = GridSettings(point_grids=[point_grid(SIDE), point_grid(SIDE // 2)], **common)
    full = GridSettings(points_per_side=SIDE, **common)
    found = [[m.rle for m in generate_masks(segmenter, scene, s)] for s in (halved, told, full)]
    assert found[0] == found[1] != found[2]
    by_crop = {m.crop_box: m for m in generate_masks(segmenter, scene, halved)}
    assert len(by_crop) > 1
    for (left, top, right, bottom), mask in by_crop.items():
        assert left <= mask.point[0] < right
        assert top <= mask.point[1] < bottom


def test_masks_fed_back_are_what_the_model_makes_of_them(sam2_folder, photograph):
    """Meta's `use_m2m`: every candidate goes in again as a mask prompt with its point, and the single mask is judged."""
    segmenter = load_segmenter(f"sam2:{sam2_folder}", device="cpu")
    settings = GridSettings(points_per_side=2, min_iou=0, min_stability=0, max_overlap=1, use_m2m=True)
    ours = generate_masks(segmenter, photograph, settings)
    encoded, model = segmenter.encode(photograph), segmenter.model
    points = torch.tensor([[[[32.0, 32.0]], [[96.0, 32.0]], [[32.0, 96.0]], [[96.0, 96.0]]]])
    expected = {}
    with torch.no_grad():
        first = model(image_embeddings=list(encoded.features), input_points=points)
        for i in range(4):
            for logits in first.pred_masks[0, i]:
                again = model(
                    image_embeddings=list(encoded.features),
                    input_points=points[:, i : i + 1],
                    input_masks=logits.clamp(-32, 32)[None, None],
                    multimask_output=False,
                )
                on_image = torch.nn.functional.interpolate(
                    again.pred_masks[0], size=photograph.shape[:2], mode="bilinear"
                )
                expected[round(float(again.iou_scores), 4)] = (on_image[0, 0] > 0).numpy()
    assert len(ours) > 6
    for mask in ours:
        assert (decode_rle(mask.rle) != expected[round(mask.score, 4)]).mean() < 1e-3


@pytest.mark.parametrize("letterbox", [True, False])
@pytest.mark.parametrize("size", [(40, 90), (300, 211)])
def test_a_gpu_keeps_the_masks_that_a_cpu_keeps(letterbox, size):
    geometry = Geometry(128, letterbox, (0.5,) * 3, (0.5,) * 3)
    logits = torch.randn(20, 4, 4, generator=torch.Generator().manual_seed(0)) * 4
    logits = torch.nn.functional.interpolate(logits[None], size=(32, 32), mode="bicubic")[0]
    settings = GridSettings(min_stability=0.7, mask_threshold=0.3)
    by_one, by_other = (list(f(logits, geometry, size, settings)) for f in (stable_on_cpu, stable_on_device))
    assert 0 < len(by_one) < 20
    assert [i for i, *_ in by_one] == [i for i, *_ in by_other]
    np.testing.assert_allclose([s for _, s, _ in by_one], [s for _, s, _ in by_other], atol=1e-4)
    assert all((a != b).mean() < 1e-4 for (*_, a), (*_, b) in zip(by_one, by_other, strict=True))


def test_small_masks_are_left_out(sam_folder, photograph):
    segmenter = load_segmenter(f"sam:{sam_folder}", device="cpu")
    loose = {"points_per_side": 4, "min_iou": 0.0, "min_stability": 0.0, "max_overlap": 1.0}
    everything = generate_masks(segmenter, photograph, GridSettings(**loose))
    areas = sorted(m.area for m in everything)
    limit = areas[len(areas) // 2] + 1
    kept = generate_masks(segmenter, photograph, GridSettings(**loose, min_area=limit))
    assert sorted(m.area for m in kept) == [a for a in areas if a >= limit]
    assert all(int(decode_rle(m.rle).sum()) == m.area for m in kept)


def test_small_holes_and_islands_are_mended_and_the_unharmed_stay(scene):
    segmenter = load_segmenter("sam2:pocket", device="cpu")
    loose = {"points_per_side": SIDE, "crop_n_layers": 1, **SHIPPED, "max_overlap": 0.9, "crop_nms_thresh": 0.9}
    least = 30
    before = generate_masks(segmenter, scene, GridSettings(**loose))
    mended = [mended_by_hand(decode_rle(m.rle), least) for m in before]
    found = []
    for source, ((mask,), _) in zip(before, mended):
        rows, columns = np.nonzero(mask)
        box = np.array([columns.min(), rows.min(), columns.max(), rows.max()], float)
        found.append(Expected(mask, box, source.score, source.crop_box))
    expected = greedy(found, [float(not changed) for _, changed in mended], 0.9)
    assert 0 < sum(changed for _, changed in mended) < len(mended)
    assert len(expected) < len(found), "nothing became alike"
    ours = generate_masks(segmenter, scene, GridSettings(**loose, min_mask_region_area=least))
    assert len(ours) == len(expected)
    for mask, other in zip(ours, sorted(expected, key=lambda f: -f.score)):
        assert np.array_equal(decode_rle(mask.rle), other.mask)
        assert mask.area == other.mask.sum()
        assert mask.box.tolist() == (other.box + np.array([0, 0, 1, 1])).tolist()


def test_an_encoded_image_is_not_encoded_again(sam_folder, photograph):
    segmenter = load_segmenter(f"sam:{sam_folder}", device="cpu")
    encoded = segmenter.encode(photograph)
    generate_masks(segmenter, encoded, GridSettings(points_per_side=3))
    assert segmenter.encodings == 1
    generate_masks(segmenter, photograph, GridSettings(points_per_side=2, crop_n_layers=1), encoded)
    assert segmenter.encodings == 1 + 4
    with pytest.raises(UsageError, match="needs the picture itself"):
        generate_masks(segmenter, encoded, GridSettings(crop_n_layers=1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"points_per_side": 0}, "`points_per_side` is 0: it should be greater than or equal to 1"),
        ({"crop_overlap_ratio": 1}, "`crop_overlap_ratio` is 1: it should be less than 1"),
        ({"min_iou": "much"}, "`min_iou` is much: it should be a valid number"),
        ({"point_grids": [point_grid(2)], "crop_n_layers": 1}, "point_grids has 1 grids"),
        ({"point_grids": [[[2, 0.5]]]}, "`point_grids` is 2: it should be less than or equal to 1"),
        ({"crop_layers": 1}, "no setting crop_layers: it has points_per_side, min_iou"),
    ],
)
def test_a_wrong_setting_is_a_sentence(settings, said):
    with pytest.raises(UsageError, match=said):
        GridSettings(**settings)


def test_grid_points_are_cell_centres():
    assert (point_grid(2) * (80, 40)).tolist() == [[20, 10], [60, 10], [20, 30], [60, 30]]


def test_stability_is_the_overlap_of_two_cuts():
    logits = torch.tensor([[[3.0, 0.5], [-0.5, -3.0]], [[-5.0, -5.0], [-5.0, -5.0]]])
    assert stability_scores(logits, 1.0).tolist() == pytest.approx([1 / 3, 0.0])
    assert stability_scores(logits - 0.2, 1.0, -0.2).tolist() == pytest.approx([1 / 3, 0.0])
