"""One saved checkpoint of every transformers detector, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vfm_ops.detect import tiny


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    families = ("grounding-dino", "owlvit", "owlv2", "omdet-turbo")
    return {family: tiny.save_random(family, root / family) for family in families}


@pytest.fixture
def load(checkpoints):
    from vfm_ops.detect import load_detector

    def loader(family: str, **kwargs):
        return load_detector(f"{family}:{checkpoints[family]}", device="cpu", precision="exact", **kwargs)

    return loader
