"""Held-out quality of pocket-sam2: mIoU from one prompt; J&F over clips, tracked by transformers' own session.

Legend: H, W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vfm_ops.pocket import sam2
from vfm_ops.pocket.score import boundary_f, mask_iou
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


def evaluate_tracking(model: Any, clips: int = 36, frames: int = 60, seed: int = 40_001) -> dict[str, float]:
    """J&F on held-out clips from a first-frame box, of the thing hidden most, without frame 0."""
    model.eval()
    world = World(**{**vars(CLIPS), "seed": seed})
    js: list[float] = []
    fs: list[float] = []
    item = 0
    while len(js) < clips:
        made = clip(world, item, frames)
        item += 1
        scenes = list(made)
        k = eventful_track(made, scenes)
        if k is None:
            continue
        masks = track(model, [s.rgb for s in scenes], scenes[0].boxes_N4[k])
        pairs = [(m, s.mask(k)) for m, s in zip(masks[1:], scenes[1:], strict=True)]
        js.append(float(np.mean([mask_iou(a, b) for a, b in pairs])))
        fs.append(float(np.mean([boundary_f(a, b) for a, b in pairs])))
    j, f = float(np.mean(js)), float(np.mean(fs))
    return {f"J&F, {frames}-frame clips with occlusion": (j + f) / 2}
