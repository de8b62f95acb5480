"""What is wrong or slow about a lake, or the store that it lies in: each with what to do."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from pipelines.lake.indices import EXACT_ROWS, GROWTH
from pipelines.lake.keys import all_tables
from pipelines.lake.lake import Lake, filesystem
from pipelines.lake.maintenance import embedding_columns
from pipelines.lake.query import CHOICE, search_tuning, write_table
from pipelines.lake.schema import FORMAT_VERSION

MOST_FRAGMENTS, SMALL_ROWS = 200, 10_000
LARGEST_UNINDEXED = 50_000
# File systems that lie on other machines, and those that only show an object store as one: without a rename or a link that
# fails where the file is there, two commits of one version may both succeed.
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "lustre", "glusterfs", "beegfs"}
REMOTE |= {"fuse.sshfs", "fuse.glusterfs", "fuse.juicefs"}
OVER_A_BUCKET = {"fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.rclone", "fuse.blobfuse", "fuse.mount-s3"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it. slow: nothing is wrong, but it costs time."""

    what: str
    found: str
    fine: bool = True
    advice: str = ""
    slow: bool = False


def examine(lake: Lake) -> list[Finding]:
    """Whether the store keeps two writers apart, and the tables are in good order. Writes, and removes, one small table."""
    findings = [_puts_if_absent(lake), *_place(lake), *_format(lake), *_fragments(lake), *_indices(lake)]
    bad = lake.count("quarantine")
    if bad:
        findings.append(Finding("quarantine", f"{bad} items", False, "vfm info says why; vfm retry runs them again"))
    return findings


def _puts_if_absent(lake: Lake) -> Finding:
    """All guarantees of a lake rest on one thing: of two writers of the same new file, one is refused."""
    uri = lake.uri(f"doctor-{uuid.uuid4().hex[:12]}")
    rows = pa.table({"probe": [1]})
    try:
        write_table(uri, rows)
        try:
            write_table(uri, rows)
        except (OSError, ValueError):
            return Finding("store", "refuses a second writer of the same file")
        advice = "use one that can put a file only if it is absent: two runs at once would spoil a lake here"
        return Finding("store", "lets two writers make the same file", False, advice)
    except OSError as error:
        reason = str(error).split("\n")[0][:200]
        return Finding(
            "store", f"can't be written ({reason})", False, "check the credentials and rights of the lake's place"
        )
    finally:
        _remove(uri)


def _remove(uri: str) -> None:
    fs, path = filesystem(uri)
    try:
        fs.delete_dir(path)
    except OSError:  # it was never made, or may not be removed: a few hundred bytes
        return


def _place(lake: Lake) -> list[Finding]:
    """Whether a lake's directory lies on this machine."""
    kind = "" if "://" in lake.root else file_system_of(Path(lake.root))
    if kind in OVER_A_BUCKET:
        advice = "name the bucket itself (s3://bucket/prefix): every small file is a request, and renames are copies"
        return [Finding("file system", f"{kind}, over an object store", False, advice)]
    if kind in REMOTE:
        advice = "every commit is some round trips: a local disk, or an object store by its address, is faster"
        return [Finding("file system", f"{kind}, on another machine", advice=advice, slow=True)]
    return []


def file_system_of(path: Path) -> str:
    """The kind of file system that a path lies on, as the system calls it: that of the deepest mount above it. Empty where the
    system does not say."""
    mounts = {Path(m.mountpoint): m.fstype for m in psutil.disk_partitions(all=True)}
    return next((mounts[p] for p in (path.resolve(), *path.resolve().parents) if p in mounts), "")


def _format(lake: Lake) -> list[Finding]:
    if lake.format >= FORMAT_VERSION:
        return []
    return [Finding("format", str(lake.format), False, f"vfm process migrates it to {FORMAT_VERSION}, in place")]


def _fragments(lake: Lake) -> list[Finding]:
    findings = []
    for table in all_tables(lake):
        dataset = lake.dataset(table)
        if dataset is None:
            continue
        count, rows = len(dataset.get_fragments()), dataset.count_rows()
        if count > MOST_FRAGMENTS and rows < SMALL_ROWS * count:
            found = f"{count} fragments of {rows // count} rows"
            findings.append(Finding(f"table {table}", found, False, "vfm index merges them"))
    return findings or [Finding("tables", "few fragments")]


def _indices(lake: Lake) -> list[Finding]:
    findings = []
    for column in embedding_columns(lake):
        dataset: Any = lake.dataset("frames")
        vectors = dataset.count_rows(filter=f"{column} IS NOT NULL")
        if vectors < EXACT_ROWS:
            findings.append(Finding(column, f"{vectors} vectors, scanned"))
            continue
        indexed = search_tuning(dataset, column)
        unindexed = dataset.stats.index_stats(f"{column}_idx")["num_unindexed_rows"] if indexed else vectors
        fine = unindexed <= LARGEST_UNINDEXED
        advice = "" if fine else "vfm index makes searches fast"
        found = f"{vectors} vectors, {unindexed} in no index"
        chosen = json.loads(dataset.config().get(CHOICE + column, "{}"))
        old = fine and bool(indexed) and vectors >= GROWTH * chosen.get("rows", vectors)
        if old:
            found += f"; its kind was chosen when there were {chosen['rows']}"
            advice = "vfm index chooses anew, for a lake of this size"
        findings.append(Finding(column, found, fine, advice, slow=old))
    return findings
