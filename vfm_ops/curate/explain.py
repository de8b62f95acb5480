"""Why an item was kept or dropped: a value for machines, one line for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vfm_ops.errors import UsageError

_SENTENCES = {
    "exact_duplicate": "duplicate of {other} (same bytes)",
    "perceptual_duplicate": "duplicate of {other} ({distance} of 64 hash bits differ)",
    "semantic_duplicate": "duplicate of {other} (cosine {cosine:.3f})",
    "video_copy": "shows {other} from {start_s:.1f} to {end_s:.1f} s",
    "contaminates": "contaminates {evaluation} (item {item})",
    "redundant": "says little that {other} does not, in cluster {cluster} (cosine {cosine:.3f})",
    "over_represented": "over-represented cluster {cluster} ({quota} of {size} kept)",
    "quality": "too {flaw} ({measure} {value:.3g}, limit {limit:.3g})",
    "not_retrieved": "no seed is near",
    "no_vector": "has no usable vector",
    "balanced": "stands for cluster {cluster} ({quota} of {size} kept)",
    "representative": "kept for {count} duplicates ({preference})",
    "retrieved": "near seed {seed} (cosine {cosine:.3f})",
    "class_full": "the seeds' class {label} has clearer items",
    "seed_class": "of the seeds' class {label}",
    "seed_cluster": "in cluster {cluster} with seed {seed}",
    "passed": "passed every step",
}
KEPT = ("balanced", "representative", "retrieved", "seed_class", "seed_cluster", "passed")


@dataclass(frozen=True)
class Reason:
    """kind: one of `reason_kinds()`; facts: what its sentence needs. Raises UsageError when one is missing or unknown."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _SENTENCES:
            raise UsageError(f"unknown reason {self.kind!r}; known: {', '.join(_SENTENCES)}")
        try:
            _SENTENCES[self.kind].format(**self.facts)
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(f"reason {self.kind!r} lacks or misstates a fact: {error}") from error

    @property
    def kept(self) -> bool:
        """Whether an item with this reason is in the selection."""
        return self.kind in KEPT

    @property
    def text(self) -> str:
        """One line: 'kept: ...' or 'dropped: ...'."""
        return f"{'kept' if self.kept else 'dropped'}: {_SENTENCES[self.kind].format(**self.facts)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a table or JSON: kind, facts, kept, text."""
        return {**asdict(self), "kept": self.kept, "text": self.text}


def reason_kinds() -> tuple[str, ...]:
    """All kinds of reasons."""
    return tuple(_SENTENCES)


def cluster_path(path: Sequence[int]) -> str:
    """A path through the hierarchy from the coarsest level to the finest, as in '12/3'."""
    return "/".join(str(int(part)) for part in path)
