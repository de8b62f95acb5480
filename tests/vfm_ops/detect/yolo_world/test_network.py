"""The network against an independent one, folded against online, and the sizes that were published."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.vfm_ops.detect.yolo_world import oracle
from tests.vfm_ops.detect.yolo_world.conftest import TEXT_DIM, lively
from vfm_ops.detect.yolo_world.backbone import SIZES
from vfm_ops.detect.yolo_world.fold import fold_vocabulary
from vfm_ops.detect.yolo_world.head import decode_boxes
from vfm_ops.detect.yolo_world.network import YoloWorldNetwork


def texts(batch: int, prompts: int, dim: int = TEXT_DIM) -> torch.Tensor:
    return normalize(torch.randn(batch, prompts, dim, generator=torch.Generator().manual_seed(7)), dim=-1)


@pytest.mark.parametrize("size", ["s", "m", "l"])
@torch.inference_mode()
def test_the_network_equals_an_independent_one_with_the_same_weights(size):
    network = lively(size, TEXT_DIM)
    images, text = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3)), texts(2, 5)
    logits, boxes = network(images, text)
    expected_logits, expected_boxes = oracle.forward(network.state_dict(), images, text)
    assert logits.std() > 0.3
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes, expected_boxes, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("prompts", [1, 7])
@torch.inference_mode()
def test_a_folded_vocabulary_gives_what_the_online_text_gives(network, prompts):
    images, text = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(5)), texts(1, prompts)
    online = network(images, text.expand(2, -1, -1))
    folded = fold_vocabulary(network, text[0])(images, torch.zeros(2, prompts, TEXT_DIM))
    torch.testing.assert_close(folded[0], online[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(folded[1], online[1], atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_folding_leaves_the_online_network_as_it_was(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    fold_vocabulary(network, texts(1, 3)[0])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@torch.inference_mode()
def test_padded_prompts_do_not_steer_the_attention(network):
    """Without a mask the zero vectors that pad a short vocabulary would win the maximum where all products are negative."""
    images, text = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)), texts(1, 2)
    alone = network(images, text)
    padded = torch.cat([text, torch.zeros(1, 4, TEXT_DIM)], 1)
    masked = network(images, padded, torch.tensor([[True, True, False, False, False, False]]))
    unmasked = network(images, padded)
    torch.testing.assert_close(masked[0][..., :2], alone[0], atol=1e-5, rtol=0)
    assert (unmasked[0][..., :2] - alone[0]).abs().max() > 1e-3


def test_certain_distances_give_the_box_they_say():
    """Closed form: all mass on bins 1, 2, 3, 4 at cell (row 1, column 2), stride 8 -> centre (20, 12)."""
    distances = torch.full((1, 64, 2, 3), -1e4)
    for side, value in enumerate((1, 2, 3, 4)):
        distances[:, side * 16 + value] = 1e4
    box = decode_boxes(distances, 8)[0, 5]
    torch.testing.assert_close(box, torch.tensor([20.0 - 8, 12.0 - 16, 20.0 + 24, 12.0 + 32]))


@pytest.mark.parametrize(("size", "millions"), [("s", 13), ("m", 28), ("l", 47)])
def test_the_sizes_have_the_published_number_of_parameters(size, millions):
    """The paper counts 13 M, 29 M and 48 M for its first version; v2 has no image-pooling attention."""
    with torch.device("meta"):
        network = YoloWorldNetwork(SIZES[size])
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_key_names_and_shapes_are_those_of_the_published_small_weights():
    """Names and shapes as listed in public issues and notes about the v2 and v2.1 checkpoints."""
    with torch.device("meta"):
        state = {k: tuple(v.shape) for k, v in YoloWorldNetwork(SIZES["s"]).state_dict().items()}
    published = {
        "backbone.image_model.stem.conv.weight": (32, 3, 3, 3),
        "backbone.image_model.stage1.0.conv.weight": (64, 32, 3, 3),
        "backbone.image_model.stage1.1.main_conv.conv.weight": (64, 64, 1, 1),
        "backbone.image_model.stage1.1.final_conv.bn.running_var": (64,),
        "backbone.image_model.stage4.2.conv1.conv.weight": (256, 512, 1, 1),
        "neck.top_down_layers.0.blocks.0.conv1.conv.weight": (128, 128, 3, 3),
        "neck.top_down_layers.0.attn_block.bias": (4,),
        "neck.top_down_layers.1.attn_block.bias": (2,),
        "neck.bottom_up_layers.1.attn_block.bias": (8,),
        "neck.top_down_layers.0.attn_block.guide_fc.weight": (128, 512),
        "neck.top_down_layers.0.attn_block.project_conv.bn.num_batches_tracked": (),
        "neck.top_down_layers.0.final_conv.conv.weight": (256, 512, 1, 1),
        "bbox_head.head_module.cls_preds.0.0.conv.weight": (128, 128, 3, 3),
        "bbox_head.head_module.cls_contrasts.0.bias": (),
        "bbox_head.head_module.cls_contrasts.0.logit_scale": (),
    }
    assert {k: state.get(k) for k in published} == published
