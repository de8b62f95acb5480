"""pocket-owl: an OWL-ViT on pocket-clip's towers, trained to find things of the world by free-text phrases.

Every phrase is a predicate over (size, colour, texture, shape), so that its truth is known for every thing of every image of a
batch: "striped thing" is true of all striped things. One-to-one matching as in DETR / OWL-ViT (Minderer et al. 2022), focal
loss on one sigmoid per phrase and patch, L1 and generalised IoU on boxes. One-to-one, so that no suppression is needed.
Legend: B images, P patches, Q phrases, K things, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from vfm_ops.pocket.phrases import CONTEXT, SIZE, WORLD, Phrase, predict, random_phrase, to_xyxy, truth_table
from vfm_ops.pocket.score import evaluate_detection
from vfm_ops.pocket.train import (
    MEAN,
    STD,
    Average,
    Log,
    descend,
    optimisers,
    quick_attention,
    save_half,
    scheduled_lr,
    stream,
)
from vfm_ops.world.scene import World, image
from vfm_ops.world.vocabulary import COLOURS, SHAPES, TEXTURES

PHRASES = 64


def make_batch(seed: int, batch: int, index: int) -> dict[str, Any]:
    """Batch `index`: rgb uint8 (B, H, W, 3), texts (Q), and per image boxes cxcywh in [0, 1] (K, 4) and truth bool (K, Q)."""
    world = World(**{**vars(WORLD), "seed": seed})
    rng = np.random.default_rng((seed, 11, index))
    scenes = [image(world, index * batch + k) for k in range(batch)]
    pool = [(t.kind, s) for scene in scenes for t, s in zip(scene.things, scene.size_words(), strict=True)]
    phrases = [random_phrase(rng, *pool[k]) for k in rng.permutation(len(pool))[: PHRASES - 24]]
    # Each word alone, some of them each time: what composes must be known by itself.
    words = [Phrase(f"{c} thing", colour=c) for c in COLOURS] + [Phrase(s, shape=s) for s in SHAPES]
    words += [Phrase(f"{t} thing", texture=t) for t in TEXTURES]
    phrases += [words[k] for k in rng.permutation(len(words))[:24]]
    unique = list({p.text: p for p in phrases}.values())
    boxes, truth = [], []
    for scene, table in zip(scenes, truth_table(scenes, unique), strict=True):
        seen = (scene.boxes_N4[:, 2:] - scene.boxes_N4[:, :2]).min(1) >= 4
        boxes.append(to_cxcywh(scene.boxes_N4[seen] / SIZE))
        truth.append(table[seen])
    return {"rgb": np.stack([s.rgb for s in scenes]), "texts": [p.text for p in unique], "boxes": boxes, "truth": truth}


def to_cxcywh(xyxy: np.ndarray) -> np.ndarray:
    """Corner boxes (N, 4) to centres and sizes, float32."""
    return np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1).astype(np.float32)


def make_model(clip: Any) -> Any:
    """A transformers OwlViTForObjectDetection with pocket-clip's towers, position embeddings interpolated to its grid."""
    from transformers import OwlViTConfig, OwlViTForObjectDetection

    text, vision = clip.config.text_config, clip.config.vision_config
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    ids = {k: getattr(text, k) for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = OwlViTConfig(
        text_config={k: getattr(text, k) for k in shared} | ids | {"max_position_embeddings": CONTEXT},
        vision_config={k: getattr(vision, k) for k in shared} | {"image_size": SIZE, "patch_size": vision.patch_size},
        projection_dim=clip.config.projection_dim,
    )
    model = OwlViTForObjectDetection(config)
    # CLIP and OWL-ViT name the vision tower's first norm differently.
    state = {k.replace("pre_layrnorm", "pre_layernorm"): v for k, v in clip.state_dict().items()}
    positions = "vision_model.embeddings.position_embedding.weight"
    state[positions] = resize_positions(state[positions], SIZE // vision.patch_size)
    words = "text_model.embeddings.position_embedding.weight"
    state[words] = state[words][:CONTEXT]
    result = model.owlvit.load_state_dict(state, strict=False)
    missing = [k for k in result.missing_keys if "position_ids" not in k]
    if missing:
        raise ValueError(f"pocket-clip lacks {missing}")
    mend_initialisation(model)
    return model


@torch.no_grad()
def mend_initialisation(model: Any) -> None:
    """Heads that can learn: the library draws their weights with deviation 1, which puts every box outside the image.

    Boxes start as squares of about 0.27 of the image on their patch. Phrases start with a prior of one in a few hundred
    patches, so that the first steps aren't spent on silencing everything.
    """
    for module in (*model.box_head.modules(), model.class_head.dense0):
        if isinstance(module, torch.nn.Linear):
            module.weight.normal_(0, module.in_features**-0.5)
    model.box_head.dense2.weight.zero_()
    model.box_head.dense2.bias.copy_(torch.tensor([0.0, 0.0, 1.4, 1.4]))
    for head, start in ((model.class_head.logit_shift, -0.5), (model.class_head.logit_scale, 9.0)):
        head.weight.zero_()
        head.bias.fill_(start)


def resize_positions(weight: Tensor, grid: int) -> Tensor:
    """Position embeddings (1 + g * g, D) to (1 + grid * grid, D), bicubically."""
    old = int((len(weight) - 1) ** 0.5)
    square = weight[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([weight[:1], resized.permute(0, 2, 3, 1).reshape(grid * grid, -1)])


def match(logits_PQ: Tensor, boxes_P4: Tensor, truth_KQ: Tensor, boxes_K4: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One patch for each thing: Hungarian on class, L1 and distance costs. Returns (patches, things)."""
    p_PQ = logits_PQ.sigmoid()
    weight_KQ = truth_KQ.float() / truth_KQ.float().sum(1, keepdim=True).clamp(min=1)
    l1_PK = torch.cdist(boxes_P4, boxes_K4, p=1)
    grid = int(len(boxes_P4) ** 0.5)
    centres = (torch.arange(grid) + 0.5) / grid
    centre_P2 = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).reshape(-1, 2)
    away_PK = (centre_P2[:, None] - boxes_K4[None, :, :2]).abs().amax(-1) * grid
    cost_PK = -2 * (p_PQ @ weight_KQ.T) + 2 * l1_PK + 5 * (away_PK - 1.5).clamp(min=0) + 0.05 * away_PK
    return linear_sum_assignment(cost_PK.numpy())


def detection_losses(logits_BPQ: Tensor, boxes_BP4: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Focal loss per phrase and patch, L1 and GIoU on matched boxes, each over the number of positives."""
    target_BPQ = torch.zeros_like(logits_BPQ)
    predicted, wanted = [], []
    for b, (truth, boxes) in enumerate(zip(batch["truth"], batch["boxes"], strict=True)):
        truth_KQ, boxes_K4 = torch.from_numpy(truth), torch.from_numpy(boxes)
        patches, things = match(logits_BPQ[b].detach(), boxes_BP4[b].detach(), truth_KQ, boxes_K4)
        target_BPQ[b, patches] = truth_KQ[things].float()
        predicted.append(boxes_BP4[b, patches])
        wanted.append(boxes_K4[things])
    predicted_N4, wanted_N4 = torch.cat(predicted), torch.cat(wanted)
    n = max(1, len(wanted_N4))
    focal = sigmoid_focal_loss(logits_BPQ, target_BPQ, alpha=0.5, gamma=2.0, reduction="sum")
    giou = generalized_box_iou_loss(to_xyxy(predicted_N4), to_xyxy(wanted_N4), reduction="sum") / n
    return {
        "focal": focal / target_BPQ.sum().clamp(min=1),
        "l1": (predicted_N4 - wanted_N4).abs().sum() / n,
        "giou": giou,
    }


class _Maker:
    def __init__(self, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch

    def __call__(self, index: int) -> dict[str, Any]:
        return make_batch(self.seed, self.batch, index)


def train(
    clip: Any,
    tokenizer: Any,
    steps: int = 900,
    batch: int = 32,
    lr: float = 1.5e-3,
    seed: int = 1,
    workers: int = 1,
    say: Callable[[str], None] = print,
    checkpoint: Path | None = None,
) -> Any:
    """Trains pocket-owl from pocket-clip's weights. Returns the model, its weights averaged.

    checkpoint: directory rewritten every 150 steps, with its quality said.
    """
    torch.manual_seed(seed)
    model = make_model(clip)
    quick_attention(model)
    updates, average, log = optimisers(model, lr), Average(model), Log(50, say)
    for step, item in enumerate(stream(_Maker(seed, batch), steps, workers)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, boxes = predict(model, tokenizer, item["rgb"], item["texts"])
        losses = detection_losses(logits, boxes, item)
        descend(model, updates, losses["focal"] + 5 * losses["l1"] + 2 * losses["giou"], scheduled_lr(step, steps, lr))
        average.update()
        log.add(step, **{k: v.item() for k, v in losses.items()})
        if checkpoint is not None and step % 150 == 149:
            with average.applied():
                say(str(evaluate_detection(model, tokenizer, images=64)))
                save(model, tokenizer, checkpoint)
    average.adopt()
    return model.eval()


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Writes model, tokenizer (16 positions) and image processor, loadable by OwlViTProcessor.from_pretrained."""
    from transformers import OwlViTImageProcessor

    save_half(model, directory)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(directory)
    size = {"height": SIZE, "width": SIZE}
    OwlViTImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(directory)
