"""A small YOLO-World with lively batch norms, and its checkpoint with a tiny CLIP text encoder beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.vfm_ops.detect import tiny
from vfm_ops.detect.yolo_world.backbone import SIZES
from vfm_ops.detect.yolo_world.network import YoloWorldNetwork

TEXT_DIM = 32


def lively(size: str, text_dim: int, seed: int = 0) -> YoloWorldNetwork:
    """Random weights, with batch-norm statistics and head biases as far from their defaults as training takes them."""
    torch.manual_seed(seed)
    network = YoloWorldNetwork(SIZES[size], text_dim).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.2, 1.0)
                module.weight.uniform_(0.8, 1.6)
                module.bias.normal_(0, 0.3)
        for name, parameter in network.named_parameters():
            if name.endswith("attn_block.bias"):
                parameter.normal_()
            if name.endswith("logit_scale"):
                parameter.fill_(0.7)
            if "cls_contrasts" in name and name.endswith(".bias") and parameter.ndim == 0:
                parameter.fill_(-2.0)
    return network


@pytest.fixture(scope="session")
def network() -> YoloWorldNetwork:
    return lively("s", TEXT_DIM)


def text_model() -> CLIPTextModelWithProjection:
    torch.manual_seed(1)
    vocabulary = tiny.clip_vocabulary_size()
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=32, projection_dim=TEXT_DIM, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval()
    tiny.spread(model, 6, scale=1.0)
    return model


@pytest.fixture(scope="session")
def checkpoint(network, tmp_path_factory) -> Path:
    """A folder like a published one: one weights file with the text encoder inside, and a tokenizer."""
    folder = tmp_path_factory.mktemp("yolo-world")
    state = dict(network.state_dict())
    state |= {f"backbone.text_model.model.{k}": v for k, v in text_model().state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "yolo_world_v2_s.safetensors")
    tiny.clip_tokenizer(32).save_pretrained(folder / "tokenizer")
    return folder
