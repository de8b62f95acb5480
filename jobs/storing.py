"""Annotations on the command line: the options that those who store them, and those who read them, have alike."""

from __future__ import annotations

import getpass
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from pipelines.lake import Lake
from vfm_ops.errors import UsageError

LakeFolder = Annotated[
    str | None, typer.Option("--lake", help="Take what is named from this lake: by file name, asset or frame id.")
]
StoreFlag = Annotated[bool, typer.Option("--store", help="Keep the objects in the lake's annotations.")]
AuthorOption = Annotated[str | None, typer.Option("--author", help="Who says so; your login name without it.")]
LabelOption = Annotated[
    str | None, typer.Option("--label", help="What the objects are, with --store; a file's entries may say their own.")
]
AnnotationsFlag = Annotated[
    bool, typer.Option("--annotations", help="What people and imports said, instead of what ops found.")
]
AuthorFilter = Annotated[str | None, typer.Option("--author", help="With --annotations: this author's alone.")]
AT_ONCE = 64  # pictures whose objects are stored in one commit


@dataclass
class Annotator:
    """Who annotates which lake, and what is not stored yet. source: how the annotations come about."""

    lake: Lake
    author: str
    source: str
    waiting: list[dict[str, Any]] = field(default_factory=list)
    pictures: int = 0
    stored: int = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Stores the objects of one picture, or video, soon. What they replace, goes."""
        self.waiting += rows
        self.pictures += 1
        if self.pictures % AT_ONCE == 0:
            self.flush()

    def flush(self) -> None:
        """Stores what waits."""
        rows, self.waiting = self.waiting, []
        self.lake.add_annotations(rows, author=self.author, source=self.source, replace=True)
        self.stored += len(rows)

    def finish(self) -> None:
        """Stores what waits, and says how much there was."""
        self.flush()
        print(f"stored {self.stored} annotations by {self.author} in {self.lake.root}", file=sys.stderr)


def open_lake(lake: str | None, store: bool, author: str | None, label: str | None) -> Lake | None:
    """The lake that is named, if one is. UsageError for options that need what is not given."""
    if store and lake is None:
        raise UsageError("--store needs --lake, whose pictures and videos are then named")
    if not store and (author is not None or label is not None):
        raise UsageError("--author and --label go with --store")
    return None if lake is None else Lake.open(lake)


def annotator(lake: Lake | None, store: bool, author: str | None, source: str) -> Annotator | None:
    """Who stores, where something is to be stored. UsageError where nobody says who it is."""
    if lake is None or not store:
        return None
    return Annotator(lake, author or login_name(), source)


def login_name() -> str:
    """Of who types. UsageError where nobody knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container, mostly
        raise UsageError("this user has no name: say who annotates by --author") from None


def annotated(lake: Lake, annotations: bool, author: str | None) -> Lake:
    """The lake, or its annotations in place of what ops found. UsageError where there are none."""
    if not annotations:
        if author is not None:
            raise UsageError("--author goes with --annotations")
        return lake
    from pipelines.reporting.annotated import AnnotatedLake

    part = AnnotatedLake(lake, author)
    if part.left_out:
        print(f"note: {part.left_out} annotated frames are not stored, and are left out", file=sys.stderr)
    return part
