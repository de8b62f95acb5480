"""Which members of a shard belong together, and whose caption and label are whose.

WebDataset's rule is that neighbours which share their name up to the first dot are one sample: 002.jpg, 002.txt and
002.seg.png. Writers put dots into names as well (photo.0000.jpg, photo.0000.txt, photo.0001.jpg, ...), and by that rule a
whole shard is one sample. So each shard is looked at first: how many dots its keys have is what makes its names simplest. A
caption of another item is worse than none: where names leave it open, a member gets none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from pipelines.sources.rows import clean_text

TEXTS = frozenset({"txt", "cls", "json"})
# What is looked at to tell how a shard names its members; the texts among them are held, so that nothing is read twice.
_WINDOW_MEMBERS, _WINDOW_BYTES = 256, 8 << 20
# A longer run of names that begin alike is a folder of files, not a sample.
_SAMPLE_MEMBERS = 64
_MOST_DOTS, _MOST_ROLES = 8, 10_000


@dataclass
class Member:
    """A member of an archive: bytes at an offset. text: its content where it may be a caption or label.

    parts: its base name, split at dots: ['002', 'seg', 'png']. stem: its name up to the last dot.
    """

    name: str
    offset: int
    size: int
    text: bytes | None
    parts: list[str] = field(init=False)
    stem: str = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.name.rpartition("/")[2].split(".")
        self.stem = self.name.rpartition(".")[0] if len(self.parts) > 1 else self.name

    @property
    def ending(self) -> str:
        """What follows the last dot, in lower case."""
        return self.parts[-1].lower() if len(self.parts) > 1 else ""


@dataclass(frozen=True)
class Sample:
    """Neighbours of one key. whole: not a piece of a run too long to be one sample."""

    members: list[Member]
    whole: bool

    @cached_property
    def texts(self) -> dict[str, list[Member]]:
        """Members that may caption or label others, by ending."""
        texts = [m for m in self.members if m.text is not None]
        return {ending: [m for m in texts if m.ending == ending] for ending in {m.ending for m in texts}}


class Naming:
    """How one shard names its members: keys with so many dots, then the role within the sample (`seg`), then the ending."""

    def __init__(self, members: Iterable[Member]) -> None:
        """members: the first ones of the shard."""
        members = list(members)
        most = min(max((len(m.parts) - 2 for m in members), default=0), _MOST_DOTS)
        self._dots = 0
        self._dots = min(range(max(most, 0) + 1), key=lambda dots: self._complexity(members, dots))
        self._roles: dict[str, str | None] = {}  # role: the only key that has it so far, None for several
        self._one_key: str | None = None
        self._many_keys = False
        for member in members:
            self.see(member)

    def key(self, member: Member) -> str:
        """What the members of one sample share."""
        rest = len(member.parts) - self._key_parts(member)
        return member.name.rsplit(".", rest)[0] if rest else member.name

    def role(self, member: Member) -> str:
        """What distinguishes a member within its sample, besides the ending: `seg` of 002.seg.png, often nothing."""
        return ".".join(member.parts[self._key_parts(member) : -1]).lower()

    def see(self, member: Member) -> str:
        """Takes a member into account, a role being one when several samples have it; gives its key."""
        key, role = self.key(member), self.role(member)
        self._many_keys = self._many_keys or (self._one_key is not None and self._one_key != key)
        self._one_key = self._one_key or key
        if role in self._roles:
            if self._roles[role] != key:
                self._roles[role] = None
        elif len(self._roles) < _MOST_ROLES:
            self._roles[role] = key
        return key

    def is_role(self, member: Member) -> bool:
        """Whether a member is a part of its sample, and not an item of its own whose name happens to begin alike."""
        role = self.role(member)
        if not role or not self._many_keys:
            return not role or role[0].isalpha()
        return self._roles.get(role, "") is None

    def _key_parts(self, member: Member) -> int:
        return max(1, min(self._dots + 1, len(member.parts) - 1))

    def _complexity(self, members: list[Member], dots: int) -> int:
        """How many keys, roles and endings it takes to spell all names, were there so many dots in a key."""
        self._dots = dots
        return len({self.key(m) for m in members}) + len({(self.role(m), m.ending) for m in members})


def group_samples(members: Iterator[Member]) -> Iterator[tuple[Sample, Naming]]:
    """Streams a shard's samples, in order; holds the first members, and later one sample."""
    window, held = [], 0
    for member in members:
        window.append(member)
        held += len(member.text or b"")
        if len(window) == _WINDOW_MEMBERS or held > _WINDOW_BYTES:
            break
    naming = Naming(window)
    run: list[Member] = []
    run_key, whole = "", True
    for member in chain(window, members):
        key = naming.see(member)
        if run and (key != run_key or any(m.name == member.name for m in run)):
            yield Sample(run, whole), naming
            run, whole = [], True
        elif len(run) == _SAMPLE_MEMBERS:
            # What shares the last name up to its ending may go on.
            cut = next((i for i in range(len(run), 0, -1) if run[i - 1].stem != run[-1].stem), len(run))
            yield Sample(run[:cut], False), naming
            run, whole = run[cut:], False
        run.append(member)
        run_key = key
    if run:
        yield Sample(run, whole), naming


def caption_and_label(
    member: Member, sample: Sample, naming: Naming, pictures: list[Member]
) -> tuple[str | None, str | None]:
    """Caption and label of a member. pictures: those of the sample, which has texts for them."""
    caption = label = None
    if not sample.texts:
        return None, None
    if (text := _text_for(member, "txt", sample, naming, pictures)) is not None:
        caption = clean_text(text)
    if (text := _text_for(member, "cls", sample, naming, pictures)) is not None:
        label = clean_text(text)
    if (text := _text_for(member, "json", sample, naming, pictures)) is not None:
        found = _from_json(text)
        caption, label = caption or found[0], label or found[1]
    return caption, label


def _text_for(member: Member, ending: str, sample: Sample, naming: Naming, pictures: list[Member]) -> bytes | None:
    texts = sample.texts.get(ending, [])
    for text in texts:
        if text.stem == member.stem:
            return text.text
    if not (texts and sample.whole and naming.is_role(member)):
        return None
    general = [text for text in texts if not naming.role(text)]
    if not general and len(texts) == len(pictures) == 1 and naming.is_role(texts[0]):
        general = texts
    if not general:
        return None
    # 1.txt is of 1.jpg; that 1.5.jpg is a part of the same sample is no more likely than that it is another item.
    has_own = any(picture.stem == general[0].stem for picture in pictures)
    return None if has_own and not naming.role(member)[:1].isalpha() else general[0].text


def _from_json(data: bytes) -> tuple[str | None, str | None]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(record, dict):
        return None, None

    def first(*names: str) -> str | None:
        values = (record.get(name) for name in names)
        return next((str(v).strip() for v in values if isinstance(v, str | int) and str(v).strip()), None)

    return first("caption", "text"), first("label", "cls", "class")
