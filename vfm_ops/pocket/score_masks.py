"""Held-out quality of pocket-sam2: mIoU from one prompt; J&F over clips, tracked by transformers' own session; and what
corrective clicks make of both, through `Segmenter` and `VideoSession`.

Legend: H, W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch

from vfm_ops.pocket import sam2
from vfm_ops.pocket.score import boundary_f, mask_iou
from vfm_ops.segment.geometry import Geometry
from vfm_ops.segment.segmenter import EncodedImage, Segmenter
from vfm_ops.track.network import Sam2Network
from vfm_ops.track.session import VideoSession
from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings
from vfm_ops.world.clips import Clip, clip
from vfm_ops.world.scene import Scene, World, image

STILLS = World(height=128, width=128, objects=(2, 5), radius=(0.1, 0.34), overlap=0.3, split="heldout")
CLIPS = World(height=128, width=128, objects=(3, 5), radius=(0.12, 0.26), overlap=0.3, split="heldout")


def deepest_pixel(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel farthest from a mask's border: where a careful user clicks."""
    import cv2

    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def largest_region(left_out: np.ndarray, too_much: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest connected region of either of two bool masks (H, W), not both empty; and a label: 1 if of the first."""
    import cv2

    best, largest, label = 0, left_out, 1
    for wrong, click in ((left_out, 1), (too_much, 0)):
        count, regions, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8), connectivity=8)
        k = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()) if count > 1 else 0
        if k and stats[k, cv2.CC_STAT_AREA] > best:
            best, largest, label = int(stats[k, cv2.CC_STAT_AREA]), regions == k, click
    return largest, label


def corrective_click(mask: np.ndarray, truth: np.ndarray) -> tuple[tuple[int, int], int] | None:
    """(x, y) and label of the next click of a simulated user (Kirillov et al. 2023, "Segment Anything", section D.1).

    The deepest pixel of the largest connected region where bool mask (H, W) and truth differ: 1 where the object was left out,
    0 where too much is masked. None where they are equal.
    """
    if (mask == truth).all():
        return None
    region, label = largest_region(truth & ~mask, mask & ~truth)
    return deepest_pixel(region), label


@torch.inference_mode()
def evaluate_prompts(model: Any, images: int = 60, seed: int = 30_001) -> dict[str, float]:
    """mIoU over all visible things of held-out stills, from the exact box and from one click on the deepest pixel."""
    model.eval()
    world = World(**{**vars(STILLS), "seed": seed})
    by_box, by_click = [], []
    for i in range(images):
        scene = image(world, i)
        features = sam2.encode(model, sam2.to_pixels(scene.rgb[None]))
        plain = sam2.without_memory(model, features)
        for k in range(len(scene.things)):
            if scene.mask(k).sum() < 24:
                continue
            corners = torch.from_numpy(scene.boxes_N4[k] - 0.5).view(1, 1, 2, 2)
            boxed = sam2.decode(model, features, plain, corners, torch.tensor([[[2, 3]]]), multimask=False)
            by_box.append(mask_iou(upsampled(boxed.masks_BNMSS[0, 0, 0]), scene.mask(k)))
            point = torch.tensor([[[deepest_pixel(scene.mask(k))]]], dtype=torch.float32)
            clicked = sam2.decode(model, features, plain, point, torch.tensor([[[1]]]), multimask=True)
            best = int(clicked.iou_BNM[0, 0].argmax())
            by_click.append(mask_iou(upsampled(clicked.masks_BNMSS[0, 0, best]), scene.mask(k)))
    return {"mIoU from a box": float(np.mean(by_box)), "mIoU from one click": float(np.mean(by_click))}


def upsampled(logits_SS: torch.Tensor, height: int = sam2.SIZE, width: int = sam2.SIZE) -> np.ndarray:
    """Mask logits (S, S) to a bool mask (height, width)."""
    full = torch.nn.functional.interpolate(
        logits_SS[None, None].float(), (height, width), mode="bilinear", align_corners=False
    )
    return (full[0, 0] > 0).numpy()


@torch.inference_mode()
def track(model: Any, frames: list[np.ndarray], box_4: np.ndarray) -> list[np.ndarray]:
    """Masks bool (H, W) of the object boxed on the first of uint8 frames (H, W, 3) of the model's size."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    pixels = sam2.to_pixels(np.stack(frames))
    session = Sam2VideoInferenceSession(
        video=pixels, video_height=pixels.shape[2], video_width=pixels.shape[3], dtype=torch.float32
    )
    index = session.obj_id_to_idx(1)
    corners = torch.from_numpy(box_4 - 0.5).float().view(1, 1, 2, 2)
    labels = torch.tensor([[[2, 3]]], dtype=torch.int32)
    session.add_point_inputs(index, 0, {"point_coords": corners, "point_labels": labels})
    session.obj_with_new_inputs = [1]
    masks = [upsampled(model(session, frame_idx=0).pred_masks[0, 0])]
    masks += [upsampled(model(session, frame_idx=t).pred_masks[0, 0]) for t in range(1, len(frames))]
    return masks


def eventful_track(made: Clip, scenes: list[Scene]) -> int | None:
    """The thing, seen well at first, whose visible area falls furthest: hidden, or gone and back; None if none is."""
    areas = np.array([[s.mask(k).sum() for s in scenes] for k in range(len(scenes[0].things))], float)
    usable = np.flatnonzero(areas[:, 0] >= 60)
    if not len(usable):
        return None
    return int(usable[(areas[usable].min(1) / areas[usable].max(1)).argmin()])


def eventful_clips(clips: int, frames: int, seed: int) -> Iterator[tuple[list[Scene], int]]:
    """So many held-out clips that have an eventful thing: their scenes, and which thing it is."""
    world, found = World(**{**vars(CLIPS), "seed": seed}), 0
    for item in count():
        if found == clips:
            return
        made = clip(world, item, frames)
        scenes = list(made)
        if (k := eventful_track(made, scenes)) is not None:
            found += 1
            yield scenes, k


def evaluate_tracking(model: Any, clips: int = 36, frames: int = 60, seed: int = 40_001) -> dict[str, float]:
    """J&F on held-out clips from a first-frame box, of the thing hidden most, without frame 0."""
    model.eval()
    scores = [
        j_and_f(track(model, [s.rgb for s in scenes], scenes[0].boxes_N4[k]), scenes, k)
        for scenes, k in eventful_clips(clips, frames, seed)
    ]
    return {f"J&F, {frames}-frame clips with occlusion": float(np.mean(scores))}


def j_and_f(masks: list[np.ndarray], scenes: list[Scene], thing: int) -> float:
    """Mean of region similarity and contour accuracy of a thing's masks in all scenes of a clip but the first."""
    pairs = [(m, s.mask(thing)) for m, s in zip(masks[1:], scenes[1:], strict=True)]
    return float(np.mean([(mask_iou(a, b) + boundary_f(a, b)) / 2 for a, b in pairs]))


def segmenter_of(model: Any) -> Segmenter:
    """The image part of a Sam2VideoModel as users press it."""
    from transformers import Sam2Config, Sam2Model

    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    image_model = Sam2Model(Sam2Config(**{name: getattr(model.config, name).to_dict() for name in parts}))
    image_model.load_state_dict({k: v for k, v in model.state_dict().items() if k in image_model.state_dict()})
    return Segmenter(image_model, Geometry(sam2.SIZE, False, sam2.MEAN, sam2.STD))


def click_ious(segmenter: Segmenter, encoded: EncodedImage, truth: np.ndarray, clicks: int) -> list[float]:
    """IoU with bool truth (H, W) after each click of a simulated user, who passes the last mask's logits back."""
    points, labels = [deepest_pixel(truth)], [1]
    ious: list[float] = []
    previous: np.ndarray | None = None
    while len(ious) < clicks:
        found = segmenter.segment(
            encoded,
            points=[np.array(points, np.float32)],
            labels=[np.array(labels)],
            mask_input=None if previous is None else [previous],
            multimask_output=len(points) == 1,
        )
        best = int(found.scores[0].argmax())
        previous = found.logits_NKhw[0, best].numpy()
        mask = found.best()[0][0]
        ious.append(mask_iou(mask, truth))
        click = corrective_click(mask, truth)
        if click is None:
            return ious + [ious[-1]] * (clicks - len(ious))
        points.append(click[0])
        labels.append(click[1])
    return ious


def evaluate_clicks(model: Any, images: int = 60, clicks: int = 5, seed: int = 30_001) -> dict[str, float]:
    """mIoU over all visible things of held-out stills after each of a simulated user's clicks, through `Segmenter`."""
    segmenter, world = segmenter_of(model), World(**{**vars(STILLS), "seed": seed})
    ious: list[list[float]] = []
    for i in range(images):
        scene = image(world, i)
        encoded = segmenter.encode(scene.rgb)
        seen = [scene.mask(k) for k in range(len(scene.things)) if scene.mask(k).sum() >= 24]
        ious += [click_ious(segmenter, encoded, truth, clicks) for truth in seen]
    means = np.mean(ious, axis=0)
    return {f"mIoU after {n} click{'s'[: n > 1]}": float(v) for n, v in enumerate(means, 1)}


def clicked_masks(tracker: Sam2Tracker, scenes: list[Scene], thing: int, clicks: int) -> list[list[np.ndarray]]:
    """The masks bool (H, W) of a thing in all scenes of a clip after each click of a simulated user.

    The interactive protocol of SAM 2 (Ravi et al. 2024, section 6.1), with one click a turn: the first on the first frame, each
    other one on the frame where most pixels are wrong, as a correction of the mask there. (By IoU, the worst frame is one where
    a few pixels of the thing are to be seen, turn after turn.) From that frame on the clip is tracked again.
    """
    session = VideoSession(tracker, [s.rgb for s in scenes])
    truths = [s.mask(thing) for s in scenes]
    masks = [np.zeros_like(t) for t in truths]
    frame, click = 0, (deepest_pixel(truths[0]), 1)
    after: list[list[np.ndarray]] = []
    while len(after) < clicks:
        session.add_new_points_or_box(frame, 1, points=[click[0]], labels=[click[1]], clear_old_points=False)
        for tracked in session.propagate_in_video():
            masks[tracked.frame_index] = tracked.masks()[0]
        after.append(list(masks))
        frame = int(np.argmax([(m != t).sum() for m, t in zip(masks, truths, strict=True)]))
        found = corrective_click(masks[frame], truths[frame])
        if found is None:
            return after + [list(masks)] * (clicks - len(after))
        click = found
    return after


def evaluate_clicked_clips(
    model: Any, clips: int = 36, frames: int = 60, clicks: int = 5, seed: int = 40_001
) -> dict[str, float]:
    """J&F on the clips of `evaluate_tracking`, without frame 0, after each simulated click, through `VideoSession`."""
    network = Sam2Network(copy.deepcopy(model))
    settings = TrackerSettings(feature_cache=frames)  # the frames are tracked again and again
    scores = [
        [j_and_f(m, scenes, k) for m in clicked_masks(Sam2Tracker(network, settings), scenes, k, clicks)]
        for scenes, k in eventful_clips(clips, frames, seed)
    ]
    means = np.mean(scores, axis=0)
    return {f"J&F after {n} click{'s'[: n > 1]}, {frames}-frame clips": float(v) for n, v in enumerate(means, 1)}
