"""Published checkpoints load with equal outputs, and what we export loads elsewhere with equal outputs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.vfm_ops.pretrain.tiny import VIT, build, samples, tokenizer, training
from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.pretrain.export import export_timm, export_transformers, model_card
from vfm_ops.pretrain.fit import fit
from vfm_ops.pretrain.load import load_backbone
from vfm_ops.pretrain.mae_layout import decoder_from_transformers
from vfm_ops.pretrain.text import tokenize_with, train_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
INNER = {"intermediate_size": 24}
TEXT = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def published(family: str):
    """A toy model of a published family, all tensors away from their initial zeros and ones."""
    import transformers as tf

    torch.manual_seed(0)
    model = {
        "vit": lambda: tf.ViTModel(tf.ViTConfig(**SIZES, **INNER), add_pooling_layer=False),
        "vit_mae": lambda: tf.ViTMAEForPreTraining(
            tf.ViTMAEConfig(
                **SIZES, **INNER, decoder_hidden_size=16, decoder_num_attention_heads=2, decoder_num_hidden_layers=2,
                decoder_intermediate_size=64,
            )
        ),
        "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**SIZES, mlp_ratio=2)),
        "beit": lambda: tf.BeitModel(
            tf.BeitConfig(**SIZES, **INNER, use_relative_position_bias=True, layer_scale_init_value=0.1)
        ),
        "beit_shared": lambda: tf.BeitModel(
            tf.BeitConfig(**SIZES, **INNER, use_shared_relative_position_bias=True, use_mean_pooling=True)
        ),
        "clip": lambda: tf.CLIPModel(tf.CLIPConfig(text_config=TEXT, vision_config={**SIZES, **INNER}, projection_dim=8)),
        "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(text_config=TEXT, vision_config={**SIZES, **INNER})),
    }[family]()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pixels(size: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def oracle_output(family: str, model, images: torch.Tensor) -> torch.Tensor:
    if family == "vit_mae":  # order-keeping noise and nothing masked: the whole encoder
        model.vit.config.mask_ratio = 0.0
        return model.vit(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    if family in ("clip", "siglip"):
        return model.vision_model(images).pooler_output
    return model(images).last_hidden_state


@pytest.mark.parametrize("family", ["vit", "vit_mae", "dinov2", "beit", "beit_shared", "clip", "siglip"])
def test_published_directory_loads_with_equal_outputs(family, tmp_path):
    model = published(family)
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path).eval()
    with torch.no_grad():
        got = backbone(pixels()) if family in ("clip", "siglip") else backbone.forward_features(pixels())
    want = oracle_output(family, model, pixels())
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_published_timm_directory_loads_with_equal_outputs(tmp_path):
    import timm
    from safetensors.torch import save_file

    args = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **args).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": args,
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        want = model.forward_head(model.forward_features(pixels()), pre_logits=True)
        torch.testing.assert_close(load_backbone(tmp_path).eval()(pixels()), want, rtol=1e-5, atol=1e-5)


def test_published_mae_decoder_predicts_the_same_pixels(tmp_path):
    model = published("vit_mae")
    model.decoder.decoder_pos_embed.data[:, :1] = 0  # as published: the class token has no position
    model.save_pretrained(tmp_path)
    settings = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2, "patch": 8, "image_size": 32}
    objective = build("mae", weights=str(tmp_path), **settings).eval()
    decoder_from_transformers(objective.decoder, model.decoder.state_dict())
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(pixels(), noise=noise)
        batch = {"image": pixels().permute(0, 2, 3, 1).unsqueeze(1), "mask": want.mask.bool()}
        objective.pixel_mean.zero_()
        objective.pixel_std.fill_(1)
        features = objective.encode(batch)
        got = objective.decoder(features["tokens"], features["visible"])
        loss = objective.loss({**features, "mask": batch["mask"]})["loss"]
    torch.testing.assert_close(got, want.logits, rtol=1e-5, atol=1e-5)
    model.config.norm_pix_loss = True
    with torch.no_grad():
        assert loss.item() == pytest.approx(model(pixels(), noise=noise).loss.item(), rel=1e-5)


def test_directories_that_do_not_fit_say_why(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"no config.json in"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        load_backbone(tmp_path)
    export_timm(build("simclr"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"another architecture than vit_tiny_patch16_224: blocks.2"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("name", ["supervised", "simclr", "dino", "mae", "beit", "dinov2"])
def test_exported_timm_directory_is_read_by_timm_itself(name, tmp_path):
    import timm

    objective = build(name)
    fit(objective, samples(), training(name), until_step=1)
    export_timm(objective, tmp_path, {"selection": "toy", "metrics": {"probe": 0.5}})
    images = torch.tensor(samples().images[:3, :16, :16])
    want = objective.embed(images)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        normalised = objective.normalise(images)
        got = theirs.forward_head(theirs.forward_features(normalised), pre_logits=True)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        if name == "supervised":
            torch.testing.assert_close(theirs(normalised), objective.classifier(want), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(load_backbone(tmp_path).eval()(normalised), want, rtol=1e-5, atol=1e-5)


def test_exported_resnet_is_read_by_timm(tmp_path):
    import timm

    objective = build(
        "simclr", backbone="resnet18", backbone_args={"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)}, image_size=32
    )
    objective.train()(  # moves the batch norms' statistics away from their start
        {"image": torch.randint(0, 255, (4, 2, 32, 32, 3), dtype=torch.uint8)}
    )
    export_timm(objective, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels()), objective.backbone.eval()(pixels()), rtol=1e-5, atol=1e-5)


def test_export_equals_in_transformers(tmp_path):
    import transformers as tf

    images = torch.tensor(samples().images[:2, :16, :16])
    for name, cls in (
        ("simclr", tf.ViTModel),
        ("dinov2", tf.Dinov2Model),
        ("beit", tf.BeitModel),
        ("mae", tf.ViTMAEModel),
    ):
        settings = {}
        if name == "beit":
            small = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
            settings = {"backbone": "beit_base_patch16_224", "backbone_args": small}
        objective = build(name, **settings).eval()
        export_transformers(objective, tmp_path / name)
        kwargs = {"mask_ratio": 0.0} if name == "mae" else {}
        theirs = cls.from_pretrained(tmp_path / name, **kwargs).eval()
        with torch.no_grad():
            normalised = objective.normalise(images)
            extra = {"noise": torch.arange(16.0).expand(2, -1)} if name == "mae" else {}
            got = theirs(normalised, **extra).last_hidden_state
            want = objective.evaluation_backbone().forward_features(normalised)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_exported_image_text_model_gives_the_same_logits_in_transformers(name, tmp_path):
    import transformers as tf

    learnt = train_tokenizer(samples().captions, 64)
    args = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    backbone = {"clip": "vit_base_patch32_clip_224", "siglip": "vit_base_patch16_siglip_224"}[name]
    objective = build(name, backbone=backbone, backbone_args=args).eval()
    export_transformers(objective, tmp_path, learnt)
    theirs = (tf.CLIPModel if name == "clip" else tf.SiglipModel).from_pretrained(tmp_path).eval()
    images = torch.tensor(samples().images[:3, :16, :16])
    tokens = torch.tensor(np.stack([tokenizer()(c, 8) for c in samples().captions[:3]]))
    with torch.no_grad():
        got = theirs(input_ids=tokens, pixel_values=objective.normalise(images)).logits_per_image
        ours = objective.encode_image(objective.normalise(images)) @ objective.encode_text(tokens).T
        want = objective.logit_scale.exp() * ours + (objective.logit_bias if name == "siglip" else 0)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    read = tf.AutoTokenizer.from_pretrained(tmp_path)
    assert read("a red square").input_ids == learnt.encode("a red square").ids


def test_backbones_without_a_transformers_layout_are_refused(tmp_path):
    resnet = build("simclr", backbone="resnet18", backbone_args={"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)})
    with pytest.raises(UsageError, match="export it as timm"):
        export_transformers(resnet, tmp_path)
    with pytest.raises(UsageError, match="norm before the blocks"):
        export_transformers(build("clip"), tmp_path)
    with pytest.raises(UsageError, match="no image projection"):
        export_transformers(build("siglip"), tmp_path)
    with pytest.raises(UsageError, match="has no place for the backbone"):
        export_transformers(build("simclr", backbone_args={**VIT, "qk_norm": True}), tmp_path)


def test_training_starts_from_a_published_directory(tmp_path):
    """Image tower, text tower and both projections."""
    model = published("clip")
    model.save_pretrained(tmp_path)
    objective = build("clip", weights=str(tmp_path), text_model=str(tmp_path), image_size=32, dim=8).eval()
    tokens = torch.tensor([[0, 5, 7, 3, 1], [0, 2, 4, 19, 1]])
    with torch.no_grad():
        want = model.get_image_features(pixels())
        want = getattr(want, "pooler_output", want)
        got = objective.projection(objective.backbone(pixels()))
        text = model.get_text_features(tokens)
        text = torch.nn.functional.normalize(getattr(text, "pooler_output", text), dim=-1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.encode_text(tokens).detach(), text, rtol=1e-5, atol=1e-5)


def test_model_card_tells_lineage_and_figures():
    lineage = {"selection": "balanced-10k", "tables": {"frames": 12}, "code": "0.1.0", "metrics": {"knn": 0.81234}}
    card = model_card(build("dino"), lineage)
    for fact in ("dino", "balanced-10k", "frames: version 12", "0.1.0", "| knn | 0.8123 |", '"prototypes": 32'):
        assert fact in card


CLIP_ARGS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "family", "settings"),
    [
        ("simclr", "vit", {}),
        ("mae", "vit-mae", {}),
        ("dinov2", "dinov2", {}),
        ("clip", "clip", {"backbone": "vit_base_patch32_clip_224", "backbone_args": CLIP_ARGS}),
    ],
)
def test_embedding_takes_exported_directories_as_they_are(tmp_path, name, family, settings):
    """Of either layout; with CLIP's text tower and tokenizer, too."""
    from vfm_ops.embed.embedder import load_embedder

    learnt = train_tokenizer(samples().captions, 64)
    objective = build(name, **settings).eval()
    export_timm(objective, tmp_path / "timm")
    export_transformers(objective, tmp_path / "transformers", learnt if name == "clip" else None)
    images = [np.ascontiguousarray(image[:16, :16]) for image in samples().images[:4]]
    batch = torch.tensor(np.stack(images))

    def load(spec: str) -> Any:
        return load_embedder(spec, device="cpu", runtime="torch", precision="exact")

    def close(got: Any, want: torch.Tensor) -> None:
        want = torch.nn.functional.normalize(want.detach(), dim=-1)
        torch.testing.assert_close(torch.tensor(np.asarray(got)), want, rtol=1e-5, atol=1e-5)

    close(load(f"timm:{tmp_path}/timm").embed_images(images), objective.embed(batch))
    embedder = load(f"{family}:{tmp_path}/transformers")
    close(
        embedder.embed_images(images), objective.embed_pair_space(batch) if name == "clip" else objective.embed(batch)
    )
    if name == "clip":
        captions = samples().captions[:3]
        tokens = torch.tensor(np.stack([tokenize_with(learnt)(text, 8) for text in captions]))
        close(embedder.embed_texts(captions), objective.encode_text(tokens))
