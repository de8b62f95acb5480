"""Assets by the names that people know them by: where their files lay, below the folder that all have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote

from pipelines.lake import Lake
from vfm_ops.errors import UsageError

_LONGEST = 240  # bytes of one component, which file systems hold to 255


class AssetNames:
    """Names of a lake's assets, or of those of an iterable of (asset_id, uri, member)."""

    def __init__(self, assets: Lake | Iterable[tuple[str, str, str | None]]) -> None:
        rows = _rows(assets) if isinstance(assets, Lake) else assets
        self._parts: dict[str, tuple[str, ...]] = {}
        self.source: dict[str, str] = {}
        for asset_id, uri, member in rows:
            self._parts[asset_id] = _components(uri, member)
            self.source[asset_id] = uri if member is None else f"{uri}#{member}"
        common = _common([parts[:-1] for parts in self._parts.values()])
        self._below = {i: parts[common:] for i, parts in self._parts.items()}
        self._bare = Counter(self._without_ending(i) for i in self._below)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for asset_id, parts in self._parts.items():
            for name in {parts[-1], PurePosixPath(parts[-1]).stem}:
                self._by_name[name].append(asset_id)

    def __contains__(self, asset_id: str) -> bool:
        return asset_id in self._parts

    def original(self, asset_id: str) -> str:
        """The asset's own file name, with the folders below the common one: `cats/1.png`."""
        return "/".join(self._safe(part) for part in self._below[asset_id])

    def picture(self, asset_id: str) -> str:
        """A name for its picture as JPEG: its own where that is one, else with the ending `.jpg`; no two are the same."""
        name = self.original(asset_id)
        if PurePosixPath(name).suffix.lower() in (".jpg", ".jpeg"):
            return name
        return f"{name if self._shared(asset_id) else self.folder(asset_id)}.jpg"

    def folder(self, asset_id: str) -> str:
        """A name for a folder of its frames: its own without the ending, where no other asset differs in that alone."""
        return self.original(asset_id) if self._shared(asset_id) else self._without_ending(asset_id)

    def frame(self, asset_id: str, frame_index: int) -> str:
        """A name for one frame of a video: `clips/dog/000012.jpg`."""
        return f"{self.folder(asset_id)}/{frame_index:06d}.jpg"

    def flat(self, asset_id: str) -> str:
        """As `folder`, in one component: for formats that have a file a video."""
        return self.folder(asset_id).replace("/", "__")

    def find(self, name: str) -> str:
        """The asset of an id, or of a file name with or without its ending, and with as many of its folders as it takes.

        Raises UsageError when there is none, or more than one.
        """
        if name in self._parts:
            return name
        wanted = tuple(part for part in PurePosixPath(name).parts if part not in ("/", "."))
        found = self._by_name.get(wanted[-1] if wanted else "", [])
        found = found or self._by_name.get(PurePosixPath(name).stem, [])
        inside = [i for i in found if self._parts[i][:-1][len(self._parts[i]) - len(wanted) :] == wanted[:-1]]
        found = inside if inside else found
        if not found:
            raise UsageError(f"the lake has no asset {name!r}: give its id or its file name")
        if len(found) > 1:
            shown = ", ".join(f"{self.original(i)} ({i})" for i in sorted(found)[:3])
            raise UsageError(
                f"{len(found)} assets are named {name!r}, such as {shown}: give more of the path, or an asset's id"
            )
        return found[0]

    def _shared(self, asset_id: str) -> bool:
        return self._bare[self._without_ending(asset_id)] > 1

    def _without_ending(self, asset_id: str) -> str:
        *folders, last = (self._safe(part) for part in self._below[asset_id])
        return "/".join([*folders, PurePosixPath(last).stem])

    @staticmethod
    def _safe(part: str) -> str:
        """A component that can neither leave its folder nor be too long for a file system."""
        clean = part.replace("\0", "%00").replace("\\", "%5C")
        if not clean.strip("."):
            clean = clean.replace(".", "%2E")
        encoded = clean.encode("utf-8", "backslashreplace")
        return encoded[-_LONGEST:].decode("utf-8", "ignore")


def _rows(lake: Lake) -> Iterable[tuple[str, str, str | None]]:
    for batch in lake.scan("assets", ["asset_id", "uri", "member"], batch_size=4096):
        yield from ((r["asset_id"], r["uri"], r["member"]) for r in batch.to_pylist())


def _components(uri: str, member: str | None) -> tuple[str, ...]:
    path = unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri.partition("://")[2] or uri
    whole = path if member is None else f"{path}/{member}"
    return tuple(part for part in whole.split("/") if part not in ("", ".")) or ("unnamed",)


def _common(paths: list[tuple[str, ...]]) -> int:
    """How many leading components all paths share; of sorted ones, the first and the last tell."""
    if not paths:
        return 0
    first, last = min(paths), max(paths)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
