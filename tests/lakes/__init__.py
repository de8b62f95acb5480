"""Lakes as released versions wrote them, packed: later versions must read them, go on with them, and migrate them.

    formatN/lake.tar.xz     a lake of format N, the last run on it killed in the middle of a video's tracks
    formatN/corpus.tar.xz   the files it was made from; its assets lie in /corpus
    formatN/expected.json   rows of the same lake when that run was not killed: {table: [row]}, without what differs in any run

Format 1 was made by 0.1.0, from the drawn corpus of `tests/chaos/corpus.py`, with the recipe that lies in it:
ingest first; process; index; retry; ingest second; embed clip:pocket; curate --selection first; index; process, killed.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from pipelines.lake import Lake

HERE = Path(__file__).parent


def unpack(version: int, folder: Path) -> tuple[Lake, Path]:
    """The lake of a format, and its corpus, unpacked; the assets are told where their files lie now."""
    for name in ("lake", "corpus"):
        with tarfile.open(HERE / f"format{version}" / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    lake = Lake.open(folder / "lake")
    lake.update("assets", {"uri": f"replace(uri, '/corpus/', '{folder}/corpus/')"}, "asset_id IS NOT NULL")
    return lake, folder / "corpus"


def expected(version: int) -> dict[str, list[dict[str, Any]]]:
    """Rows by table."""
    return json.loads((HERE / f"format{version}" / "expected.json").read_text())
