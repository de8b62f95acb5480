"""Each family's vectors are those of the original library on the same pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import optional_package
from tests.vfm_ops.embed.conftest import MEAN, SIZE, STD, normalised_pixels, unit
from vfm_ops.embed import load_embedder
from vfm_ops.errors import UsageError

RUNTIMES = ("torch", "openvino")


def _own_features(name, model, x):
    """What the library itself calls the image's features, and its patch tokens."""
    import torch

    with torch.no_grad():
        if name in ("clip", "siglip"):
            out = model.get_image_features(pixel_values=x)
            tokens = out.last_hidden_state[:, 1:] if name == "clip" else out.last_hidden_state
            return out.pooler_output, tokens
        if name == "vit-mae":
            model.config.mask_ratio = 0.0
            out = model(pixel_values=x, noise=torch.arange(16.0).expand(len(x), 16))
            return out.last_hidden_state[:, 0], out.last_hidden_state[:, 1:]
        out = model(pixel_values=x)
        if name == "resnet":
            return out.pooler_output[:, :, 0, 0], out.last_hidden_state.flatten(2).transpose(1, 2)
        pooled = out.last_hidden_state[:, 0] if name == "vit" else out.pooler_output
        return pooled, out.last_hidden_state[:, 1:]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "vit-mae", "beit", "vit", "resnet"])
def test_vectors_and_tokens_are_those_of_transformers(family, runtime, transformers_model, save, pixels):
    model = transformers_model(family)
    folder = save(model)
    embedder = load_embedder(f"{family}:{folder}", device="cpu", runtime=runtime, precision="exact", patch_tokens=True)
    pooled, tokens = _own_features(family, model, normalised_pixels(pixels, MEAN, STD))
    vectors, patches = next(embedder.stream(iter([pixels])))
    assert (embedder.runtime, embedder.precision) == (runtime, "exact")
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, embedder.dim)
    np.testing.assert_allclose(vectors, unit(pooled), atol=1e-5)
    np.testing.assert_allclose(patches, tokens.numpy(), atol=2e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", ["dinov3_vit", "dinov3_convnext"])
def test_dinov3_gives_the_class_token_and_no_register(kind, runtime, transformers_model, save, pixels):
    import torch

    model = transformers_model(kind)
    folder = save(model)
    embedder = load_embedder(f"dinov3:{folder}", device="cpu", runtime=runtime, precision="exact", patch_tokens=True)
    with torch.no_grad():
        own = model(pixel_values=normalised_pixels(pixels, MEAN, STD))
    vectors, tokens = next(embedder.stream(iter([pixels])))
    np.testing.assert_allclose(vectors, unit(own.pooler_output), atol=1e-5)
    first = 4 if kind == "dinov3_vit" else 1  # a class token and three registers; a mean, and none
    np.testing.assert_allclose(tokens, own.last_hidden_state[:, first:].numpy(), atol=2e-5)
    assert tokens.shape[1] == (16 if kind == "dinov3_vit" else 1)


def test_timms_dinov3_gives_the_class_token_as_its_authors_do(tmp_path, pixels):
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    arguments = {"img_size": SIZE, "embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8}
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **arguments).eval()
    settings = {"input_size": [3, SIZE, SIZE], "mean": MEAN, "std": STD, "crop_pct": 1.0, "interpolation": "bicubic"}
    config = {"architecture": "vit_small_patch16_dinov3", "num_classes": 0, "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": settings}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    embedder = load_embedder(f"timm:{tmp_path}", device="cpu", precision="exact", patch_tokens=True)
    with torch.no_grad():
        features = model.forward_features(normalised_pixels(pixels, MEAN, STD))  # after the last norm
    vectors, tokens = next(embedder.stream(iter([pixels])))
    np.testing.assert_allclose(vectors, unit(features[:, 0]), atol=1e-5)
    np.testing.assert_allclose(tokens, features[:, 5:].numpy(), atol=2e-5)


@pytest.mark.parametrize("named", ["resnet", "clip", "siglip", "vit", "openclip", "dinov3"])
def test_a_folder_of_another_family_is_refused_with_the_one_to_use(named, transformers_model, save):
    folder = save(transformers_model("dinov2"))
    with pytest.raises(UsageError, match=f"^{named}:.* is a checkpoint of 'dinov2', not of .*: use dinov2:{folder}$"):
        load_embedder(f"{named}:{folder}", device="cpu")


def test_a_checkpoint_that_embeds_nothing_is_refused_with_the_families_that_do(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam2_video"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for named in ("clip", "timm"):
        with pytest.raises(UsageError, match=r"'sam2_video'.*(to embed takes|no image embedding)"):
            load_embedder(f"{named}:{tmp_path}", device="cpu")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_siglip2_at_native_aspect_ratio_is_that_of_transformers(runtime, transformers_model, save):
    import torch
    from transformers import Siglip2ImageProcessor

    model = transformers_model("siglip2")
    folder = save(model, patch_size=8, max_num_patches=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    embedder = load_embedder(
        f"siglip:{folder}", device="cpu", runtime=runtime, precision="exact", preprocess="exact", patch_tokens=True
    )
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((40, 90, 3), (64, 64, 3), (120, 30, 3))]
    views = [embedder.view.apply(i) for i in images]
    # The processor on images that already have their final size only cuts patches and normalises.
    inputs = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)(images=views, do_resize=False, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**inputs)
    assert [v.shape[0] > v.shape[1] for v in views] == [False, False, True]
    vectors, tokens = next(embedder.stream(iter([views])))
    np.testing.assert_allclose(vectors, unit(expected.pooler_output), atol=1e-5)
    for view, own, theirs in zip(views, tokens, expected.last_hidden_state):
        assert len(own) == view.shape[0] * view.shape[1] // 64
        np.testing.assert_allclose(own, theirs[: len(own)].numpy(), atol=2e-5)


def test_timm_folder_gives_timms_pre_logits(tmp_path, pixels):
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    arguments = {"img_size": SIZE, "embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8}
    model = timm.create_model("vit_small_patch16_224", num_classes=7, **arguments).eval()
    settings = {"input_size": [3, SIZE, SIZE], "mean": MEAN, "std": STD, "crop_pct": 0.9, "interpolation": "bicubic"}
    config = {"architecture": "vit_small_patch16_224", "num_classes": 7, "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": settings}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    embedder = load_embedder(f"timm:{tmp_path}", device="cpu", precision="exact", patch_tokens=True)
    x = normalised_pixels(pixels, MEAN, STD)
    with torch.no_grad():
        features = model.forward_features(x)
        expected = model.forward_head(features, pre_logits=True)
    vectors, tokens = next(embedder.stream(iter([pixels])))
    np.testing.assert_allclose(vectors, unit(expected), atol=1e-5)
    np.testing.assert_allclose(tokens, features[:, 1:].numpy(), atol=2e-5)
    assert (embedder.view.height, embedder.view.crop_pct) == (SIZE, 0.9)


def test_transformers_folder_of_our_pretraining_loads_as_timm(transformers_model, save, pixels):
    folder = save(transformers_model("vit"))
    one = load_embedder(f"timm:{folder}", device="cpu", precision="exact")
    other = load_embedder(f"vit:{folder}", device="cpu", precision="exact")
    assert one.digest == other.digest
    np.testing.assert_array_equal(one.embed_images(pixels), other.embed_images(pixels))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_openclip_folder_gives_openclips_images_and_texts(tmp_path, pixels, kind):
    import torch
    from safetensors.torch import save_file

    clip, tokenizer = optional_package("open_clip.model"), optional_package("open_clip.tokenizer")

    torch.manual_seed(0)
    settings = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    model = clip.CLIP(**settings).eval()
    config = {"model_cfg": settings, "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    if kind == "safetensors":
        save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    else:
        torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    embedder = load_embedder(f"openclip:{tmp_path}", device="cpu", precision="exact")
    texts = ["a cat", "two dogs on a very long red couch in the sun beside the sea"]
    with torch.no_grad():
        images = model.encode_image(normalised_pixels(pixels, MEAN, STD))
        words = model.encode_text(tokenizer.SimpleTokenizer(context_length=12)(texts))
    np.testing.assert_allclose(embedder.embed_images(pixels), unit(images), atol=1e-5)
    np.testing.assert_allclose(embedder.embed_texts(texts), unit(words), atol=1e-5)


def _save_tokenizer(folder, template):
    """A word-level tokenizer with a start and an end token, in the file format of every fast tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<s>", "<x>", "</s>", "a", "cat", "dog", "red", "on", "couch"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<x>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_texts_are_embedded_as_by_transformers(family, transformers_model, save):
    import torch
    from transformers import PreTrainedTokenizerFast

    model = transformers_model(family)
    folder = save(model)
    _save_tokenizer(folder, "<s> $A </s>")
    texts = ["a cat", "a red dog on a couch", "a cat on a red dog on a red couch on a cat on a dog"]
    own = PreTrainedTokenizerFast.from_pretrained(folder)
    # CLIP pads to the longest and masks; SigLIP always pads to its full length and masks nothing.
    padding = {"padding": True} if family == "clip" else {"padding": "max_length"}
    inputs = own(texts, return_tensors="pt", truncation=True, max_length=12, return_token_type_ids=False, **padding)
    if family == "siglip":
        inputs.pop("attention_mask")
    with torch.no_grad():
        expected = model.get_text_features(**inputs).pooler_output
    embedder = load_embedder(f"{family}:{folder}", device="cpu", precision="exact")
    assert embedder.has_text
    np.testing.assert_allclose(embedder.embed_texts(texts), unit(expected), atol=1e-5)
    np.testing.assert_allclose(embedder.embed_texts(texts[1:2])[0], unit(expected)[1], atol=1e-5)


def test_siglip_texts_lose_punctuation_and_case_as_in_training():
    from vfm_ops.embed.families.siglip import canonical

    assert canonical("A photo of a Cat,  sleeping!", "siglip") == "a photo of a cat sleeping"
    assert canonical("A Cat!", "siglip2") == "a cat!"


def test_text_query_on_a_model_without_text_says_what_to_use(transformers_model, save):
    embedder = load_embedder(f"dinov2:{save(transformers_model('dinov2'))}", device="cpu", precision="exact")
    with pytest.raises(UsageError, match="no text tower"):
        embedder.embed_texts(["a cat"])
