"""The journal of a long video: how far it is, so that a killed run goes on within one chunk.

One file an asset, attempt and epoch, replaced whole: a JSON line (what was written so far) and the state's bytes. It is no
table: nothing in it counts before the asset's ledger row, and it goes when that row is committed. The epoch in its name keeps
a run that lost its lease from writing over its successor's.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipelines.lake.lake import Lake

FOLDER = "journal"


class Journal:
    """The journal of one asset under one run key. etag: of the asset, so that a changed file starts anew.

    table: what the fragments named in its progress were written for.
    """

    def __init__(self, lake: Lake, asset_id: str, run_key: str, etag: str | None, table: str) -> None:
        self.name = hashlib.blake2b(f"{asset_id}\0{run_key}\0{etag}".encode(), digest_size=16).hexdigest()
        self.lake, self.table = lake, table

    def load(self) -> tuple[dict[str, Any], bytes] | None:
        """What `save` was last given. None when there is nothing, or when files that it names are gone.

        Maintenance removes files that nothing refers to once they are a week old: then the video starts anew.
        """
        for name in reversed(_files(self.lake, self.name)):
            if (data := self.lake.get_file(f"{FOLDER}/{name}")) is not None:
                head, _, state = data.partition(b"\n")
                progress = json.loads(head)
                if self.lake.have_files(self.table, progress["fragments"]):
                    return progress, state
        return None

    def save(self, progress: dict[str, Any], state: bytes) -> None:
        """Replaces the journal; a kill leaves the old one or the new one. progress: JSON-able, with a list `fragments`."""
        name = f"{self.name}.{self.lake.epoch:06d}"
        self.lake.put_file(f"{FOLDER}/{name}", json.dumps(progress).encode() + b"\n" + state)


def clear_journals(lake: Lake, names: list[str]) -> None:
    """Removes journals of assets that are settled."""
    for name in names:
        for file in _files(lake, name):
            lake.remove_file(f"{FOLDER}/{file}")


def _files(lake: Lake, name: str) -> list[str]:
    """A journal's files, from the oldest epoch to the newest; the first versions wrote none into the name."""
    return [f for f in lake.list_files(FOLDER) if f.partition(".")[0] == name and not f.endswith((".tmp", ".part"))]
