"""The journal of a long video: how far it is, so that a killed run goes on within one chunk.

One file an asset and attempt, replaced whole: a JSON line (what was written so far) and the state's bytes. It is no table:
nothing in it counts before the asset's ledger row, and it goes when that row is committed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow.fs as pafs

from pipelines.lake.lake import Lake, filesystem

FOLDER = "journal"


class Journal:
    """The journal of one asset under one run key. etag: of the asset, so that a changed file starts anew."""

    def __init__(self, lake: Lake, asset_id: str, run_key: str, etag: str | None) -> None:
        name = hashlib.blake2b(f"{asset_id}\0{run_key}\0{etag}".encode(), digest_size=16).hexdigest()
        self._fs, root = filesystem(lake.root)
        self._folder, self.name = f"{root}/{FOLDER}", name

    @property
    def _path(self) -> str:
        return f"{self._folder}/{self.name}"

    def load(self) -> tuple[dict[str, Any], bytes] | None:
        """What `save` was last given; None when there is nothing."""
        if self._fs.get_file_info(self._path).type == pafs.FileType.NotFound:
            return None
        with self._fs.open_input_file(self._path) as f:
            head, _, state = f.read().partition(b"\n")
        return json.loads(head), state

    def save(self, progress: dict[str, Any], state: bytes) -> None:
        """Replaces the journal; a kill leaves the old one or the new one."""
        self._fs.create_dir(self._folder, recursive=True)
        local = isinstance(self._fs, pafs.LocalFileSystem)
        path = f"{self._path}.part" if local else self._path  # a store shows an object only when it is whole
        with self._fs.open_output_stream(path) as f:
            f.write(json.dumps(progress).encode() + b"\n" + state)
        if local:
            self._fs.move(path, self._path)


def clear_journals(lake: Lake, names: list[str]) -> None:
    """Removes journals of assets that are settled."""
    fs, root = filesystem(lake.root)
    for name in names:
        path = f"{root}/{FOLDER}/{name}"
        if fs.get_file_info(path).type != pafs.FileType.NotFound:
            fs.delete_file(path)
