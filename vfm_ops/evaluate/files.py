"""What all writers share: file names that can't escape, files that appear whole, JSON arrays of any length, RLE text."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

import numpy as np

from vfm_ops.errors import UsageError

Row = Mapping[str, Any]


def safe_name(identifier: str) -> str:
    """An id as a file name: one to one, without separators or dots, so that it can neither escape nor lose a suffix."""
    return quote(identifier, safe="").replace(".", "%2E")


def inner_path(name: str) -> str:
    """The name of a file inside a folder, as it is. UsageError when it would leave the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise UsageError(f"{name!r} is no file name inside a folder")
    return name


PICTURES, VIDEOS = (".jpg", ".jpeg", ".png", ".webp"), (".mp4",)


def check_place(path: Path | None, endings: tuple[str, ...] = ()) -> None:
    """Raise UsageError unless a file of one of these endings can be written there: before the work, not after it."""
    if path is None:
        return
    folder = path.absolute().parent
    if endings and path.suffix.lower() not in endings:
        raise UsageError(f"cannot write {path}: its name should end in {' or '.join(endings)}")
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: {folder} is no directory")
    with written_at(path):
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a directory")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise UsageError(f"cannot write {path}: permission denied")


@contextmanager
def written_at(path: Path) -> Iterator[None]:
    """What the system has against a file, in a UsageError's words."""
    try:
        yield
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}") from e


def write_picture(path: Path, rgb: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) in the format that the name's ending says. UsageError where it can't be."""
    import cv2

    check_place(path, PICTURES)
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    with written_at(path):
        path.write_bytes(data.tobytes())


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under its name when it is complete, and leaves nothing behind when writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class JsonArrays:
    """A JSON object whose values are long arrays, written side by side: each waits in a temporary file, not in memory."""

    def __init__(self, names: Iterable[str]) -> None:
        self._stack = ExitStack()
        self._parts: dict[str, IO[str]] = {}
        for name in names:
            # Closed by the stack, with the object: the arrays are open as long as it is.
            self._parts[name] = self._stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self.counts = dict.fromkeys(self._parts, 0)

    def __enter__(self) -> JsonArrays:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, name: str, item: Any) -> None:
        """Append one item to the array `name`. NaN and infinity are refused: they are no JSON."""
        self._parts[name].write(",\n" if self.counts[name] else "")
        json.dump(item, self._parts[name], allow_nan=False)
        self.counts[name] += 1

    def save(self, path: Path, head: Mapping[str, Any]) -> None:
        """Write the object: the items of `head`, then the arrays."""
        with whole_file(path) as file:
            file.write("{" + "".join(f"{json.dumps(k)}: {json.dumps(v)},\n" for k, v in head.items()))
            for i, (name, part) in enumerate(self._parts.items()):
                file.write(",\n" if i else "")
                file.write(f"{json.dumps(name)}: [")
                part.seek(0)
                shutil.copyfileobj(part, file)
                file.write("]")
            file.write("}\n")


def write_json_list(path: Path, items: Iterable[Any]) -> int:
    """A JSON array, item by item; returns how many."""
    count = 0
    with whole_file(path) as file:
        file.write("[")
        for item in items:
            file.write(",\n" if count else "")
            json.dump(item, file, allow_nan=False)
            count += 1
        file.write("]\n")
    return count


def by_asset(rows: Iterable[Row], what: str) -> Iterator[tuple[str, list[Row]]]:
    """Rows of one asset after the other; only one asset is held. Raises UsageError when an asset's rows are scattered."""
    done: set[str] = set()
    for asset, own in groupby(rows, key=lambda row: str(row["asset_id"])):
        if asset in done:
            raise UsageError(f"{what} of asset {asset} are scattered: sort the rows by asset_id")
        done.add(asset)
        yield asset, list(own)


def xywh(box: Any) -> list[float]:
    """xyxy -> x, y, width, height, as the formats have it."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]


def rle_run_lengths(counts: str | bytes) -> list[int]:
    """The run lengths in COCO's compressed RLE text: five bits a character, differences to the run two before."""
    text = counts if isinstance(counts, bytes) else counts.encode("ascii")
    runs: list[int] = []
    value = shift = 0
    for byte in text:
        chunk = byte - 48
        value |= (chunk & 0x1F) << shift
        shift += 5
        if not chunk & 0x20:
            if chunk & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def rle_text(mask: Row) -> dict[str, Any]:
    """A mask column's value as JSON-ready RLE: size as ints, counts as text."""
    counts = mask["counts"]
    return {
        "size": [int(v) for v in mask["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else str(counts),
    }
