"""pocket-clip: a CLIP of 1.4 M parameters (96 px, patch 12) in transformers' format, trained on captions of the world.

Loss: InfoNCE of images and sentences, plus, for each role (colour, texture, shape), cross-entropy of the image against that
role's words alone ("something red"): the words are learnt from one another's combinations, so unseen ones compose. Because a
small transformer finds colours at once, textures late and shapes hardly ever by sentences alone, its patches get hints while it
trains: the words of the thing that covers them, where inside them it lies, and its box. For most of the training only KEPT
patches are encoded, those that things touch first (as FLIP, Li et al. 2023, but not blindly).
Legend: B images, D embedding, V words of a role, P patches of an image, K encoded ones, N covered ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pocket.text import CONTEXT, make_tokenizer
from vfm_ops.pocket.train import (
    MEAN,
    STD,
    Average,
    Log,
    descend,
    optimisers,
    quick_attention,
    replayed,
    scheduled_lr,
    stream,
    to_pixels,
)
from vfm_ops.pretrain.losses.info_nce import info_nce
from vfm_ops.world.captions import caption, free_phrase
from vfm_ops.world.scene import Scene, World, image
from vfm_ops.world.vocabulary import COLOURS, SHAPES, TEXTURES, held_out_kinds, with_article

SIZE, PATCH, PROJECTION = 96, 12, 128
ROLES = {"colour": tuple(COLOURS), "texture": TEXTURES, "shape": SHAPES}
_TEMPLATES = {"colour": "something {}", "texture": "something {}", "shape": "a {}"}
KEPT, HINT, REPLAYS = 28, 4, 3
SINGLE = World(height=SIZE, width=SIZE, objects=(1, 1), radius=(0.13, 0.42), overlap=0.2)
SEVERAL = World(height=SIZE, width=SIZE, objects=(2, 3), radius=(0.11, 0.26), overlap=0.2)


def make_model(tokenizer: Any, width: int = 128, depth: int = 4, text_depth: int = 2) -> Any:
    """A transformers CLIPModel, randomly initialised, for this tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = dict(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=text_depth,
        num_attention_heads=4, max_position_embeddings=CONTEXT, hidden_act="gelu", **ids,
    )  # fmt: skip
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth, "num_attention_heads": width // 32,
        "image_size": SIZE, "patch_size": PATCH, "hidden_act": "gelu",
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = grid_positions(SIZE // PATCH, width)
    return model


def grid_positions(grid: int, width: int, size: float = 0.3) -> Tensor:
    """Sines and cosines of x and y, (grid * grid, width): where patches are is known from the start (Beyer et al. 2022)."""
    frequency = 2 * torch.pi * torch.logspace(0, 2, width // 4, base=2) / (2 * grid)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = torch.cat([x.reshape(-1, 1) * frequency, y.reshape(-1, 1) * frequency], dim=1)
    return size * torch.cat([angles.sin(), angles.cos()], dim=1)


class Hints(torch.nn.Module):
    """Two linear heads on patches, for training only: where in it things are (HINT x HINT cells), and the thing's box."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = torch.nn.Linear(width, HINT * HINT)
        self.box = torch.nn.Linear(width, 4)

    def losses(self, hidden_BKC: Tensor, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy of the cells of all encoded patches plus L1 of the boxes (relative to the patch) of covered ones."""
        cells = F.binary_cross_entropy_with_logits(self.cells(hidden_BKC).float(), torch.from_numpy(batch["cells"]))
        covered_BK = torch.from_numpy(batch["patch_shape"] >= 0)
        wanted_N4 = torch.from_numpy(batch["patch_box"])[covered_BK]
        boxes = (self.box(hidden_BKC[covered_BK]).float() - wanted_N4).abs().mean()
        return cells + 2 * boxes


def make_batch(seed: int, batch: int, index: int, several: float = 0.4) -> dict[str, Any]:
    """Batch `index`: images with pairwise different captions, and each role's shares of words.

    several: share of images with two or three things. Returns rgb uint8 (B, H, W, 3), captions (B strings), float32 (B, V) per
    role, rows summing to 1, and what `covered_patches` lists.
    """
    worlds = World(**{**vars(SINGLE), "seed": seed}), World(**{**vars(SEVERAL), "seed": seed + 1})
    rng = np.random.default_rng((seed, 7, index))
    scenes: list[Scene] = []
    captions: dict[str, None] = {}
    item = index * batch * 2
    while len(scenes) < batch:
        scene = image(worlds[int(rng.random() < several)], item)
        item += 1
        alone = len(scene.things) == 1 and rng.random() < 0.25
        text = with_article(free_phrase(scene, 0, rng)) if alone else caption(scene, rng)
        if text not in captions:
            captions[text] = None
            scenes.append(scene)
    out: dict[str, Any] = {"rgb": np.stack([s.rgb for s in scenes]), "captions": list(captions)}
    for role, words in ROLES.items():
        out[role] = np.zeros((batch, len(words)), np.float32)
        for row, scene in zip(out[role], scenes, strict=True):
            for thing in scene.things:
                row[words.index(getattr(thing.kind, role))] += 1 / len(scene.things)
    return out | covered_patches(scenes)


def covered_patches(scenes: list[Scene]) -> dict[str, np.ndarray]:
    """What is true of every patch: how things cover it, and of the thing that covers 40 % of it its words and its box.

    `cells` float32 (B, P, HINT * HINT), shares covered by anything; `patch_ROLE` int (B, P) of the thing's word, -1 for none;
    `patch_box` float32 (B, P, 4), offset of the thing's centre from the patch's and its size, in units of the image.
    """
    grid = SIZE // PATCH
    shape = len(scenes), grid * grid
    cells, boxes = np.zeros((*shape, HINT * HINT), np.float32), np.zeros((*shape, 4), np.float32)
    words_BP = {role: np.full(shape, -1) for role in ROLES}
    y, x = (np.mgrid[0:grid, 0:grid] + 0.5) / grid
    centre_P2 = np.stack([x.ravel(), y.ravel()], 1)
    for b, scene in enumerate(scenes):
        fine = cv2.resize((scene.ids > 0).astype(np.float32), (grid * HINT, grid * HINT), interpolation=cv2.INTER_AREA)
        cells[b] = fine.reshape(grid, HINT, grid, HINT).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
        for k, thing in enumerate(scene.things):
            share = cv2.resize(scene.mask(k).astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA)
            covered = share.ravel() >= 0.4
            for role, words in ROLES.items():
                words_BP[role][b, covered] = words.index(getattr(thing.kind, role))
            low, high = np.split(scene.boxes_N4[k] / SIZE, 2)
            boxes[b, covered, :2] = (low + high) / 2 - centre_P2[covered]
            boxes[b, covered, 2:] = high - low
    return {"cells": cells, "patch_box": boxes} | {f"patch_{role}": words for role, words in words_BP.items()}


def keep_patches(batch: dict[str, Any], kept: int, rng: np.random.Generator) -> dict[str, Any]:
    """The batch with `kept` int (B, K), the patches to encode, and only their `cells` and `patch_...`.

    Touched patches come first, then any: a random number decides among equals.
    """
    cells_BPC = batch["cells"]
    kept_BK = np.argsort(-((cells_BPC.sum(2) > 0) + rng.random(cells_BPC.shape[:2])), axis=1)[:, :kept]
    rows = np.arange(len(kept_BK))[:, None]
    ours = {name: value[rows, kept_BK] for name, value in batch.items() if name == "cells" or name.startswith("patch_")}
    return batch | ours | {"kept": kept_BK}


def encode_text(model: Any, tokenizer: Any, texts: list[str], context: int = CONTEXT) -> Tensor:
    """L2-normalised text embeddings, float32 (len(texts), D)."""
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=context, return_tensors="pt")
    pooled = model.text_model(**tokens).pooler_output
    return F.normalize(model.text_projection(pooled).float(), dim=-1)


def encode_image(model: Any, rgb_BHWC: np.ndarray) -> Tensor:
    """L2-normalised image embeddings, float32 (B, D), of uint8 images that already have the model's size."""
    return F.normalize(model.visual_projection(encode_tokens(model, rgb_BHWC)[:, 0]).float(), dim=-1)


def encode_tokens(model: Any, rgb_BHWC: np.ndarray, kept_BK: np.ndarray | None = None) -> Tensor:
    """The vision tower's normalised tokens (B, 1 + K, C), the class token first.

    kept_BK: indices of the patches to encode, in each image; None: all of them.
    """
    tower = model.vision_model
    tokens_BLC = tower.embeddings(to_pixels(rgb_BHWC))
    if kept_BK is not None:
        index = F.pad(torch.from_numpy(kept_BK) + 1, (1, 0))  # the class token stays first
        tokens_BLC = tokens_BLC.gather(1, index[..., None].expand(-1, -1, tokens_BLC.shape[-1]))
    hidden_BLC = tower.encoder(inputs_embeds=tower.pre_layrnorm(tokens_BLC)).last_hidden_state
    return tower.post_layernorm(hidden_BLC)


def clip_losses(model: Any, hints: Hints, tokenizer: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """InfoNCE over captions; per role, cross-entropy of images against its words; `patch` and `hints` of the patches."""
    role_texts = [_TEMPLATES[role].format(word) for role, words in ROLES.items() for word in words]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_BLC = encode_tokens(model, batch["rgb"], batch.get("kept"))
        projected_BLD = F.normalize(model.visual_projection(hidden_BLC).float(), dim=-1)
        text_ND = encode_text(model, tokenizer, batch["captions"] + role_texts)
        hint = hints.losses(hidden_BLC[:, 1:], batch)
    image_BD, b = projected_BLD[:, 0], len(projected_BLD)
    covered_BK = torch.from_numpy(batch["patch_shape"] >= 0)
    patch_ND = projected_BLD[:, 1:][covered_BK]
    scale = model.logit_scale.exp()
    losses = {"nce": info_nce(image_BD, text_ND[:b], scale), "hints": hint, "patch": image_BD.new_zeros(())}
    start = b
    for role, words in ROLES.items():
        text_VD = text_ND[start : start + len(words)]
        losses[role] = F.cross_entropy(scale * image_BD @ text_VD.T, torch.from_numpy(batch[role]))
        word_N = torch.from_numpy(batch[f"patch_{role}"])[covered_BK]
        losses["patch"] = losses["patch"] + F.cross_entropy(scale * patch_ND @ text_VD.T, word_N)
        start += len(words)
    return losses


def train(
    steps: int = 1600,
    batch: int = 128,
    lr: float = 3e-3,
    seed: int = 0,
    workers: int = 1,
    say: Callable[[str], None] = print,
    checkpoint: Path | None = None,
) -> tuple[Any, Any]:
    """Trains pocket-clip. Returns (model, tokenizer), the model's weights averaged.

    checkpoint: directory rewritten every 200 steps, with its quality said.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    hints = Hints(model.config.vision_config.hidden_size)
    learning = torch.nn.ModuleList([model, hints])
    quick_attention(model)
    updates, average, log = optimisers(learning, lr), Average(model), Log(50, say)
    rng = np.random.default_rng((seed, 29))
    items = stream(_Maker(seed, batch), -(-steps // REPLAYS), workers)
    for step, item in enumerate(replayed(items, steps, REPLAYS, seed)):
        # All patches every eighth time, so that the model knows whole images.
        item = item if step % 8 == 7 else keep_patches(item, KEPT, rng)
        losses = clip_losses(model, hints, tokenizer, item)
        words = losses["colour"] + losses["texture"] + 2 * losses["shape"] + losses["patch"]
        descend(learning, updates, losses["nce"] + 0.5 * words + losses["hints"], scheduled_lr(step, steps, lr))
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        average.update()
        log.add(step, **{k: v.item() for k, v in losses.items()}, scale=model.logit_scale.exp().item())
        if checkpoint is not None and step % 200 == 199:
            with average.applied():
                say(str(evaluate(model, tokenizer, images=256, gallery=200)))
                save(model, tokenizer, checkpoint)
    average.adopt()
    return model.eval(), tokenizer


class _Maker:
    """Batches by index: mostly single things at first."""

    def __init__(self, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch

    def __call__(self, index: int) -> dict[str, Any]:
        return make_batch(self.seed, self.batch, index, 0.15 if index < 60 else 0.4)


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Writes model, tokenizer and image processor, loadable by CLIPModel / CLIPProcessor.from_pretrained."""
    from transformers import CLIPImageProcessor

    from vfm_ops.pocket.train import save_half

    save_half(model, directory)
    tokenizer.save_pretrained(directory)
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(directory)


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, images: int = 640, gallery: int = 500, seed: int = 10_001) -> dict[str, float]:
    """Held-out quality: zero-shot accuracy over the held-out kinds; text-to-image recall@1 among pairs and triples.

    images: single things of held-out kinds on held-out backgrounds. gallery: images of 2-3 such things with different captions.
    """
    was_training = model.training
    model.eval()
    kinds = held_out_kinds()
    text_KD = encode_text(model, tokenizer, [f"a photo of {with_article(k.phrase())}" for k in kinds])
    single = World(**{**vars(SINGLE), "seed": seed, "split": "heldout"})
    scenes = [image(single, i) for i in range(images)]
    image_ND = _encode_scenes(model, scenes)
    truth = torch.tensor([kinds.index(s.things[0].kind) for s in scenes])
    accuracy = ((image_ND @ text_KD.T).argmax(1) == truth).float().mean().item()
    scenes, captions = gallery_of(gallery, seed)
    text_GD = torch.cat([encode_text(model, tokenizer, captions[i : i + 128]) for i in range(0, gallery, 128)])
    recall = ((text_GD @ _encode_scenes(model, scenes).T).argmax(1) == torch.arange(gallery)).float().mean().item()
    model.train(was_training)
    return {"zero-shot accuracy, 64 held-out kinds": accuracy, f"text-to-image recall@1 of {gallery}": recall}


def gallery_of(n: int, seed: int) -> tuple[list[Scene], list[str]]:
    """n held-out images of two or three things, with pairwise different canonical captions."""
    world = World(**{**vars(SEVERAL), "seed": seed, "split": "heldout"})
    found: dict[str, Scene] = {}
    item = 0
    while len(found) < n:
        scene = image(world, item)
        found.setdefault(caption(scene), scene)
        item += 1
    return list(found.values()), list(found)


def _encode_scenes(model: Any, scenes: list[Scene]) -> Tensor:
    chunks = [scenes[i : i + 128] for i in range(0, len(scenes), 128)]
    return torch.cat([encode_image(model, np.stack([s.rgb for s in chunk])) for chunk in chunks])
