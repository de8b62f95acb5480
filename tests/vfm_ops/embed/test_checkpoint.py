"""Where weights are looked for, and what a user is told when they are not there."""

from __future__ import annotations

import json
import socket
import time

import numpy as np
import pytest
import torch

from vfm_ops.embed import load_embedder
from vfm_ops.embed.geometry import geometry_of
from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.models import hub
from vfm_ops.models.checkpoint import read_folder
from vfm_ops.models.resolve import locate


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "image_size": 28}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_unknown_family_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown model family 'clop'.*clip.*siglip.*timm"):
        load_embedder("clop:x")


def test_detector_is_not_taken_for_an_embedder():
    with pytest.raises(UsageError, match="makes no embeddings"):
        load_embedder("sam2:facebook/sam2.1-hiera-tiny")


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(private_cache):
    with pytest.raises(WeightsUnavailable) as caught:
        load_embedder("clip:openai/clip-vit-base-patch32")
    message = str(caught.value)
    assert "https://huggingface.co/openai/clip-vit-base-patch32" in message
    assert "clip:/that/folder" in message
    assert str(private_cache / "hub") in message


def test_a_hub_that_never_answers_is_given_up_within_seconds(monkeypatch):
    released = []

    def hang(*_args, **_kwargs):
        while not released:
            time.sleep(0.01)
        raise OSError("released")

    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", hang)
    assert not hub.hub_reachable(0.05)
    released.append(True)


def test_local_hub_cache_is_used_before_the_network(private_cache, folder, monkeypatch):
    snapshot = private_cache / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.glob("*.*"):
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("the network was touched"))
    assert locate("dinov2", "org/name").folder == snapshot


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-here"])
def test_path_that_is_not_there_never_asks_the_network(name, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("the network was touched"))
    with pytest.raises(UsageError, match="no model folder"):
        locate("timm", name)


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "config.json").unlink(), "architecture is unknown"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda f: (f / "config.json").write_text("{}"), "neither `architecture`"),
    ],
)
def test_half_a_folder_is_answered_in_one_sentence(folder, damage, advice):
    damage(folder)
    with pytest.raises(UsageError, match=advice) as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_answered_in_one_sentence(folder):
    with pytest.raises(UsageError, match=r"can't load|can't be read"):
        load_embedder(f"dinov2:{folder}", device="cpu")


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 10}))
    torch.save({"state_dict": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="can't be read as weights"):
        load_embedder(f"timm:{tmp_path}", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_weights_with_a_hole_are_refused_not_filled_at_random(transformers_model, save):
    from safetensors.torch import load_file, save_file

    where = save(transformers_model("dinov2"))
    state = load_file(where / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, where / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="lacks 1 of the model's weights, such as layernorm"):
        load_embedder(f"dinov2:{where}", device="cpu")


def test_changed_weights_are_another_fingerprint_and_digest(folder):
    before = read_folder(folder)
    first = before.fingerprint(), before.digest()
    (folder / "model.safetensors").write_bytes(b"other weights")
    after = read_folder(folder)
    assert after.fingerprint() != first[0]
    assert after.digest() != first[1]


def test_shards_are_files_beside_their_index(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "../../etc/secret", "c": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert {p.parent for p in read_folder(tmp_path).weights} == {tmp_path}


CROP = {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
PROCESSORS = {
    "clip": ({"size": {"shortest_edge": 224}, **CROP}, "crop", 1.0),
    "dinov2": ({"size": {"shortest_edge": 256}, **CROP}, "crop", 0.875),
    "siglip": ({"size": {"height": 224, "width": 224}}, "squash", 1.0),
    "resnet": ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, "crop", 0.875),
    "vit": ({"size": 224, "do_resize": True}, "squash", 1.0),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_geometry_is_that_of_the_models_own_processor(folder, kind):
    settings, fit, crop_pct = PROCESSORS[kind]
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(settings | {"resample": 3, "image_mean": [0.1, 0.2, 0.3]})
    )
    found = geometry_of(read_folder(folder), "exact")
    assert (found.view.height, found.view.width, found.view.fit) == (224, 224, fit)
    assert found.view.crop_pct == pytest.approx(crop_pct)
    assert (found.view.interpolation, found.mean) == ("bicubic", (0.1, 0.2, 0.3))
    assert geometry_of(read_folder(folder), "fast").view.interpolation == "area"


def test_exact_view_prepares_pixels_as_clips_own_processor(folder):
    from PIL import Image
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor()
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    view = geometry_of(read_folder(folder), "exact").view
    photo = np.kron(np.random.default_rng(0).integers(0, 256, (15, 20, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    own = processor(Image.fromarray(photo), do_normalize=False, return_tensors="np")["pixel_values"][0]
    difference = np.abs(view.apply(photo) / 255 - own.transpose(1, 2, 0))
    assert difference.mean() < 0.004  # at most the half pixel that rounding the resized size costs
