"""One served application for all tests of this folder: a small lake, tiny models, loopback."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from jobs.bench.serve import free_port
from pipelines.lake import Lake
from tests.jobs.serve.corpus import make_lake, tiny_clip, tiny_detector, tiny_sam2

LIMITS = {
    "body_bytes": 4 << 20,
    "video_bytes": 8 << 20,
    "pixels": 4_000_000,
    "batch": 32,
    "sessions": 4,
    "results": 500,
}


@dataclass(frozen=True)
class Served:
    """A running server, and what it was made of."""

    url: str
    lake: Lake
    media: Path
    clip: str
    detector: str
    sam2: str

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(f"{self.url}/v1/{path}", timeout=60, **options)

    def post(self, path: str, body: object, **options) -> requests.Response:
        return requests.post(f"{self.url}/v1/{path}", json=body, timeout=60, **options)


@pytest.fixture(scope="session", autouse=True)
def serve_cache(tmp_path_factory):
    """Converted models of these tests, apart from the user's; replicas inherit the variable."""
    before = os.environ.get("VFM_CACHE")
    os.environ["VFM_CACHE"] = str(tmp_path_factory.mktemp("serve-cache"))
    yield
    os.environ.pop("VFM_CACHE") if before is None else os.environ.update(VFM_CACHE=before)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Specs of tiny models with random weights."""
    root = tmp_path_factory.mktemp("serve-models")
    return {
        "clip": tiny_clip(root / "clip"),
        "detector": tiny_detector(root / "owlvit"),
        "sam2": tiny_sam2(root / "sam2"),
    }


@pytest.fixture(scope="package")
def served(tmp_path_factory, serve_cache, models, photographs, bikes, ray_local) -> Served:
    """The application on a free port of loopback."""
    from jobs.serve import end_serving, start

    root = tmp_path_factory.mktemp("served")
    media = root / "media"
    media.mkdir()
    for path in photographs[:8]:
        shutil.copyfile(path, media / path.name)
    shutil.copyfile(bikes, media / "bikes.mp4")
    lake = make_lake(root / "lake", media, models["clip"])
    port = free_port()
    choice = {name: {"spec": spec, "replicas": [1, 1]} for name, spec in models.items()}
    settings = {
        "lake": lake.root,
        "detect": [choice["detector"]],
        "segment": choice["sam2"],
        "track": choice["sam2"],
        "limits": LIMITS,
    }
    start(settings, "127.0.0.1", port)
    yield Served(f"http://127.0.0.1:{port}", lake, media, models["clip"], models["detector"], models["sam2"])
    end_serving()
