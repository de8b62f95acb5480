"""What the authors of SimCLR and MoCo published becomes a model that embeds, with the outputs of their own network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.load import load_backbone
from vfm_ops.pretrain.published import convert


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("prefix", "other"), [("module.encoder_q.", "module.encoder_k."), ("", None)])
def test_resnets_of_moco_v2_and_simclr_keep_their_outputs(tmp_path, prefix, other):
    """torchvision's network is the authors'; the momentum encoder and the queue are left out."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50().eval()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    if other:
        state |= {other + key: value + 1 for key, value in network.state_dict().items()}
        state["module.queue"] = torch.zeros(128, 16)
    torch.save({"epoch": 800, "state_dict": state}, tmp_path / "file.pth.tar")
    folder = convert(tmp_path / "file.pth.tar", tmp_path / "model")
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(load_backbone(folder).eval()(pixels()), network(pixels()), rtol=1e-4, atol=1e-5)


def test_vit_of_moco_v3_embeds_with_its_twelve_heads(tmp_path):
    import timm

    from vfm_ops.embed.embedder import load_embedder

    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=12).eval()
    state = {"module.base_encoder." + key: value for key, value in network.state_dict().items()}
    state["module.base_encoder.head.0.weight"] = torch.zeros(4096, 384)
    state |= {"module.momentum_encoder." + key: value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "vit-s-300ep.pth.tar")
    folder = convert(tmp_path / "vit-s-300ep.pth.tar", tmp_path / "model")
    embedder = load_embedder(f"timm:{folder}", device="cpu", runtime="torch", precision="exact")
    image = np.full((224, 224, 3), 90, np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        want = network(((torch.tensor(image) / 255 - mean) / std).permute(2, 0, 1)[None])
    got = torch.tensor(np.asarray(embedder.embed_images([image]), np.float32))
    torch.testing.assert_close(got, torch.nn.functional.normalize(want, dim=-1), rtol=1e-3, atol=1e-4)


def test_other_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        convert(tmp_path / "none.pth", tmp_path)
    (tmp_path / "text.pth").write_text("no")
    with pytest.raises(UsageError, match="no checkpoint that torch reads"):
        convert(tmp_path / "text.pth", tmp_path)
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="neither a ResNet-50 nor"):
        convert(tmp_path / "other.pth", tmp_path)


def test_simclr_and_moco_have_cards():
    from vfm_ops.models.catalogue import cards

    purposes = " ".join(card.purpose for _, card in cards().values())
    assert all(method in purposes for method in ("SimCLR", "MoCo v2", "MoCo v3"))
