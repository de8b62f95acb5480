"""Training pocket-sam2: promptably on images, then with memory on clips (SAM 2, Ravi et al. 2024, section 5 and appendix).

Losses as there: focal 20, dice 1, quality (L1) 1, object presence 1; with several masks only the best one is trained. The
first steps have, in place of the focal loss, cross-entropy with equal weight for inside and outside: under the former, masks of
small things stay empty until prompts are understood, and an empty mask says nothing about a prompt.
Legend: B images or clips, N objects, M masks, T frames, S mask side (32), K supervised side (64), P points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pocket import sam2
from vfm_ops.pocket.train import Average, Log, descend, optimisers, quick_attention, scheduled_lr, stream
from vfm_ops.world.clips import clip
from vfm_ops.world.scene import Scene, World, image

SIDE = 64  # masks are supervised at this size, softly, so that edges are learnt below a mask pixel
STILLS = World(height=sam2.SIZE, width=sam2.SIZE, objects=(2, 5), radius=(0.07, 0.36), overlap=0.35, cutouts=0.25)
CLIPS = World(height=sam2.SIZE, width=sam2.SIZE, objects=(3, 6), radius=(0.09, 0.26), overlap=0.4, cutouts=0.25)
MIN_AREA = 24
# Of 0, 1, 2, 2.5 and 3.5, the best J&F on 30 other clips of the training split: 0.759, 0.766, 0.798, 0.814, 0.799.
PRESENCE_MARGIN = 2.5
EVEN_STEPS = 700  # with class-balanced cross-entropy; prompts are understood, all at once, after 250 to 350 of them


def soft_mask(mask: np.ndarray) -> np.ndarray:
    """bool (H, W) to float32 (SIDE, SIDE), share of each cell."""
    return cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def random_click(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """xy of a pixel of the mask: half the time its deepest one, else any."""
    if rng.random() < 0.5:
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
    else:
        ys, xs = np.nonzero(mask)
        k = rng.integers(len(ys))
        y, x = ys[k], xs[k]
    return np.array([x, y], np.float32)


def jittered_box(rng: np.random.Generator, box_4: np.ndarray, noise: float = 0.06) -> np.ndarray:
    """The corners (2, 2) of a box, moved by up to noise * size."""
    size = box_4[2:] - box_4[:2]
    corners = box_4.reshape(2, 2) + rng.uniform(-noise, noise, (2, 2)) * size
    return np.clip(corners - (0.5, 0.5), 0, sam2.SIZE - 1).astype(np.float32)


def prompt(rng: np.random.Generator, scene: Scene, k: int, by_box: bool) -> tuple[np.ndarray, np.ndarray]:
    """points (2, 2), labels (2): a box's corners (2, 3), or one click (1) and a padding point (-10)."""
    if by_box:
        return jittered_box(rng, scene.boxes_N4[k]), np.array([2, 3])
    return np.stack([random_click(rng, scene.mask(k)), np.zeros(2, np.float32)]), np.array([1, -10])


def make_stills(seed: int, batch: int, prompts: int, index: int) -> dict[str, np.ndarray]:
    """Batch `index` of stills: rgb (B, H, W, 3), points (B, N, 2, 2), labels (B, N, 2), masks (B, N, SIDE, SIDE).

    Even batches are prompted by boxes, odd ones by one click. An image with fewer objects has some of them asked for twice.
    """
    world = World(**{**vars(STILLS), "seed": seed})
    rng = np.random.default_rng((seed, 13, index))
    out: dict[str, list[Any]] = {"rgb": [], "points": [], "labels": [], "masks": []}
    item = index * batch * 2
    while len(out["rgb"]) < batch:
        scene = image(world, item)
        item += 1
        seen = [k for k in range(len(scene.things)) if scene.mask(k).sum() >= MIN_AREA]
        if not seen:
            continue
        chosen = [seen[k % len(seen)] for k in rng.permutation(max(prompts, len(seen)))[:prompts]]
        asked = [prompt(rng, scene, k, index % 2 == 0) for k in chosen]
        out["rgb"].append(scene.rgb)
        out["points"].append(np.stack([p for p, _ in asked]))
        out["labels"].append(np.stack([label for _, label in asked]))
        out["masks"].append(np.stack([soft_mask(scene.mask(k)) for k in chosen]))
    return {name: np.stack(rows) for name, rows in out.items()}


def make_clips(
    seed: int, batch: int, objects: int, frames: int, rollout: int, age: int, index: int
) -> dict[str, np.ndarray]:
    """Batch `index` of clips of `frames` frames and 0 ... rollout more, `stride` frames of a 60-frame clip apart.

    rgb (B, T, H, W, 3), masks (B, N, T, SIDE, SIDE), present bool (B, N, T); points (B, N, 2, 2), labels (B, N, 2) for frame 0;
    age (): frames by which the prompt is to seem older than it is, 0 ... age, about as often in every octave.
    """
    world = World(**{**vars(CLIPS), "seed": seed})
    rng = np.random.default_rng((seed, 17, index))
    out: dict[str, list[Any]] = {"rgb": [], "points": [], "labels": [], "masks": [], "present": []}
    item = index * batch * 4
    frames += int(rng.integers(rollout + 1))
    while len(out["rgb"]) < batch:
        made = clip(world, item)
        item += 1
        stride = int(rng.integers(1, min(7, (made.frames - 1) // (frames - 1)) + 1))
        start = int(rng.integers(0, made.frames - stride * (frames - 1)))
        first = made.frame(start)
        seen = [k for k in range(len(first.things)) if first.mask(k).sum() >= MIN_AREA]
        if not seen:
            continue
        scenes = [first] + [made.frame(start + stride * t) for t in range(1, frames)]
        chosen = _eventful(rng, scenes, seen, objects)
        asked = [prompt(rng, first, k, index % 4 != 3) for k in chosen]
        out["rgb"].append(np.stack([s.rgb for s in scenes]))
        out["points"].append(np.stack([p for p, _ in asked]))
        out["labels"].append(np.stack([label for _, label in asked]))
        out["masks"].append(np.stack([np.stack([soft_mask(s.mask(k)) for s in scenes]) for k in chosen]))
        out["present"].append(np.stack([np.array([s.mask(k).any() for s in scenes]) for k in chosen]))
    older = np.array(int(np.exp(rng.uniform(0, np.log(age + 1)))) - 1)
    return {name: np.stack(rows) for name, rows in out.items()} | {"age": older}


def _eventful(rng: np.random.Generator, scenes: list[Scene], seen: list[int], n: int) -> list[int]:
    """n of the things seen at first, those whose visible area changes most before others (they vanish, return, are hidden)."""
    areas = np.array([[s.mask(k).sum() for s in scenes] for k in seen], float)
    change = areas.std(1) / areas.mean(1) + rng.uniform(0, 0.4, len(seen))
    order = np.argsort(-change)
    return [seen[order[k % len(seen)]] for k in range(n)]


def mask_losses(decoded: sam2.Decoded, masks_BNKK: Tensor, present_BN: Tensor) -> dict[str, Tensor]:
    """focal, dice and quality losses over the objects that are present; of M masks, the one with the least mask loss counts."""
    logits = F.interpolate(decoded.masks_BNMSS.flatten(0, 1), (SIDE, SIDE), mode="bilinear", align_corners=False)
    target = masks_BNKK.flatten(0, 1)[:, None].expand_as(logits)
    p = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal_NM = (bce * (p - target).abs().square()).mean((2, 3))
    dice_NM = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    inside_NM = target.mean((2, 3), keepdim=True).clamp(0.01, 0.99)
    even_NM = (bce * (target / inside_NM + (1 - target) / (1 - inside_NM)) / 2).mean((2, 3))
    total_NM = 20 * focal_NM + dice_NM
    best_N = total_NM.argmin(1, keepdim=True)
    there_N = present_BN.flatten().float()
    count = there_N.sum().clamp(min=1)
    with torch.no_grad():
        hit, wanted = logits > 0, target > 0.5
        iou_NM = (hit & wanted).sum((2, 3)) / (hit | wanted).sum((2, 3)).clamp(min=1)
    quality_N = (decoded.iou_BNM.flatten(0, 1) - iou_NM).abs().mean(1)
    return {
        "focal": (focal_NM.gather(1, best_N)[:, 0] * there_N).sum() / count,
        "even": (even_NM.gather(1, best_N)[:, 0] * there_N).sum() / count,
        "dice": (dice_NM.gather(1, best_N)[:, 0] * there_N).sum() / count,
        "quality": (quality_N * there_N).sum() / count,
        "present": F.binary_cross_entropy_with_logits(decoded.present_BN, present_BN.float()),
        "iou": (iou_NM.gather(1, best_N)[:, 0] * there_N).sum() / count,
    }


def total(losses: dict[str, Tensor], even: bool = False) -> Tensor:
    """20 focal (even: 2 balanced cross-entropy) + dice + quality + presence."""
    pixels = 2 * losses["even"] if even else 20 * losses["focal"]
    return pixels + losses["dice"] + losses["quality"] + losses["present"]


def still_losses(model: Any, batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Losses of prompted stills; clicks get three masks, boxes one."""
    labels = torch.from_numpy(batch["labels"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = sam2.encode(model, sam2.to_pixels(batch["rgb"]))
        decoded = sam2.decode(
            model, features, sam2.without_memory(model, features), torch.from_numpy(batch["points"]), labels,
            multimask=bool((labels[0, 0] == 1).any()),
        )  # fmt: skip
    masks = torch.from_numpy(batch["masks"])
    return mask_losses(decoded, masks, torch.ones(masks.shape[:2], dtype=torch.bool))


def clip_losses(model: Any, batch: dict[str, np.ndarray], frames: int) -> dict[str, Tensor]:
    """Mean losses over `frames` frames of clips: the prompted frame 0 and the last ones, which are conditioned on up to 6 + 1
    memories. Frames between are tracked without gradients: what the model has made of them is what it goes on from."""
    b, t = batch["rgb"].shape[:2]
    n = batch["masks"].shape[1]
    masks_NTKK = torch.from_numpy(batch["masks"]).flatten(0, 1)
    present_NT = torch.from_numpy(batch["present"]).flatten(0, 1)
    points, labels = (
        torch.from_numpy(batch["points"]).flatten(0, 1)[:, None],
        torch.from_numpy(batch["labels"]).flatten(0, 1)[:, None],
    )
    clicked = bool((labels[0] == 1).any())
    owner_N = torch.arange(b).repeat_interleave(n)
    learnt = [0, *range(t - frames + 1, t)]
    between = range(1, t - frames + 1)
    features_at = encoded(model, batch["rgb"], learnt, owner_N)
    with torch.no_grad():
        features_at |= encoded(model, batch["rgb"], between, owner_N)
    memories: list[Tensor] = []
    pointers: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    for k in range(t):
        features = features_at[k]
        with torch.set_grad_enabled(k in learnt):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                if k == 0:
                    plain = sam2.without_memory(model, features)
                    decoded = sam2.decode(model, features, plain, points, labels, clicked)
                else:
                    past = [(0, memories[0])] + [(k - j, memories[j]) for j in range(max(1, k - 6), k)]
                    recent = range(k - 1, max(0, k - sam2.MAX_POINTERS), -1)
                    places = [(k + int(batch["age"]), pointers[0])] + [(k - j, pointers[j]) for j in recent]
                    conditioned = sam2.with_memory(model, features.low_BCHW, past, places)
                    decoded = sam2.decode(model, features, conditioned, None, None, False)
            if k in learnt:
                for name, value in mask_losses(decoded, masks_NTKK[:, k, None], present_NT[:, k, None]).items():
                    sums[name] = sums.get(name, 0) + value / frames
            if k + 1 < t:
                memory, pointer = remembered(model, features, decoded, k == 0)
                memories.append(memory)
                pointers.append(pointer)
    return sums


def encoded(model: Any, rgb_BTHWC: np.ndarray, times: Sequence[int], owner_N: Tensor) -> dict[int, sam2.Features]:
    """Features of these frames, each for its N objects."""
    if not times:
        return {}
    rgb = rgb_BTHWC[:, list(times)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = sam2.encode(model, sam2.to_pixels(rgb.reshape(-1, *rgb.shape[2:])))
    return {k: features.of(owner_N * len(times) + i) for i, k in enumerate(times)}


def remembered(model: Any, features: sam2.Features, decoded: sam2.Decoded, prompted: bool) -> tuple[Tensor, Tensor]:
    """Memory and pointer of a frame, of the mask that the model itself thinks best."""
    best_N = decoded.iou_BNM[:, 0].argmax(1)
    rows = torch.arange(len(best_N))
    present_N = decoded.present_BN[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = sam2.encode_memory(model, features.low_BCHW, decoded.masks_BNMSS[rows, 0, best_N], present_N, prompted)
        pointer = sam2.pointer_of(model, decoded.pointers_BNMC[rows, 0, best_N], present_N)
    return memory, pointer


class Stills:
    """Picklable maker of batches of stills for worker processes."""

    def __init__(self, seed: int, batch: int, prompts: int) -> None:
        self.settings = seed, batch, prompts

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        return make_stills(*self.settings, index)


class Clips:
    """Picklable maker of batches of clips for worker processes."""

    def __init__(self, seed: int, batch: int, objects: int, frames: int, rollout: int, age: int) -> None:
        self.settings = seed, batch, objects, frames, rollout, age

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        return make_clips(*self.settings, index)


class Descent:
    """The end of each step of a stage: gradients, the average of the weights, the log, and now and then a checkpoint.

    checkpoint: directory rewritten every `every` steps.
    """

    def __init__(self, model: Any, lr: float, say: Callable[[str], None], checkpoint: Path | None, every: int) -> None:
        self.model, self.checkpoint, self.every, self.n = model, checkpoint, every, 0
        self.updates, self.average, self.log = optimisers(model, lr, 0.02, 0.99), Average(model), Log(50, say)

    def step(self, loss: Tensor, lr: float, losses: dict[str, Tensor]) -> None:
        """Goes down the gradient of a loss at this rate. losses: what the log tells."""
        descend(self.model, self.updates, loss, lr)
        self.average.update()
        self.log.add(self.n, **{k: v.item() for k, v in losses.items()})
        self.n += 1
        if self.checkpoint is not None and self.n % self.every == 0:
            with self.average.applied():
                sam2.save(self.model, self.checkpoint)

    def end(self) -> None:
        """The model takes the average for good."""
        self.average.adopt()


def train_stills(
    model: Any,
    steps: int,
    batch: int = 16,
    prompts: int = 4,
    lr: float = 3e-3,
    seed: int = 2,
    workers: int = 1,
    say: Callable[[str], None] = print,
    checkpoint: Path | None = None,
) -> None:
    """Stage 1: prompts on stills, at a rate that does not fall: stage 2 goes on.

    checkpoint: directory rewritten every 100 steps.
    """
    descent = Descent(model, lr, say, checkpoint, 100)
    for step, item in enumerate(stream(Stills(seed, batch, prompts), steps, workers)):
        losses = still_losses(model, item)
        descent.step(total(losses, even=step < EVEN_STEPS), scheduled_lr(step, steps, lr, decay=0), losses)
    descent.end()


def train_clips(
    model: Any,
    steps: int,
    batch: int = 4,
    objects: int = 2,
    frames: int = 6,
    rollout: int = 0,
    age: int = 0,
    lr: float = 2e-3,
    decay: float = 1.0,
    even: bool = False,
    seed: int = 3,
    workers: int = 1,
    say: Callable[[str], None] = print,
    checkpoint: Path | None = None,
) -> None:
    """Stage 2: memory on clips, with a batch of stills every fourth step so that prompts are not forgotten.

    rollout, age: see `make_clips`. decay: see `scheduled_lr`. even: balanced cross-entropy in the focal loss's place.
    """
    descent = Descent(model, lr, say, checkpoint, 50)
    stills = stream(Stills(seed + 1, 16, 4), steps, 0)
    for step, item in enumerate(stream(Clips(seed, batch, objects, frames, rollout, age), steps, workers)):
        losses = clip_losses(model, item, frames)
        loss = total(losses, even)
        if step % 4 == 3:
            loss = loss + total(still_losses(model, next(stills)))
        descent.step(loss, scheduled_lr(step, steps, lr, decay=decay), losses)
    descent.end()


def train(
    still_steps: int,
    short_steps: int,
    clip_steps: int,
    rollouts: Sequence[tuple[int, int]],
    seed: int,
    say: Callable[[str], None] = print,
    checkpoint: Path | None = None,
) -> Any:
    """Stills, clips of three frames, of six, and of up to 26, from random weights. Returns the model.

    rollouts: steps and age (see `make_clips`) of each turn of long clips.
    """
    torch.manual_seed(seed)
    model = sam2.make_model()
    quick_attention(model)
    train_stills(model, still_steps, seed=seed, say=say, checkpoint=checkpoint)
    train_memory(model, short_steps, clip_steps, seed + 1, say, checkpoint)
    for turn, (steps, age) in enumerate(rollouts):
        train_rollout(model, steps, age, seed + 3 + 2 * turn, say, checkpoint)
    doubt_presence(model, PRESENCE_MARGIN)
    return model.eval()


def train_memory(
    model: Any, short_steps: int, clip_steps: int, seed: int, say: Callable[[str], None], checkpoint: Path | None
) -> None:
    """Stage 2 of a model that knows stills: first what a memory is, then how to go by many."""
    seen = make_stills(seed, 16, 1, 0)
    sam2.open_memory(model, sam2.to_pixels(seen["rgb"]), 20 * torch.from_numpy(seen["masks"][:, 0]) - 10)
    shared: dict[str, Any] = {"say": say, "checkpoint": checkpoint}
    train_clips(model, short_steps, batch=8, frames=3, decay=0.0, even=True, seed=seed, **shared)
    train_clips(model, clip_steps, seed=seed + 1, **shared)


def train_rollout(
    model: Any, steps: int, age: int, seed: int, say: Callable[[str], None], checkpoint: Path | None
) -> None:
    """Stage 3: to go on from its own memories of up to 20 frames that no gradient has seen, as in a long video.

    age: with 0, a prompt's pointer means little beyond the 25 frames that were trained; J&F then falls from frame 30 on.
    """
    train_clips(model, steps, rollout=20, age=age, lr=1.5e-3, seed=seed, say=say, checkpoint=checkpoint)


@torch.no_grad()
def doubt_presence(model: Any, margin: float) -> None:
    """Lowers every presence score: to remember nothing for a frame costs less than to remember what hides the object."""
    model.mask_decoder.pred_obj_score_head.proj_out.bias -= margin
