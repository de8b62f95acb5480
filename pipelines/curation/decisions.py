"""Who is dropped and who is kept, and why: arrays while it is decided, one line of prose an item when it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vfm_ops.curate.explain import Reason
from vfm_ops.errors import UsageError

Fact = np.ndarray | list[Any] | str | int | float


@dataclass(frozen=True)
class Decision:
    """One reason for many items. facts: per item (arrays, lists) or for all; `other` holds item numbers."""

    kind: str
    items: np.ndarray
    facts: dict[str, Fact]

    def facts_of(self, place: int, name: Callable[[int], str]) -> dict[str, Any]:
        """The facts of the place-th item, with `other` as a frame id."""
        facts = {k: v[place] if isinstance(v, np.ndarray | list) else v for k, v in self.facts.items()}
        if isinstance(other := facts.get("other"), np.integer):
            facts["other"] = name(int(other))
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in facts.items()}


@dataclass
class Decisions:
    """What is decided on each of N items: nothing yet (it is alive), or the decision that settled it."""

    count: int
    made: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.number = np.full(self.count, -1, np.int32)
        self.place = np.zeros(self.count, np.int64)

    @property
    def alive(self) -> np.ndarray:
        """Items not settled yet: bool (N,)."""
        return self.number < 0

    def settle(self, kind: str, items: np.ndarray, **facts: Fact) -> None:
        """Gives items their reason. Raises UsageError when one of them has a reason already."""
        if not len(items):
            return
        if (self.number[items] >= 0).any():
            raise UsageError(f"an item was settled twice, the second time as {kind}")
        self.number[items] = len(self.made)
        self.place[items] = np.arange(len(items))
        self.made.append(Decision(kind, items, facts))

    def release(self, items: np.ndarray) -> None:
        """Takes the reason from items, which are to be decided again."""
        self.number[items] = -1

    def kinds(self) -> np.ndarray:
        """Kind of each item's reason, object (N,); None while it is alive."""
        names = np.array([v.kind for v in self.made] + [None], object)
        return names[self.number]

    def reasons(
        self, items: np.ndarray, name: Callable[[int], str]
    ) -> Iterator[tuple[Reason, str | None, float | None]]:
        """For each item its reason, which item or asset it refers to, and how near that is (cosine, or bits)."""
        for number, place in zip(self.number[items].tolist(), self.place[items].tolist()):
            decision = self.made[number]
            facts = decision.facts_of(place, name)
            score = facts.get("cosine", facts.get("distance"))
            yield Reason(decision.kind, facts), facts.get("other"), None if score is None else float(score)

    def tally(self) -> dict[str, int]:
        """Items by kind of reason, in the order in which the steps ran."""
        counts = np.bincount(self.number[self.number >= 0], minlength=len(self.made))
        out: dict[str, int] = {}
        for decision, count in zip(self.made, counts.tolist(), strict=True):
            if count:
                out[decision.kind] = out.get(decision.kind, 0) + count
        return out
