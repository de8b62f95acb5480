"""Published YOLO-World-v2 weights, by their key names.

    backbone.image_model.{stem, stage1..stage4}.*      -> backbone.image_model
    backbone.text_model.model.*                         -> the CLIP text encoder, as transformers names it
    neck.{top_down, downsample, bottom_up}_layers.*     -> neck
    bbox_head.head_module.{cls_preds, reg_preds, cls_contrasts}.{0, 1, 2}.*

Our modules carry the same names, so nothing is renamed; the size is read from the shapes.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vfm_ops.detect.yolo_world.backbone import SIZES, Size
from vfm_ops.detect.yolo_world.network import YoloWorldNetwork
from vfm_ops.errors import UsageError

TEXT_PREFIX = "backbone.text_model.model."
STEM = "backbone.image_model.stem.conv.weight"
DEEPEST = "backbone.image_model.stage4.0.conv.weight"
CLASSIFIER = "bbox_head.head_module.cls_preds.0.2.weight"


def size_of(state: dict[str, Tensor], file: Path) -> Size:
    """Which of s, m, l the weights are. Raises UsageError for another architecture, saying which where it is known."""
    if any("text_enhancer" in key for key in state):
        raise UsageError(f"{file} is YOLO-World v1 (image-pooling attention): only v2 weights can be used")
    if STEM not in state or DEEPEST not in state or CLASSIFIER not in state:
        some = ", ".join(sorted(state)[:3])
        raise UsageError(f"{file} is no YOLO-World-v2 checkpoint: it lacks {STEM}; it holds {some}")
    if "bbox_head.head_module.cls_contrasts.0.norm.weight" not in state:
        raise UsageError(f"{file} has a contrastive head without batch norm (YOLO-World v1): only v2 can be used")
    widths = (state[STEM].shape[0], state[DEEPEST].shape[0])
    for size in SIZES.values():
        if (size.channels[0], size.channels[4]) == widths:
            return size
    raise UsageError(f"{file} is a YOLO-World of widths {widths}: known sizes are {', '.join(SIZES)}")


def load_network(state: dict[str, Tensor], file: Path) -> YoloWorldNetwork:
    """The network with these weights, in evaluation mode. Every weight must be there, and nothing unknown beside them."""
    network = YoloWorldNetwork(size_of(state, file), text_dim=int(state[CLASSIFIER].shape[0]))
    own = {k: v for k, v in state.items() if not k.startswith("backbone.text_model.")}
    expected = network.state_dict()
    missing = sorted(k for k in expected if k not in own and not k.endswith("num_batches_tracked"))
    unknown = sorted(own.keys() - expected.keys())
    shapes = sorted(k for k in own.keys() & expected.keys() if own[k].shape != expected[k].shape)
    for problem, keys in (("lacks", missing), ("has unknown", unknown), ("has other shapes of", shapes)):
        if keys:
            raise UsageError(
                f"{file} {problem} {len(keys)} weights of YOLO-World-v2 {network.size.name}: {keys[0]}, ..."
            )
    network.load_state_dict(own, strict=False)
    return network.eval()


def text_encoder_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder's weights under transformers' names; empty when the file was saved without it."""
    own = {k.removeprefix(TEXT_PREFIX): v for k, v in state.items() if k.startswith(TEXT_PREFIX)}
    return {k: v for k, v in own.items() if not k.endswith("position_ids")}
