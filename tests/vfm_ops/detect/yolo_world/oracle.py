"""An independent YOLO-World in plain functions over a state dict, loop by loop from the paper. For tests only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def conv_bn(state: State, name: str, x: Tensor, stride: int = 1, act: bool = True) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
    x = F.batch_norm(x, mean, var, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], False, 0.0, 1e-3)
    return x * torch.sigmoid(x) if act else x


def csp(state: State, name: str, x: Tensor, shortcut: bool, text: Tensor | None = None) -> Tensor:
    x = conv_bn(state, f"{name}.main_conv", x)
    half = x.shape[1] // 2
    parts = [x[:, :half], x[:, half:]]
    i = 0
    while f"{name}.blocks.{i}.conv1.conv.weight" in state:
        y = conv_bn(state, f"{name}.blocks.{i}.conv2", conv_bn(state, f"{name}.blocks.{i}.conv1", parts[-1]))
        parts.append(y + parts[-1] if shortcut else y)
        i += 1
    if text is not None:
        parts.append(max_sigmoid_attention(state, f"{name}.attn_block", parts[-1], text))
    return conv_bn(state, f"{name}.final_conv", torch.cat(parts, 1))


def max_sigmoid_attention(state: State, name: str, x: Tensor, text: Tensor) -> Tensor:
    """Image by image, head by head: the largest inner product with a prompt decides how much passes."""
    bias = state[f"{name}.bias"]
    guide = text @ state[f"{name}.guide_fc.weight"].T + state[f"{name}.guide_fc.bias"]
    value = conv_bn(state, f"{name}.project_conv", x, act=False)
    size = x.shape[1] // len(bias)
    out = torch.zeros_like(value)
    for b in range(len(x)):
        for head in range(len(bias)):
            rows = slice(head * size, (head + 1) * size)
            products = torch.einsum("chw,nc->nhw", x[b, rows], guide[b, :, rows])
            weight = torch.sigmoid(products.max(0).values / math.sqrt(size) + bias[head])
            out[b, rows] = value[b, rows] * weight
    return out


def backbone(state: State, x: Tensor) -> list[Tensor]:
    p = "backbone.image_model"
    x = conv_bn(state, f"{p}.stem", x, 2)
    features = []
    for stage in (1, 2, 3, 4):
        x = csp(state, f"{p}.stage{stage}.1", conv_bn(state, f"{p}.stage{stage}.0", x, 2), True)
        features.append(x)
    x = conv_bn(state, f"{p}.stage4.2.conv1", x)
    pools = [x] + [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]
    return [features[1], features[2], conv_bn(state, f"{p}.stage4.2.conv2", torch.cat(pools, 1))]


def neck(state: State, features: list[Tensor], text: Tensor) -> list[Tensor]:
    c3, c4, c5 = features
    up = lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    p4 = csp(state, "neck.top_down_layers.0", torch.cat([up(c5), c4], 1), False, text)
    p3 = csp(state, "neck.top_down_layers.1", torch.cat([up(p4), c3], 1), False, text)
    n4 = csp(state, "neck.bottom_up_layers.0",
             torch.cat([conv_bn(state, "neck.downsample_layers.0", p3, 2), p4], 1), False, text)  # fmt: skip
    n5 = csp(state, "neck.bottom_up_layers.1",
             torch.cat([conv_bn(state, "neck.downsample_layers.1", n4, 2), c5], 1), False, text)  # fmt: skip
    return [p3, n4, n5]


def head(state: State, features: list[Tensor], text: Tensor) -> tuple[Tensor, Tensor]:
    logits, boxes = [], []
    unit = text / text.norm(dim=-1, keepdim=True)
    for level, x in enumerate(features):
        y, contrast = {}, f"bbox_head.head_module.cls_contrasts.{level}"
        for kind in ("cls", "reg"):
            p = f"bbox_head.head_module.{kind}_preds.{level}"
            z = conv_bn(state, f"{p}.1", conv_bn(state, f"{p}.0", x))
            y[kind] = F.conv2d(z, state[f"{p}.2.weight"], state[f"{p}.2.bias"])
        n = {k: state[f"{contrast}.norm.{k}"][:, None, None] for k in ("weight", "bias", "running_mean", "running_var")}
        embed = (y["cls"] - n["running_mean"]) / torch.sqrt(n["running_var"] + 1e-3) * n["weight"] + n["bias"]
        scale, bias = state[f"{contrast}.logit_scale"].exp(), state[f"{contrast}.bias"]
        logits.append((torch.einsum("bdhw,bnd->bhwn", embed, unit) * scale + bias).flatten(1, 2))
        boxes.append(dfl(y["reg"], 8 * 2**level))
    return torch.cat(logits, 1), torch.cat(boxes, 1)


def dfl(x: Tensor, stride: int) -> Tensor:
    batch, _, rows, columns = x.shape
    out = torch.zeros(batch, rows, columns, 4, dtype=x.dtype)
    for side in range(4):
        bins = torch.softmax(x[:, side * 16 : side * 16 + 16], 1)
        out[..., side] = sum(k * bins[:, k] for k in range(16))
    for r in range(rows):
        for c in range(columns):
            left, top, right, bottom = out[:, r, c].unbind(-1)
            cx, cy = c + 0.5, r + 0.5
            out[:, r, c] = torch.stack([cx - left, cy - top, cx + right, cy + bottom], -1) * stride
    return out.flatten(1, 2)


def forward(state: State, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    return head(state, neck(state, backbone(state, images), text), text)
