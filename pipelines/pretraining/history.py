"""The logs of a run, one dict a step, thinned so that a run of a million steps still fits in a checkpoint and on a page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

MOST = 10_000


@dataclass
class History:
    """Logs of training steps (every `stride`-th), and of evaluations. Part of the checkpoint: a resumed run's is whole."""

    stride: int = 1
    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def add(self, logs: dict[str, float]) -> None:
        """One training step's logs; at MOST rows, every second one goes and the stride doubles."""
        if int(logs["step"]) % self.stride:
            return
        self.steps.append({k: float(v) for k, v in logs.items()})
        if len(self.steps) > MOST:
            self.stride *= 2
            self.steps = [row for row in self.steps if int(row["step"]) % self.stride == 0]

    def save(self, path: Path) -> None:
        """As one JSON file."""
        path.write_text(json.dumps(self.__dict__))

    @classmethod
    def load(cls, path: Path) -> History:
        """What `save` wrote."""
        return cls(**json.loads(path.read_text()))
