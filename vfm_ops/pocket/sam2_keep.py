"""Training pocket-sam2 to be corrected without forgetting how it tracks.

Learning without forgetting (Li & Hoiem 2016): what the model answered on frames of clips before it was taught corrections are
targets at every step. Its memory was trained on that decoder's masks and object pointers, so that both have to stay what they
were: J&F falls from 0.76 to 0.68 where corrections alone are taught.
Legend: F frames of single objects, M masks, S mask side (32), C channels, h, w the coarsest features' sides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pocket import sam2, sam2_clicks, sam2_train
from vfm_ops.pocket.sam2_clicks import Past, Prompts, asked
from vfm_ops.pocket.sam2_train import PRESENCE_MARGIN, Clips, Descent, Stills, doubt_presence, total
from vfm_ops.pocket.train import replayed, scheduled_lr, stream

FAR = 10.0  # logits beyond which a mask or a presence is certain
WEIGHT = 2.0  # of what is kept, beside the losses of corrections
TAUGHT = ("mask_decoder.", "object_pointer_proj.")


@dataclass
class Answers:
    """Frames as the decoder gets them, float16, and what a model answered: boxed, or tracked (points and labels are None).

    fine_F, middle_F, conditioned_F (F, C, h, w); points (F, 1, P, 2), labels (F, 1, P); logits_FSS; iou_F; pointers_FC;
    present_F: logits without margin.
    """

    fine_F: Tensor
    middle_F: Tensor
    conditioned_F: Tensor
    points: Tensor | None
    labels: Tensor | None
    logits_FSS: Tensor
    iou_F: Tensor
    pointers_FC: Tensor
    present_F: Tensor

    def __len__(self) -> int:
        return len(self.fine_F)

    def of(self, index: Tensor) -> Answers:
        """Some of the frames, in float32."""
        return Answers(*(None if v is None else v[index].float() for v in self._values()))

    def _values(self) -> list[Any]:
        return [getattr(self, f.name) for f in fields(self)]

    @staticmethod
    def joined(parts: list[Answers]) -> Answers:
        """All frames of all parts."""
        columns = zip(*(p._values() for p in parts), strict=True)
        return Answers(*(None if values[0] is None else torch.cat(values) for values in columns))


def answers(model: Any, features: sam2.Features, conditioned: Tensor, prompts: Prompts) -> Answers:
    """What a model whose presence scores have `PRESENCE_MARGIN` taken off answers with one mask."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = sam2.decode(model, features, conditioned, prompts.points, prompts.labels, False)
    fine, middle = (f.half() for f in features.high)
    return Answers(
        fine, middle, conditioned.half(), prompts.points, prompts.labels, found.masks_BNMSS[:, 0, 0].half(),
        found.iou_BNM[:, 0, 0], found.pointers_BNMC[:, 0, 0].half(), found.present_BN[:, 0] + PRESENCE_MARGIN,
    )  # fmt: skip


def known_frames(
    teacher: Any, policies: list[Any], batches: int, seed: int, say: Callable[[str], None] = print
) -> tuple[Answers, Answers]:
    """The teacher's answers on boxed first frames, and on tracked frames of clips of 6 to 26.

    policies: the models, one batch of clips each in turn, whose masks and pointers are remembered.
    """
    boxed: list[Answers] = []
    tracked: list[Answers] = []
    for i in range(batches):
        batch = sam2_train.make_clips(seed, 4, 2, 6, 20, 0, 4 * (i // 3) + i % 3)  # of four batches, three are boxed
        model, t = policies[i % len(policies)], batch["rgb"].shape[1]
        with torch.no_grad():
            features_at = sam2_train.encoded(teacher, batch["rgb"], range(t), torch.arange(4).repeat_interleave(2))
        past = Past(model, 0)
        for k in range(t):
            features, prompts = features_at[k], Prompts() if k else asked(batch)
            conditioned = past.condition(k, features)
            (tracked if k else boxed).append(answers(teacher, features, conditioned, prompts))
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                own = sam2.decode(model, features, conditioned, prompts.points, prompts.labels, False)
            past.remember(k, features, own, k == 0)
        say(f"clips {i + 1} of {batches}, {t} frames")
    return Answers.joined(boxed), Answers.joined(tracked)


def kept_losses(model: Any, known: Answers, spread: float) -> dict[str, Tensor]:
    """How far a model without margin is from what another one answered.

    spread: variance of the pointers. Masks and pointers count where the other one sees the object.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = sam2.Features([known.fine_F, known.middle_F], known.conditioned_F)
        labels = None if known.labels is None else known.labels.int()
        found = sam2.decode(model, features, known.conditioned_F, known.points, labels, False)
    there_F = (known.present_F > PRESENCE_MARGIN).float()
    count = there_F.sum().clamp(min=1)
    logits, target = found.masks_BNMSS[:, 0, 0], known.logits_FSS.clamp(-FAR, FAR).sigmoid()
    p = logits.sigmoid()
    surprise = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    surprise_F = (surprise - F.binary_cross_entropy(target, target, reduction="none")).mean((1, 2))
    both_F, either_F = (p * target).sum((1, 2)), (p.square() + target.square()).sum((1, 2))
    dice_F = 1 - (2 * both_F + 1) / (either_F + 1)
    pointer_F = (found.pointers_BNMC[:, 0, 0].float() - known.pointers_FC).square().mean(1) / spread
    present, wanted = found.present_BN[:, 0].clamp(-FAR, FAR), known.present_F.clamp(-FAR, FAR)
    return {
        "kept mask": (surprise_F * there_F).sum() / count,
        "kept dice": (dice_F * there_F).sum() / count,
        "kept pointer": (pointer_F * there_F).sum() / count,
        "kept presence": F.smooth_l1_loss(present, wanted),
        "kept quality": ((found.iou_BNM[:, 0, 0] - known.iou_F).abs() * there_F).sum() / count,
    }


def kept_total(losses: dict[str, Tensor]) -> Tensor:
    """20 mask + 2 dice + pointer + presence / 4 + quality."""
    mask, dice, pointer, presence, quality = losses.values()
    return 20 * mask + 2 * dice + pointer + presence / 4 + quality


def halfway(model: Any, teacher: Any) -> None:
    """Puts a model's decoder amid its own weights and its teacher's: it corrects nearly as well, and tracks better."""
    theirs = dict(teacher.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith(TAUGHT):
            parameter.data.lerp_(theirs[name].data, 0.5)


def random_frames(rng: np.random.Generator, known: Answers, count: int) -> Answers:
    """Some of the frames, in float32, repeats allowed."""
    return known.of(torch.from_numpy(rng.integers(0, len(known), count)))


def train_kept(
    model: Any,
    teacher: Any,
    steps: int,
    batches: int = 10,
    lr: float = 1e-3,
    seed: int = 12,
    workers: int = 1,
    say: Callable[[str], None] = print,
    checkpoint: Path | None = None,
) -> None:
    """Stage 5 of a model that stage 4 has taught corrections: these, and its teacher's tracking, at every step.

    The rate falls to 0.6 of lr; the average does the rest.
    teacher: the model before stage 4; both have the presence margin. batches: of clips, of 8 objects each and 6 to 26
    frames, that are kept. checkpoint: directory rewritten every 100 steps.
    """
    halfway(model, teacher)
    boxed, tracked = known_frames(teacher, [teacher, model], batches, seed + 59, say)
    spread, rng = float(tracked.pointers_FC.float().var()), np.random.default_rng((seed, 19))
    doubt_presence(model, -PRESENCE_MARGIN)
    sam2_clicks.learn_only_prompts(model)
    model.object_pointer_proj.requires_grad_(True)
    descent = Descent(model, lr, say, checkpoint, 100)
    stills = sam2_clicks.encoded_stills(model, stream(Stills(seed, 8, 4), -(-steps // sam2_clicks.SEEN), workers))
    clips = stream(Clips(seed + 1, 4, 2, 4, 8, 3000), -(-steps // 8), workers)
    for step, (features, item) in enumerate(replayed(stills, steps, sam2_clicks.SEEN, seed)):
        losses = sam2_clicks.corrected_still_losses(model, features, item, rng)
        kept = kept_losses(model, random_frames(rng, tracked, 64), spread)
        first = kept_losses(model, random_frames(rng, boxed, 12), spread)
        loss = total(losses) + WEIGHT * (kept_total(kept) + kept_total(first) / 4)
        if step % 8 == 7:
            loss = loss + total(sam2_clicks.corrected_clip_losses(model, next(clips), 4, rng))
        descent.step(loss, scheduled_lr(step, 2 * steps, lr, warmup=20, decay=0.8), losses | kept)
    descent.end()
    doubt_presence(model, PRESENCE_MARGIN)
    model.requires_grad_(True)


def teach_corrections(
    model: Any, click_steps: int, kept_steps: int, say: Callable[[str], None] = print, checkpoint: Path | None = None
) -> Any:
    """Stages 4 and 5 of a model that tracks, which is changed. Returns it."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    doubt_presence(model, -PRESENCE_MARGIN)
    sam2_clicks.train_clicks(model, click_steps, say=say, checkpoint=checkpoint)
    doubt_presence(model, PRESENCE_MARGIN)
    train_kept(model, teacher, kept_steps, say=say, checkpoint=checkpoint)
    return model.eval()
