"""One saved checkpoint of every transformers detector, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vfm_ops.detect import tiny


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    return {
        "grounding-dino": tiny.grounding_dino(root / "grounding-dino"),
        "owlvit": tiny.owl(root / "owlvit", generation=1),
        "owlv2": tiny.owl(root / "owlv2", generation=2),
        "omdet-turbo": tiny.omdet_turbo(root / "omdet-turbo"),
    }


@pytest.fixture
def load(checkpoints):
    from vfm_ops.detect import load_detector

    def loader(family: str, **kwargs):
        return load_detector(f"{family}:{checkpoints[family]}", device="cpu", precision="exact", **kwargs)

    return loader
