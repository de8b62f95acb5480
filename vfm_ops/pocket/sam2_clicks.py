"""Training pocket-sam2 to be corrected: clicks where a mask is wrong, and the mask that they correct as a prompt.

As SAM and SAM 2 are trained (Kirillov et al. 2023, section A; Ravi et al. 2024, appendix D): each round's clicks lie where the
last round's mask is wrong, its logits are passed back, without their gradient, and every round has the losses of the first.
Image encoder and memory are as the stages before have left them, so that features need no gradients, and those of stills can be
used again.
Legend: B images or clips, N objects of each, O = B * N, T frames, S mask side (32), K supervised side (64), P points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pocket import sam2, sam2_train
from vfm_ops.pocket.sam2_train import SIDE, Clips, Descent, Stills, mask_losses, total
from vfm_ops.pocket.score_masks import largest_region
from vfm_ops.pocket.train import replayed, scheduled_lr, stream
from vfm_ops.track.network import ABSENT_LOGIT

LEARNT = ("mask_decoder.", "prompt_encoder.")
FROZEN = ("mask_decoder.conv_s", "prompt_encoder.shared_embedding")  # what the features and all positions are made by
ROUNDS = 5
SEEN = 4  # times that each batch of stills is used
DEEPEST = 0.75  # clicks on the deepest pixel
WITHOUT_CLICK = 0.15  # rounds in which the mask alone is passed back
SEVERAL = 0.2  # corrections that are answered by three masks, as `Segmenter.segment` does unless told otherwise
FROM_MASK = 0.15  # batches that start from a rough mask


def wrong_click(rng: np.random.Generator, mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, int]:
    """xy in pixels of the model's square, and label, amid the largest region where bool mask (K, K) and truth differ.

    Mostly its deepest pixel, else any; of any wrong pixel at all, most would lie along edges, where a click says little. Where
    nothing is wrong, a click on the object (or, without one, off it) confirms.
    """
    left_out, too_much = truth & ~mask, mask & ~truth
    if not (left_out | too_much).any():
        left_out, too_much = truth, ~truth & ~truth.any()
    region, label = largest_region(left_out, too_much)
    if rng.random() < DEEPEST:
        depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        k = int(depth.argmax())
    else:
        k = int(rng.choice(np.flatnonzero(region)))
    cell = sam2.SIZE // SIDE
    return np.array([k % SIDE, k // SIDE], np.float32) * cell + rng.integers(0, cell, 2), label


def wrong_clicks(rng: np.random.Generator, logits_OSS: Tensor, masks_OKK: Tensor) -> tuple[Tensor, Tensor]:
    """points (O, 1, 1, 2), labels (O, 1, 1): one click an object where its mask is wrong."""
    full = F.interpolate(logits_OSS[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0] > 0
    found = [wrong_click(rng, m, t) for m, t in zip(full.numpy(), (masks_OKK > 0.5).numpy(), strict=True)]
    points = torch.from_numpy(np.stack([p for p, _ in found])).float()
    return points.view(-1, 1, 1, 2), torch.tensor([label for _, label in found]).view(-1, 1, 1)


def rough_masks(rng: np.random.Generator, masks_OKK: Tensor) -> Tensor:
    """Logits (O, S, S) of -10 to 10 of masks that somebody drew, badly: moved, eaten into and grown over."""
    noise = torch.from_numpy(rng.normal(0, 1, (len(masks_OKK), 1, 8, 8))).float()
    noise = F.interpolate(noise, (SIDE, SIDE), mode="bicubic", align_corners=False)[:, 0]
    moved = torch.roll(masks_OKK, tuple(rng.integers(-2, 3, 2).tolist()), (1, 2))
    blurred = F.avg_pool2d(moved[:, None], 7, 1, 3)[:, 0]
    rough = (blurred + rng.uniform(0, 0.4) * noise > 0.5).float()
    return F.avg_pool2d(rough[:, None], 2)[:, 0] * 20 - 10


def best_logits(decoded: sam2.Decoded) -> Tensor:
    """(O, S, S): of each object's masks the one that the model itself thinks best, without its gradient."""
    rows = torch.arange(len(decoded.iou_BNM))
    return decoded.masks_BNMSS[rows, 0, decoded.iou_BNM[:, 0].argmax(1)].detach()


@dataclass(frozen=True)
class Prompts:
    """What is said of O objects on a frame: points (O, 1, P, 2), labels (O, 1, P), and the logits (O, S, S) of the masks that
    they correct. All None where objects are tracked."""

    points: Tensor | None = None
    labels: Tensor | None = None
    previous_OSS: Tensor | None = None

    @property
    def ambiguous(self) -> bool:
        """Whether three masks are weighed: for one click alone."""
        return self.labels is not None and self.labels.shape[2] == 1 and self.previous_OSS is None

    def corrected(self, rng: np.random.Generator, previous_OSS: Tensor, masks_OKK: Tensor) -> Prompts:
        """With one more click an object, where the mask of these logits is wrong."""
        points, labels = wrong_clicks(rng, previous_OSS, masks_OKK)
        if self.points is not None and self.labels is not None:
            points, labels = torch.cat([self.points, points], 2), torch.cat([self.labels, labels], 2)
        return Prompts(points, labels, previous_OSS)


def asked(batch: dict[str, np.ndarray]) -> Prompts:
    """A batch's boxes or clicks, the padding of clicks left out."""
    points, labels = (torch.from_numpy(batch[name]).flatten(0, 1)[:, None] for name in ("points", "labels"))
    used = 2 if int(labels[0, 0, 0]) == 2 else 1
    return Prompts(points[:, :, :used], labels[:, :, :used])


def corrected_still_losses(
    model: Any, features: sam2.Features, batch: dict[str, np.ndarray], rng: np.random.Generator, rounds: int = ROUNDS
) -> dict[str, Tensor]:
    """Mean losses over rounds of correction of stills, from boxes, clicks or rough masks; iou is the last round's.

    features: of the B images. Of three masks that correct one, as of those of a click, only the best is trained.
    """
    b, n = batch["masks"].shape[:2]
    masks = torch.from_numpy(batch["masks"]).flatten(0, 1)
    each = features.of(torch.arange(b).repeat_interleave(n))
    there = torch.ones(len(masks), 1, dtype=torch.bool)
    prompts = Prompts(previous_OSS=rough_masks(rng, masks)) if rng.random() < FROM_MASK else asked(batch)
    found = []
    for turn in range(rounds):
        several = prompts.ambiguous or (prompts.previous_OSS is not None and rng.random() < SEVERAL)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = sam2.without_memory(model, each)
            decoded = sam2.decode(model, each, plain, prompts.points, prompts.labels, several, prompts.previous_OSS)
        found.append(mask_losses(decoded, masks[:, None], there))
        logits = best_logits(decoded)
        if turn > 0 and rng.random() < WITHOUT_CLICK:
            prompts = replace(prompts, previous_OSS=logits)
        else:
            prompts = prompts.corrected(rng, logits, masks)
    # The first answer counts twice, so that what a box or a click alone mean is not forgotten.
    return _means([found[0], *found]) | {"iou": found[-1]["iou"]}


def _means(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([f[name] for f in found]).mean() for name in found[0]}


@dataclass
class Past:
    """What the frames of a clip have left behind; as the tracker, it keeps what was prompted apart from what was tracked.

    age: frames by which prompts seem older than they are.
    """

    model: Any
    age: int
    memories: dict[int, Tensor] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)
    prompted: list[int] = field(default_factory=list)

    @torch.no_grad()
    def condition(self, k: int, features: sam2.Features) -> Tensor:
        """The features of frame k (O, C, h, w), by what its objects have left behind."""
        if k == 0:
            return sam2.without_memory(self.model, features)
        tracked = [j for j in range(k - 1, -1, -1) if j not in self.prompted]
        memories = [(0, self.memories[j]) for j in self.prompted]
        memories += [(k - j, self.memories[j]) for j in reversed(tracked) if k - j <= 6]
        pointers = [(k - j + self.age, self.pointers[j]) for j in self.prompted]
        pointers += [(k - j, self.pointers[j]) for j in tracked if k - j < sam2.MAX_POINTERS]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return sam2.with_memory(self.model, features.low_BCHW, memories, pointers)

    @torch.no_grad()
    def remember(self, k: int, features: sam2.Features, decoded: sam2.Decoded, prompted: bool) -> None:
        """Keeps memory and pointer of frame k's best masks."""
        self.memories[k], self.pointers[k] = sam2_train.remembered(self.model, features, decoded, prompted)
        self.prompted += [k] * prompted


def shown(decoded: sam2.Decoded) -> Tensor:
    """(O, S, S): the best masks' logits, as the tracker has them: far below zero where the object is judged absent."""
    return torch.where(decoded.present_BN[:, 0, None, None] > 0, best_logits(decoded), ABSENT_LOGIT)


def corrections(rng: np.random.Generator, frames: int) -> dict[int, int]:
    """How many corrections a clip gets on which frames: none to two on the first, one or two on up to two others."""
    later = rng.choice(np.arange(1, frames), int(rng.integers(0, min(3, frames))), replace=False)
    return {0: int(rng.integers(0, 3))} | {int(k): int(rng.integers(1, 3)) for k in later}


def corrected_clip_losses(
    model: Any, batch: dict[str, np.ndarray], frames: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Mean losses over the prompted frame of clips, those that are corrected, and the last `frames` - 1; iou is the last one's.

    A corrected frame is decoded again with a click where its mask is wrong, and with that mask; it is then remembered as the
    first frame is. The other frames are tracked without gradients.
    """
    b, t = batch["rgb"].shape[:2]
    masks_OTKK, present_OT = (torch.from_numpy(batch[name]).flatten(0, 1) for name in ("masks", "present"))
    owner_O = torch.arange(b).repeat_interleave(batch["masks"].shape[1])
    turns = corrections(rng, t)
    with torch.no_grad():
        features_at = sam2_train.encoded(model, batch["rgb"], range(t), owner_O)
    past, found = Past(model, int(batch["age"])), []
    for k in range(t):
        features, conditioned = features_at[k], past.condition(k, features_at[k])
        prompts, shown_OSS = asked(batch) if k == 0 else Prompts(), torch.empty(0)
        for turn in range(1 + turns.get(k, 0)):
            if turn:
                prompts = prompts.corrected(rng, shown_OSS, masks_OTKK[:, k])
            learnt = k in turns or k > t - frames
            with torch.set_grad_enabled(learnt), torch.autocast("cpu", dtype=torch.bfloat16):
                decoded = sam2.decode(
                    model,
                    features,
                    conditioned,
                    prompts.points,
                    prompts.labels,
                    prompts.ambiguous,
                    prompts.previous_OSS,
                )
            shown_OSS = shown(decoded)
            if learnt:
                found.append(mask_losses(decoded, masks_OTKK[:, k, None], present_OT[:, k, None]))
        past.remember(k, features, decoded, k in turns)
    return _means(found) | {"iou": found[-1]["iou"]}


def learn_only_prompts(model: Any) -> None:
    """Freezes all but mask decoder and prompt encoder."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(LEARNT) and not name.startswith(FROZEN))


def encoded_stills(
    model: Any, items: Iterator[dict[str, np.ndarray]]
) -> Iterator[tuple[sam2.Features, dict[str, np.ndarray]]]:
    """Batches of stills, their features in the pictures' place."""
    for item in items:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            features = sam2.encode(model, sam2.to_pixels(item.pop("rgb")))
        yield features, item


def train_clicks(
    model: Any,
    steps: int,
    batch: int = 8,
    prompts: int = 4,
    lr: float = 3e-3,
    seed: int = 11,
    workers: int = 1,
    say: Callable[[str], None] = print,
    checkpoint: Path | None = None,
) -> None:
    """Stage 4 of a model that tracks: corrections on stills, and on every fourth step on clips as well.

    checkpoint: directory rewritten every 100 steps.
    """
    rng, seen = np.random.default_rng((seed, 19)), sam2_train.make_stills(seed, 16, 1, 0)
    rough = rough_masks(rng, torch.from_numpy(seen["masks"][:, 0]))
    sam2.open_mask_prompts(model, sam2.to_pixels(seen["rgb"]), rough)
    learn_only_prompts(model)
    descent = Descent(model, lr, say, checkpoint, 100)
    stills = encoded_stills(model, stream(Stills(seed, batch, prompts), -(-steps // SEEN), workers))
    clips = stream(Clips(seed + 1, 4, 2, 4, 8, 3000), -(-steps // 4), workers)
    for step, (features, item) in enumerate(replayed(stills, steps, SEEN, seed)):
        losses = corrected_still_losses(model, features, item, rng)
        loss = total(losses)
        if step % 4 == 3:
            loss = loss + total(corrected_clip_losses(model, next(clips), 4, rng))
        descent.step(loss, scheduled_lr(step, steps, lr, warmup=50, decay=0.7), losses)
    descent.end()
    model.requires_grad_(True)
