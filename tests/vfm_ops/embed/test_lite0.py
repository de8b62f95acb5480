"""The offline default on real photographs: real weights, real frames, in every runtime."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.conftest import default_weights
from tests.vfm_ops.embed.conftest import normalised_pixels, unit
from vfm_ops.embed import describe_embedder, load_embedder
from vfm_ops.embed.families.timm import lite0_package
from vfm_ops.models.shipped import DEFAULT_EMBEDDER

HALF = [0.5, 0.5, 0.5]


@pytest.fixture(scope="module", autouse=True)
def _weights():
    default_weights()


@pytest.fixture(scope="module")
def photos(photographs):
    return [np.ascontiguousarray(cv2.imread(str(p))[..., ::-1]) for p in photographs]


@pytest.fixture(scope="module")
def original():
    """timm's own network with the packaged weights, renamed here by hand: an oracle for our renaming."""
    import timm
    import torch

    state = torch.load(lite0_package().weights[0], weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    flat = [(i, j) for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    renamed = {}
    for name, tensor in state.items():
        parts = name.removeprefix("_").split(".")
        if parts[0] == "blocks":
            i, j = flat[int(parts[1])]
            first = i == 0
            layer = {
                "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw",
                "_bn1": "bn1" if first else "bn2", "_project_conv": "conv_pw" if first else "conv_pwl",
                "_bn2": "bn2" if first else "bn3",
            }[parts[2]]  # fmt: skip
            renamed[f"blocks.{i}.{j}.{layer}.{parts[3]}"] = tensor
        else:
            layer = {"bn0": "bn1", "bn1": "bn2", "fc": "classifier"}.get(parts[0], parts[0])
            renamed[".".join([layer, *parts[1:]])] = tensor
    model.load_state_dict(renamed)
    return model


def test_real_photographs_get_timms_features_and_sensible_classes(original, photos, photographs):
    import torch

    embedder = load_embedder(DEFAULT_EMBEDDER, device="cpu", precision="exact", preprocess="exact")
    views = np.stack([embedder.view.apply(p) for p in photos])
    x = normalised_pixels(views, HALF, HALF)
    with torch.no_grad():
        features = original.forward_head(original.forward_features(x), pre_logits=True)
        classes = original(x).topk(5).indices.numpy()
    np.testing.assert_allclose(embedder.embed_images(views), unit(features), atol=1e-5)
    named = {p.stem: set(c.tolist()) for p, c in zip(photographs, classes, strict=True)}
    assert named["chelsea"] & set(range(281, 288))  # ImageNet's domestic cats
    assert named["coffee"] & {504, 967, 968}  # coffee mug, espresso, cup
    assert named["rocket"] & {657, 744}  # missile, projectile


def test_auto_precision_is_faithful_on_photographs_and_independent_of_the_batch(photos):
    auto = load_embedder(DEFAULT_EMBEDDER, device="cpu")
    exact = load_embedder(DEFAULT_EMBEDDER, device="cpu", precision="exact")
    views = np.stack([auto.view.apply(p) for p in photos])
    together = auto.embed_images(views)
    alone = np.concatenate([auto.embed_images(v[None]) for v in views])
    assert (together * exact.embed_images(views)).sum(1).min() >= 0.995
    assert (together * alone).sum(1).min() >= 0.9999
    streamed = np.concatenate(list(auto.embed_image_stream(views[i : i + 3] for i in range(0, len(views), 3))))
    np.testing.assert_array_equal(streamed, together)


def test_fast_and_exact_preprocessing_agree_on_photographs(photos):
    fast = load_embedder(DEFAULT_EMBEDDER, device="cpu", precision="exact")
    exact = load_embedder(DEFAULT_EMBEDDER, device="cpu", precision="exact", preprocess="exact")
    a = fast.embed_images(np.stack([fast.view.apply(p) for p in photos]))
    b = exact.embed_images(np.stack([exact.view.apply(p) for p in photos]))
    cosine = (a * b).sum(1)
    assert cosine.min() > 0.98
    assert np.median(cosine) > 0.99
    assert fast.digest == exact.digest


WARM = """
import sys
import numpy as np
from vfm_ops.embed import describe_embedder, load_embedder
told = describe_embedder("timm:tf_efficientnet_lite0", device="cpu", precision="exact")
embedder = load_embedder("timm:tf_efficientnet_lite0", device="cpu", precision="exact")
assert (told.dim, told.digest, told.precision) == (embedder.dim, embedder.digest, embedder.precision)
assert embedder.embed_images(np.zeros((1, 224, 224, 3), np.uint8)).shape == (1, 1280)
print([m for m in ("torch", "timm", "transformers", "huggingface_hub") if m in sys.modules])
"""


def test_warm_process_serves_without_importing_torch():
    described = describe_embedder(DEFAULT_EMBEDDER, device="cpu", precision="exact")
    assert (described.dim, described.has_text, described.runtime) == (1280, False, "openvino")
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("shape", [(224, 224, 3), (2, 224, 200, 3), (2, 3, 224, 224)])
def test_frames_of_another_shape_are_refused(shape):
    embedder = load_embedder(DEFAULT_EMBEDDER, device="cpu", precision="exact")
    with pytest.raises(ValueError, match="takes uint8"):
        embedder.embed_images(np.zeros(shape, np.uint8))


def test_no_frames_give_no_vectors():
    embedder = load_embedder(DEFAULT_EMBEDDER, device="cpu", precision="exact")
    assert embedder.embed_images([]).shape == (0, 1280)
