"""`python -m jobs.pictures`: draws the pictures of docs/segmentation.md and docs/detection-and-tracking.md again.

All that is on them is generated (`vfm_ops.world`) or found by the pocket models that ship, so that nothing has another owner.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from jobs.cli import run
from vfm_ops.evaluate.overlay import draw_objects, track_colour
from vfm_ops.evaluate.sheet import contact_sheet

CELL = (240, 180)
QUALITY = 80
FEW: dict[str, Any] = {
    "height": 240,
    "width": 320,
    "objects": (3, 3),
    "radius": (0.16, 0.24),
    "photographic": 0.0,
    "degrade": False,
}
MANY: dict[str, Any] = {**FEW, "objects": (14, 14), "radius": (0.04, 0.12), "overlap": 0.0}
SURE: dict[str, Any] = {
    "points_per_side": 14,
    "min_iou": 0.6,
    "min_stability": 0.75,
    "min_area": 40,
    "min_mask_region_area": 40,
}
FRAMES = 48


def command(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("docs/pictures"),
    seed: Annotated[int, typer.Option(help="Of the generated scenes.")] = 8,
    clip_seed: Annotated[int, typer.Option(help="Of the generated clip.")] = 7,
) -> int:
    """Writes segment.webp and track.webp."""
    out.mkdir(parents=True, exist_ok=True)
    for name, made in (("segment", [*prompted(seed), *everything(seed)]), ("track", tracked(clip_seed))):
        sheet = contact_sheet([rgb for _, rgb in made], [text for text, _ in made], columns=3, cell=CELL)
        file = out / f"{name}.webp"
        cv2.imwrite(str(file), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
        print(f"wrote {file}: {sheet.shape[1]} x {sheet.shape[0]}, {file.stat().st_size} bytes")
    return 0


def prompted(seed: int) -> list[tuple[str, np.ndarray]]:
    """A scene, and what a box and a click in it give: captions and pictures."""
    from vfm_ops.segment.segmenter import load_segmenter
    from vfm_ops.world.scene import World, image

    scene = image(World(seed=seed, **FEW), 0)
    segmenter = load_segmenter("sam2:pocket", device="cpu")
    encoded = segmenter.encode(scene.rgb)
    click = inside(scene.mask(1))
    box = scene.boxes_N4[2]
    clicked = segmenter.segment(encoded, points=[[click]], labels=[np.array([1])]).best()[0][0]
    boxed = segmenter.segment(encoded, boxes=box[None], multimask_output=False).best()[0][0]
    shown = draw_objects(scene.rgb, [{"mask": clicked, "track_id": 1}])
    cv2.circle(shown, (int(click[0]), int(click[1])), 5, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(shown, (int(click[0]), int(click[1])), 3, (20, 20, 20), -1, cv2.LINE_AA)
    framed = draw_objects(scene.rgb, [{"mask": boxed, "box": box, "track_id": 2}])
    return [("a picture", scene.rgb), ("a point", shown), ("a box", framed)]


def everything(seed: int) -> list[tuple[str, np.ndarray]]:
    """A scene of small things, and all that is found in it without crops and with them."""
    from vfm_ops.segment.automatic import GridSettings, generate_masks
    from vfm_ops.segment.segmenter import load_segmenter
    from vfm_ops.world.scene import World, image

    rgb = image(World(seed=seed, **MANY), 1).rgb
    segmenter = load_segmenter("sam2:pocket", device="cpu")
    made = [(f"{MANY['objects'][0]} things", rgb)]
    for layers in (0, 1):
        found = generate_masks(
            segmenter, rgb, GridSettings(crop_n_layers=layers, max_overlap=0.5, crop_nms_thresh=0.5, **SURE)
        )
        objects: list[dict[str, Any]] = [{"mask": m.rle} for m in sorted(found, key=lambda m: -m.area)]
        picture = rgb
        for number, item in enumerate(objects):
            picture = tinted(picture, item["mask"], number)
        made.append((f"everything: {len(found)} masks" + (", crop_n_layers=1" if layers else ""), picture))
    return made


def tinted(rgb: np.ndarray, rle: Any, number: int) -> np.ndarray:
    """A picture with one mask in the colour of a number, and no caption."""
    from vfm_ops.track.masks import decode_rle

    mask = decode_rle(rle)
    colour = track_colour(number)
    out = rgb.copy()
    out[mask] = (0.45 * rgb[mask] + 0.55 * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, outlines, -1, colour, 1, cv2.LINE_AA)
    return out


def tracked(seed: int) -> list[tuple[str, np.ndarray]]:
    """Three things of a clip, told by their boxes on its first frame, and followed."""
    from vfm_ops.track.load import load_tracker
    from vfm_ops.track.session import VideoSession
    from vfm_ops.world.clips import clip
    from vfm_ops.world.scene import World

    scenes = list(clip(World(seed=seed, **FEW), 0, frames=FRAMES, paths=("sway",)))
    session = VideoSession(load_tracker("sam2:pocket"), [scene.rgb for scene in scenes])
    for number, box in enumerate(scenes[0].boxes_N4, 1):
        session.add_new_points_or_box(0, number, box=box.tolist())
    made: list[tuple[str, np.ndarray]] = []
    for masks in session.propagate_in_video():
        if masks.frame_index % (FRAMES // 6) == 0:
            objects = [{"mask": masks.mask(i), "track_id": i} for i in masks.object_ids]
            shown = draw_objects(scenes[masks.frame_index].rgb, objects)
            made.append((f"frame {masks.frame_index}" + (", prompted" if not made else ""), shown))
    return made


def inside(mask: np.ndarray) -> np.ndarray:
    """xy of the pixel of a mask that is farthest from its edge."""
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([x, y], np.float32)


if __name__ == "__main__":
    sys.exit(run(command))
