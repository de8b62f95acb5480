"""Replacing all rows of one owner in a table that many share, in one commit: readers see the old rows or the new ones."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipelines.lake.lake import Lake, commit, lance, rows_by_fragment
from pipelines.lake.sql import equals


def replace_rows(lake: Lake, table: str, column: str, value: str, rows: pa.RecordBatchReader) -> int:
    """Puts `rows` in the place of those whose string `column` is `value`. Returns the new version. The table must exist.

    New rows are streamed to data files that nobody sees until the commit. A fragment that holds other owners' rows too keeps
    them. StoreError when the table changed meanwhile.
    """
    written = [lance.FragmentMetadata.from_json(f) for f in lake.write_fragments(table, rows)]
    predicate = equals(column, value)
    paths = {f.files[0].path for f in written}

    def replace(dataset: Any) -> int:
        removed, updated = [], []
        for number, count in rows_by_fragment(dataset, predicate).items():
            fragment = dataset.get_fragment(number)
            if count == fragment.metadata.num_rows:
                removed.append(number)
            else:
                updated.append(fragment.delete(predicate))
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=removed, updated_fragments=updated, new_fragments=written, fields_modified=[]
        )
        return int(commit(dataset, operation).version)

    def landed(dataset: Any) -> bool:
        return bool(paths) and paths <= {d.path for f in dataset.get_fragments() for d in f.data_files()}

    version = lake.change(table, "replace rows of", replace, landed)
    return lake.table(table).version if version is None else version


def pin(lake: Lake, table: str, version: int, tag: str) -> None:
    """Tags a version, so that it outlives clean-ups; a tag of that name moves there."""

    def move(dataset: Any) -> None:
        if tag in dataset.tags.list():
            dataset.tags.update(tag, version)
        else:
            dataset.tags.create(tag, version)

    lake.change(table, "tag a version of", move)
