"""pocket-dino: a small ViT in timm's format, self-supervised by DINO on generated frames and on real photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vfm_ops.pretrain.data import Samples
from vfm_ops.world.backgrounds import photograph_crop
from vfm_ops.world.scene import World, image

SIZE, PATCH, WIDTH, DEPTH = 96, 12, 128, 4
ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 4}
WORLD = World(height=SIZE, width=SIZE, objects=(1, 2), radius=(0.16, 0.42), photographic=0.7)


def mixed_frames(count: int, seed: int = 0, real: float = 0.5) -> np.ndarray:
    """uint8 (count, SIZE, SIZE, 3): stills and, in this share, crops of photographs (none if none is installed)."""
    world = World(**{**vars(WORLD), "seed": seed})
    frames = []
    for i in range(count):
        rng = np.random.default_rng((seed, 19, i))
        crop = photograph_crop(rng, "train", SIZE, SIZE) if rng.random() < real else None
        frames.append(image(world, i).rgb if crop is None else crop)
    return np.stack(frames)


def train(
    frames: int = 4096, epochs: float = 12, batch: int = 64, seed: int = 4, say: Callable[[str], None] = print
) -> torch.nn.Module:
    """Runs DINO (vfm_ops.pretrain) and returns the teacher's backbone, a timm VisionTransformer."""
    from vfm_ops.pretrain.fit import fit
    from vfm_ops.pretrain.registry import build_objective
    from vfm_ops.pretrain.train_config import train_config

    torch.manual_seed(seed)
    objective = build_objective(
        "dino",
        backbone=ARCHITECTURE,
        backbone_args={k: v for k, v in MODEL_ARGS.items() if k != "img_size"},
        image_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        prototypes=512,
        head_hidden=256,
        bottleneck=64,
        momentum=0.99,
        local_crops=4,
        local_size=48,
        # Things of the world are told apart by their colours and outlines: crops keep both.
        global_scale=(0.5, 1.0),
        local_scale=(0.1, 0.5),
        jitter=0.1,
        gray=0.0,
        solarize=(0.0, 0.0),
        blur=(0.3, 0.1),
        local_blur=0.1,
        freeze_last_layer_epochs=0.2,
    )
    config = train_config(
        "dino",
        base_lr=2e-3,
        lr_scaling="none",
        warmup_epochs=1,
        epochs=epochs,
        batch_size=batch,
        precision="bf16",
        seed=seed,
    )
    samples = Samples(mixed_frames(frames, seed))

    def report(log: dict[str, float]) -> None:
        if int(log.get("step", 0)) % 50 == 0:
            say(json.dumps({k: round(float(v), 4) for k, v in log.items()}))

    fit(objective, samples, config, on_step=report)
    return objective.evaluation_backbone().eval()


def save(backbone: torch.nn.Module, directory: Path) -> None:
    """Writes timm's hub layout: config.json (architecture, model_args, pretrained_cfg) and float16 model.safetensors."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() for k, v in backbone.state_dict().items()}
    save_file(state, str(directory / "model.safetensors"), metadata={"format": "pt"})
    config: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": WIDTH,
        "global_pool": "token",
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 0,
            "license": "apache-2.0",
        },
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.inference_mode()
def evaluate(backbone: torch.nn.Module, bank: int = 600, queries: int = 300, seed: int = 50_001) -> dict[str, float]:
    """kNN accuracy (k = 20) of the colour and of the shape of single things on held-out backgrounds, against chance of 0.1; and
    that of the picture shrunk to 8 x 8 pixels, which an encoder is to be ahead of."""
    from vfm_ops.pretrain.evaluate import knn_accuracy
    from vfm_ops.world.vocabulary import COLOURS, SHAPES

    world = World(**{**vars(WORLD), "seed": seed, "split": "heldout", "objects": (1, 1)})
    scenes = [image(world, i) for i in range(bank + queries)]
    pixels = torch.from_numpy(np.stack([s.rgb for s in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    shrunk = F.adaptive_avg_pool2d(pixels, 8).flatten(1)
    kinds = {
        "": torch.cat([backbone(chunk) for chunk in pixels.split(128)]),
        ", 8 x 8 pixels alone": shrunk - shrunk[:bank].mean(0),
    }
    out = {}
    for role, words in (("colour", tuple(COLOURS)), ("shape", SHAPES)):
        labels = torch.tensor([words.index(getattr(s.things[0].kind, role)) for s in scenes])
        for name, features in kinds.items():
            accuracy = knn_accuracy(features[:bank], labels[:bank], features[bank:], labels[bank:])
            out[f"kNN accuracy, {role}{name}"] = accuracy
    return out
