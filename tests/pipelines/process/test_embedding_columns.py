"""If these fail, vectors of two models lie in one column, and a search compares what can't be compared."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.index import columns_of
from pipelines.lake import Lake, embedding_column, patches_column
from pipelines.process.backfill import embed_lake
from pipelines.process.ops import plan_ops
from pipelines.process.recipe import Recipe, Resources
from pipelines.search.run import Query, search
from tests.pipelines.picture_lake import picture_lake
from vfm_ops.embed import load_embedder
from vfm_ops.errors import UsageError


def save_tiny(folder: Path, seed: int) -> str:
    """A small ViT of timm with random weights; returns its spec."""
    import json

    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    args = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **args)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": args,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return f"timm:{folder}"


@pytest.fixture
def lake(tmp_path) -> Lake:
    """Six frames with their JPEGs, and no vectors yet."""
    return picture_lake(tmp_path / "lake", 6)


def embed(lake: Lake, spec: str, **settings) -> int:
    return embed_lake(lake, {"model": spec, "precision": "exact", "dtype": "float32", **settings}, Resources())


def stored(lake: Lake, column: str) -> np.ndarray:
    return np.array(lake.read("frames", [column])[column].to_pylist())


def direct(lake: Lake, spec: str) -> np.ndarray:
    embedder = load_embedder(spec, device="cpu", precision="exact")
    jpegs = lake.read("frames", ["jpeg"])["jpeg"].to_pylist()
    pictures = [cv2.cvtColor(cv2.imdecode(np.frombuffer(j, np.uint8), 1), cv2.COLOR_BGR2RGB) for j in jpegs]
    return embedder.embed_images(np.stack([embedder.view.apply(p) for p in pictures]))


def test_two_folders_of_one_last_name_have_a_column_each(lake, tmp_path):
    first, second = save_tiny(tmp_path / "a" / "model", 1), save_tiny(tmp_path / "b" / "model", 2)
    assert embedding_column(first) == embedding_column(second)
    assert embed(lake, first) == embed(lake, second, patch_tokens=True) == 6
    facts = {f.metadata[b"spec"].decode(): f for f in lake.schema("frames") if (f.metadata or {}).get(b"spec")}
    assert facts[first].name == "emb_timm_model"
    assert facts[second].name == f"emb_timm_model_{facts[second].metadata[b'digest'].decode()[:8]}"
    assert patches_column(second, facts[second].name) in lake.schema("frames").names
    for spec, field in facts.items():
        np.testing.assert_allclose(stored(lake, field.name), direct(lake, spec), atol=2e-3)
        hits = search(lake, Query(frame_id=lake.read("frames", ["frame_id"])["frame_id"][0].as_py()), model=spec, k=1)
        assert hits.column.name == field.name
        assert columns_of(lake, spec) == [field.name]
    assert embed(lake, first) == embed(lake, second, patch_tokens=True) == 0, "both are found again"


def test_weights_that_changed_under_a_name_get_a_column_and_the_old_vectors_stay(lake, tmp_path):
    spec = save_tiny(tmp_path / "model", 1)
    embed(lake, spec)
    before = stored(lake, "emb_timm_model")
    (tmp_path / "model").rename(tmp_path / "old")
    save_tiny(tmp_path / "model", 2)
    assert embed(lake, spec) == 6
    np.testing.assert_array_equal(stored(lake, "emb_timm_model"), before)
    picture = tmp_path / "q.jpg"
    picture.write_bytes(lake.read("frames", ["jpeg"])["jpeg"][0].as_py())
    result = search(lake, Query(image=str(picture)), model=spec, k=1)
    assert result.column.name != "emb_timm_model", "a query is embedded by the weights of today"
    assert result.hits["score"][0].as_py() > 0.99
    with pytest.raises(UsageError, match="restore those weights"):
        search(lake, Query(image=str(picture)), model="emb_timm_model")
    assert columns_of(lake, spec) == ["emb_timm_model", result.column.name]


def test_two_models_of_one_recipe_never_share_a_column(tmp_path):
    specs = save_tiny(tmp_path / "a" / "model", 1), save_tiny(tmp_path / "b" / "model", 2)
    recipe = Recipe(ops=tuple({"embed": {"model": s, "precision": "exact"}} for s in specs))
    fields = fields_of(recipe, [])
    assert len({f.name for f in fields}) == 2
    assert [f.name for f in fields_of(recipe, fields)] == [f.name for f in fields], "and a second run finds them"


def fields_of(recipe: Recipe, known: list) -> list:
    return [field for one in plan_ops(recipe, known) for field in one.fields]
