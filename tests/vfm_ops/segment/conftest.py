"""Tiny SAM and SAM 2 image checkpoints with random weights, saved as users have them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

SAM_SEED = 9


def enliven(model, seed: int) -> None:
    """Random weights that keep their input's scale, so that masks and confidences differ from prompt to prompt."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.dim() == 1 or "pos" in name or "token" in name or ("embed" in name and parameter.dim() == 2):
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1.4 / (parameter.numel() / len(parameter)) ** 0.5)


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory) -> Path:
    """SAM: 128 px, patches of 16, hidden 32."""
    from transformers import SamConfig, SamImageProcessor, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 128,
            "patch_size": 16,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
            "num_pos_feats": 16,
        },
        prompt_encoder_config={
            "hidden_size": 32,
            "image_size": 128,
            "patch_size": 16,
            "image_embedding_size": 8,
            "mask_input_channels": 16,
        },
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    )
    folder = tmp_path_factory.mktemp("sam")
    model = SamModel(config)
    enliven(model, SAM_SEED)
    for mlp in model.mask_decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.data *= 50.0
        mlp.proj_out.bias.data *= 50.0
    model.save_pretrained(folder)
    SamImageProcessor(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sam2_folder(tmp_path_factory) -> Path:
    """SAM 2, saved as a video checkpoint, which is what the published ones are."""
    from transformers import Sam2ImageProcessor

    from tests.vfm_ops.track.conftest import tiny_model

    folder = tmp_path_factory.mktemp("sam2")
    model = tiny_model(0)
    enliven(model, 0)
    model.save_pretrained(folder)
    Sam2ImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photograph(photographs) -> np.ndarray:
    """A real photograph of 150 x 200."""
    image = cv2.cvtColor(cv2.imread(str(photographs[2])), cv2.COLOR_BGR2RGB)
    return cv2.resize(image, (200, 150), interpolation=cv2.INTER_AREA)
