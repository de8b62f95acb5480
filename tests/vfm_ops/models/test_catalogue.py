"""The catalogue tells the truth about sizes, and a wrong spec is answered with what would be right."""

from __future__ import annotations

import pytest

from tests.conftest import default_weights
from vfm_ops.errors import UsageError
from vfm_ops.models.catalogue import cards, catalogue
from vfm_ops.models.registry import families, parse_spec

# Millions of parameters as published: by the papers, or by the authors' model cards where the paper rounds.
PUBLISHED = {
    "timm:tf_efficientnet_lite0": 4.65,  # EfficientNet-Lite README
    "timm:vit_large_patch16_224.augreg_in21k_ft_in1k": 304.3,  # ViT, table 1: 307 with its larger head
    "timm:vit_small_patch14_dinov2.lvd142m": 22.1,
    "timm:resnet50_simclr": 23.5,  # the SimCLR paper, table 6: 24
    "timm:resnet50_moco_v2": 23.5,
    "timm:vit_base_patch16_224_moco_v3": 86,
    "clip:openai/clip-vit-base-patch32": 151.3,
    "clip:openai/clip-vit-large-patch14": 428,
    "siglip:google/siglip-base-patch16-224": 203.2,
    "siglip:google/siglip2-base-patch16-naflex": 375,
    "openclip:ViT-B-32/laion2b_s34b_b79k": 151.3,
    "dinov2:facebook/dinov2-base": 86.6,
    "dinov2:facebook/dinov2-giant": 1136,  # DINOv2, table 17: 1.1 B
    "vit-mae:facebook/vit-mae-base": 86,
    "vit-mae:facebook/vit-mae-huge": 632,
    "beit:microsoft/beit-base-patch16-224": 86,
    "resnet:microsoft/resnet-50": 23.5,  # 25.6 with its classifier
    "vit:google/vit-base-patch16-224": 86,
    "dinov3:facebook/dinov3-vits16-pretrain-lvd1689m": 21.6,  # DINOv3, table 14: 21 M
    "dinov3:facebook/dinov3-convnext-tiny-pretrain-lvd1689m": 27.8,  # 29 M with its heads
    "sam:facebook/sam-vit-base": 93.7,
    "sam:facebook/sam-vit-huge": 641,
    "sam2:facebook/sam2.1-hiera-tiny": 38.9,
    "grounding-dino:IDEA-Research/grounding-dino-tiny": 172,
    "owlvit:google/owlvit-base-patch32": 153,
    "owlv2:google/owlv2-base-patch16-ensemble": 155,
    "omdet-turbo:omlab/omdet-turbo-swin-tiny-hf": 115,
    "yolo-world:yolo_world_v2_s.pth": 12.7,
    "yolo-world:yolo_world_v2_l.pth": 46.8,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {row["spec"]: row for row in catalogue()}


def test_parameter_counts_are_the_published_ones(rows):
    counts = {spec: row["parameters"] / 1e6 for spec, row in rows.items() if spec in PUBLISHED}
    assert counts == {spec: pytest.approx(millions, rel=0.01) for spec, millions in PUBLISHED.items()}


def test_every_family_has_a_card_with_all_that_a_user_needs(rows):
    assert {row["family"] for row in rows.values()} == {family.name for family in families()}
    assert len(rows) == len(cards())
    for row in rows.values():
        assert row["purpose"]
        assert row["licence"]
        assert row["weights"]
        assert parse_spec(row["spec"])[0].name == row["family"]


def test_weights_that_a_package_ships_are_seen_as_present(rows):
    default_weights()
    assert rows["timm:tf_efficientnet_lite0"]["present"]
    assert not rows["clip:openai/clip-vit-large-patch14"]["present"]


def test_second_listing_needs_no_model_library(rows, tmp_path, monkeypatch):
    from vfm_ops.models import catalogue as models

    monkeypatch.setenv("VFM_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "count_parameters", lambda card: 7)
    first = catalogue()
    monkeypatch.setattr(models, "count_parameters", lambda card: 1 / 0)
    assert catalogue() == first


@pytest.mark.parametrize("spec", ["clap:x", "clip", "clip:", "/just/a/path", ""])
def test_wrong_spec_names_the_known_families_or_the_form(spec):
    with pytest.raises(UsageError, match=r"siglip|write clip:name"):
        parse_spec(spec)


def test_spec_keeps_colons_and_slashes_of_its_name():
    assert parse_spec("timm:hf-hub:org/name")[1] == "hf-hub:org/name"
    family, name = parse_spec("clip:/data/a:b")
    assert (family.name, name) == ("clip", "/data/a:b")
