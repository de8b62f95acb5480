"""Scenarios: a corpus, the commands that make a lake of it, and one more command, run calmly once and then with faults."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.lake import Lake
from tests.chaos.commands import Run, calls, run
from tests.chaos.corpus import change_corpus, draw_corpus
from tests.chaos.rows import ATTEMPT, differences
from tests.vfm_ops.track.conftest import tiny_model

RECIPES = {
    "plain": "sampling: {fps: 2}\nshots: {detector: content}\n",
    "vectors": "sampling: {fps: 2}\nshots: {detector: content}\nembed: timm:pocket\n",
    "denser": "sampling: {fps: 4}\nshots: {detector: content}\n",
    "filtered": "sampling: {fps: 2}\nshots: {detector: content}\nquality: {min_contrast: 0.044}\n",
    "loosened": "sampling: {fps: 4}\nshots: {detector: content}\nquality: {min_contrast: 0.01}\nembed: timm:pocket\n",
    "boxes": 'sampling: {fps: 2}\nshots: {detector: content}\ndetect: "a red square ."\n',
    # SAM2: a tiny model with random weights; a real one takes a second a frame.
    "track": 'sampling: {fps: 2}\ndetect: "a red square ."\ntrack: {model: "sam2:SAM2", chunk_frames: 6, detect_every: 6}\n',
}


@dataclass(frozen=True)
class Scenario:
    """Commands that make a lake, and the one that is killed. Words in braces: LAKE, and files of the corpus.

    cases: kills in the full suite; at least one at every write, before and after it.
    """

    name: str
    before: tuple[str | Callable[[Path], None], ...]
    command: str
    cases: int
    ignore: frozenset[str] = frozenset()


SCENARIOS = [
    Scenario("ingest", (), "ingest {first} --lake {lake}", 30),
    Scenario(
        "ingest of changed files",
        ("ingest {first} --lake {lake}", "process --lake {lake} --recipe {plain}", change_corpus),
        "ingest {first} --lake {lake}",
        40,
    ),
    Scenario("process", ("ingest {first} --lake {lake}",), "process --lake {lake} --recipe {vectors}", 100),
    Scenario(
        "process by another recipe",
        ("ingest {first} --lake {lake}", "process --lake {lake} --recipe {plain}"),
        "process --lake {lake} --recipe {denser}",
        80,
    ),
    Scenario(
        "embed",
        (
            "ingest {first} --lake {lake}",
            "process --lake {lake} --recipe {plain}",
            "ingest {second} --lake {lake}",
            "process --lake {lake} --recipe {plain}",
        ),
        "embed --lake {lake} --model timm:pocket",
        40,
    ),
    Scenario(
        "an op that comes late, a looser filter, another sampling",
        ("ingest {first} --lake {lake}", "process --lake {lake} --recipe {filtered}"),
        "process --lake {lake} --recipe {loosened}",
        60,
    ),
    Scenario(
        "a tighter filter, a sampling that was there before",
        (
            "ingest {first} --lake {lake}",
            "process --lake {lake} --recipe {filtered}",
            "process --lake {lake} --recipe {loosened}",
        ),
        "process --lake {lake} --recipe {filtered}",
        40,
    ),
    Scenario(
        "boxes that come late",
        ("ingest {first} --lake {lake}", "process --lake {lake} --recipe {plain}"),
        "process --lake {lake} --recipe {boxes}",
        16,
    ),
    Scenario("track", ("ingest {clips} --lake {lake}",), "process --lake {lake} --recipe {track}", 40),
    Scenario(
        "curate",
        ("ingest {first} --lake {lake}", "process --lake {lake} --recipe {vectors}"),
        "curate --lake {lake}",
        40,
    ),
    Scenario(
        "index",
        (
            "ingest {first} --lake {lake}",
            "process --lake {lake} --recipe {vectors}",
            "ingest {second} --lake {lake}",
            "process --lake {lake} --recipe {vectors}",
        ),
        "index --lake {lake} --keep-days 0",
        40,
    ),
    Scenario(
        "retry",
        ("ingest {first} --lake {lake}", "process --lake {lake} --recipe {plain}"),
        "retry --lake {lake} --recipe {plain}",
        40,
        frozenset(ATTEMPT),
    ),
]


@dataclass
class Stage:
    """A corpus, the lake that a scenario starts from, and what its command makes of it when nobody kills it."""

    folder: Path
    scenario: Scenario
    words: dict[str, str] = field(default_factory=dict)
    writes: int = 0
    store: str = ""  # where lakes lie, instead of the folder: a prefix of an object store

    def prepare(self) -> None:
        """Makes both lakes."""
        corpus = draw_corpus(self.folder / "corpus")
        (corpus / "clips").mkdir()
        for name in ("first/clip0.mp4", "second/clip.mp4"):
            shutil.copyfile(corpus / name, corpus / "clips" / Path(name).name)
        if self.scenario.name == "track":
            tiny_model().save_pretrained(self.folder / "sam2")
        for name, text in RECIPES.items():
            (self.folder / f"{name}.yaml").write_text(text.replace("SAM2", str(self.folder / "sam2")))
            self.words[name] = str(self.folder / f"{name}.yaml")
        self.words |= {part: str(corpus / part) for part in ("first", "second", "clips")}
        for step in self.scenario.before:
            if isinstance(step, str):
                assert run(self.run(step, "start"))[0] in (0, 1), self.log("start")
            else:
                step(corpus)
        self.copy("start", "expected")
        code, self.writes = run(self.run(self.scenario.command, "expected"))
        assert code in (0, 1), self.log("expected")

    def run(self, line: str, lake: str, **options: object) -> Run:
        """A command of the scenario on one of its lakes."""
        words = self.words | {"lake": self.root(lake)}
        argv = tuple(word.format(**words) for word in line.split())
        return Run(argv, log=str(self.folder / f"{lake}.log"), **options)  # type: ignore[arg-type]

    def root(self, lake: str) -> str:
        """Where a lake lies."""
        return f"{self.store}/{lake}" if self.store and lake != "expected" else str(self.folder / lake)

    def copy(self, lake: str, to: str) -> None:
        """A lake copied, where it is there."""
        if (self.folder / lake).exists():
            shutil.copytree(self.folder / lake, self.folder / to)

    def log(self, lake: str) -> str:
        """What the commands on a lake printed last."""
        return (self.folder / f"{lake}.log").read_text()[-1500:]

    def differences(self, lake: str) -> list[str]:
        """What differs in a lake from the calm run; it is removed when nothing does."""
        found = calls(_compare, self.root("expected"), self.root(lake), set(self.scenario.ignore))
        if not found and not self.store:
            shutil.rmtree(self.folder / lake)
        return found


def _compare(expected: str, got: str, ignore: set[str]) -> list[str]:
    return differences(Lake.open(expected), Lake.open(got), ignore)
