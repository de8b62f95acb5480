"""What is wrong or slow about a lake, or the store that it lies in: each with what to do."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.lake.indices import EXACT_ROWS
from pipelines.lake.keys import all_tables
from pipelines.lake.lake import Lake, filesystem
from pipelines.lake.maintenance import embedding_columns
from pipelines.lake.query import search_tuning, write_table
from pipelines.lake.schema import FORMAT_VERSION

MOST_FRAGMENTS, SMALL_ROWS = 200, 10_000
LARGEST_UNINDEXED = 50_000


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do when it is not fine."""

    what: str
    found: str
    fine: bool = True
    advice: str = ""


def examine(lake: Lake) -> list[Finding]:
    """Whether the store keeps two writers apart, and the tables are in good order. Writes, and removes, one small table."""
    findings = [_puts_if_absent(lake), *_format(lake), *_fragments(lake), *_indices(lake)]
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
        findings.append(Finding(column, f"{vectors} vectors, {unindexed} in no index", fine, advice))
    return findings
