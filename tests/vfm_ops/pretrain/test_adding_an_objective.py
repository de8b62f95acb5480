"""If these fail, docs/adding-an-objective.md tells a newcomer to write a file that does not work."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.cli import main
from pipelines.pretraining.settings import make_plan
from tests.vfm_ops.pretrain.tiny import VIT, samples
from vfm_ops.embed import describe_embedder
from vfm_ops.errors import UsageError
from vfm_ops.pretrain import objectives, registry
from vfm_ops.pretrain.export import export_timm, export_transformers
from vfm_ops.pretrain.fit import fit, make_batch
from vfm_ops.pretrain.registry import build_objective, objective_class, objective_config, register
from vfm_ops.pretrain.train_config import train_config

PAGE = Path(__file__).parents[3] / "docs" / "adding-an-objective.md"
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL))
TINY = {"image_size": 16, "backbone": "vit_tiny_patch16_224", "backbone_args": VIT, "projection": 32, "redundancy": 0.1}
TRAINING = {
    "batch_size": 8,
    "epochs": 4,
    "warmup_epochs": 0,
    "base_lr": 2e-3,
    "lr_scaling": "none",
    "optimizer": "adamw",
}


@pytest.fixture
def added(tmp_path, monkeypatch) -> None:
    """The page's file, as if it lay where its first line says; forgotten afterwards."""
    ((path, text),) = FILES.items()
    (tmp_path / Path(path).name).write_text(text)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_OBJECTIVES", dict(registry._OBJECTIVES))
    importlib.invalidate_caches()
    yield
    sys.modules.pop(f"{registry.FOLDER}.barlow", None)


def train(**settings):
    torch.manual_seed(0)
    return fit(build_objective("barlow", **TINY), samples(), train_config("barlow", TINY, **TRAINING, **settings))


def test_the_page_has_one_file_in_the_folder_of_objectives():
    (path,) = FILES
    assert str(Path(path).parent).replace("/", ".") == registry.FOLDER


def test_a_file_is_all_that_the_command_needs(added, capsys):
    assert main(["pretrain", "--objective", "barlow", "--lake", "lake", "--keys"]) == 0
    said = capsys.readouterr().out
    assert "redundancy: 0.0051  # weight of the correlations" in said
    assert "base_lr: 0.2" in said
    plan = make_plan("barlow", preset="small", overrides=["redundancy=0.5"])
    assert (plan.model["redundancy"], plan.model["backbone"], plan.train_config.batch_size) == (0.5, "resnet18", 256)
    assert not plan.needs_labels
    assert not plan.needs_captions
    with pytest.raises(UsageError, match="did you mean barlow"):
        objective_class("barlw")
    undocumented = [k for k, f in objective_class("barlow").Config.model_fields.items() if not f.description]
    assert not undocumented


def test_its_loss_is_the_equation_of_the_paper(added):
    objective = build_objective("barlow", **TINY).double()
    objective.projector = torch.nn.Identity()
    z = np.random.default_rng(0).standard_normal((64, 2, 32))
    loss = objective.loss({"features": torch.from_numpy(z)})["loss"].item()
    correlation = np.corrcoef(z[:, 0].T, z[:, 1].T)[:32, 32:]
    off = correlation - np.diag(np.diag(correlation))
    assert loss == pytest.approx(((1 - np.diag(correlation)) ** 2).sum() + 0.1 * (off**2).sum(), rel=1e-4)


def test_it_lowers_its_loss(added):
    torch.manual_seed(0)
    objective = build_objective("barlow", **TINY | {"projection": 8})
    config = train_config("barlow", TINY, **TRAINING | {"batch_size": 24})
    batch = make_batch(objective.view_plan(objective.config), samples(), 0, config)
    tensors = {key: torch.as_tensor(value) for key, value in batch.items()}
    optimiser, losses = torch.optim.AdamW(objective.param_groups(), lr=3e-3), []
    for _ in range(15):
        optimiser.zero_grad()
        out = objective(tensors)
        out["loss"].backward()
        optimiser.step()
        losses.append(out["loss"].item())
    assert losses[-1] < 0.5 * losses[0]
    assert out["correlation"] > 0.5


def test_micro_batches_learn_what_the_whole_batch_learns(added):
    whole, cut = train(), train(accumulate=2)
    np.testing.assert_allclose([s["loss"] for s in cut], [s["loss"] for s in whole], rtol=1e-3)


def test_what_it_learnt_is_exported_in_both_layouts(added, tmp_path, monkeypatch):
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    objective = build_objective("barlow", **TINY)
    assert describe_embedder(f"timm:{export_timm(objective, tmp_path / 'timm')}").dim == VIT["embed_dim"]
    assert (export_transformers(objective, tmp_path / "transformers") / "model.safetensors").exists()


def test_a_name_is_registered_once_and_is_its_files(added, tmp_path):
    with pytest.raises(ValueError, match="two files register the objective 'simclr'"):
        register(objective_class("simclr"))
    (tmp_path / "misnamed.py").write_text("")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match="registers no objective of that name"):
        objective_class("misnamed")
    sys.modules.pop(f"{registry.FOLDER}.misnamed", None)


def test_an_objective_without_a_small_preset_says_so(added, monkeypatch):
    monkeypatch.setattr(objective_class("barlow"), "small", None)
    with pytest.raises(UsageError, match="barlow has no small preset"):
        make_plan("barlow", preset="small")
    assert objective_config("barlow").projection == 8192
