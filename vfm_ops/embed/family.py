"""What an embedding family says of itself; `families/` has one file each. No model library is imported here.

Legend: B images, H x W pixels, N patch tokens, C their width, D the embedding's, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vfm_ops.errors import UsageError
from vfm_ops.models.checkpoint import Checkpoint
from vfm_ops.models.registry import Family, families, family_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    Features = tuple[Tensor, Tensor]  # pooled_BD, tokens_BNC

Triple = tuple[float, float, float]
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
# Pillow's numbers, which processors' files name filters by.
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3

Tokenize = Callable[[list[str]], Any]  # texts -> ids, int64 (B, L)


@dataclass(frozen=True)
class Pixels:
    """What a checkpoint was trained with where it has no preprocessor file. mean, std: per RGB channel, in [0, 1]; resample:
    Pillow's number of the filter; naflex: whether images keep their aspect ratio as patches (SigLIP 2)."""

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    resample: int = BICUBIC
    naflex: bool = False


def _as_it_is(text: str, model_type: str) -> str:
    return text


@dataclass(frozen=True)
class TextSide:
    """The text tower of a family whose texts and images share a space.

    tower: the whole model and ids (B, L) -> (B, D). length: L, where the checkpoint does not say. canonical: what is done to a
    text before its tokens, given the model type. tokenizer: where the checkpoint's tokenizer.json is not it.
    """

    tower: Callable[[Any, Tensor], Tensor]
    length: Callable[[Checkpoint], int]
    canonical: Callable[[str, str], str] = _as_it_is
    tokenizer: Callable[[Checkpoint, int], Tokenize] | None = None


@dataclass(frozen=True, kw_only=True)
class EmbeddingFamily(Family):
    """A family of image encoders.

    features: the model and normalised pixels (B, 3, H, W) -> pooled (B, D) and patch tokens (B, N, C) in row order, without
    class and register tokens. model_types: of config.json, each with its own default pixels. load: the whole model of a
    checkpoint in float32 and eval mode; None loads it by transformers' AutoModel. may_lack: prefixes of weights that the
    features don't read. settings: what the model's configuration is overridden by. text: where it embeds texts, too.
    pooling: names the way `features` pools where it changed; converted graphs of another way are not used.
    """

    tasks: tuple[str, ...] = ("embed",)
    features: Callable[[Any, Tensor], Features]
    model_types: Mapping[str, Pixels] = field(default_factory=dict)
    load: Callable[[Checkpoint], nn.Module] | None = None
    may_lack: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: TextSide | None = None
    pooling: Callable[[Checkpoint], str] | None = None


def embedding_family(checkpoint: Checkpoint) -> EmbeddingFamily:
    """The family that embeds with a checkpoint. Raises UsageError where none does."""
    family = family_of(checkpoint)
    if isinstance(family, EmbeddingFamily):
        return family
    known = ", ".join(t for f in families("embed") for t in f.model_types)
    raise UsageError(
        f"{checkpoint.folder} is a {checkpoint.model_type!r} model, of which no image embedding is known: {known}"
    )


def default_pixels(checkpoint: Checkpoint) -> Pixels:
    """What a transformers checkpoint wants where its files don't say."""
    family = family_of(checkpoint)
    return family.model_types[checkpoint.model_type] if isinstance(family, EmbeddingFamily) else Pixels()
