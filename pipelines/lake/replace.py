"""Replacing all rows of one owner in a table that many share, in one commit: readers see the old rows or the new ones."""

from __future__ import annotations

import pyarrow as pa

from pipelines.lake.lake import Lake, lance
from vfm_ops.errors import VfmError


def replace_rows(lake: Lake, table: str, column: str, value: str, rows: pa.RecordBatchReader) -> int:
    """Puts `rows` in the place of those whose string `column` is `value`. Returns the new version. The table must exist.

    New rows are streamed to data files that nobody sees until the commit. A fragment that holds other owners' rows too keeps
    them. VfmError when the table changed meanwhile.
    """
    written = [lance.FragmentMetadata.from_json(f) for f in lake.write_fragments(table, rows)]
    dataset = lake.table(table)
    predicate = f"{column} = '" + value.replace("'", "''") + "'"
    removed, updated = [], []
    for fragment in dataset.get_fragments():
        count = fragment.count_rows(filter=predicate)
        if count and count == fragment.count_rows():
            removed.append(fragment.fragment_id)
        elif count:
            updated.append(fragment.delete(predicate))
    operation = lance.LanceOperation.Update(
        removed_fragment_ids=removed, updated_fragments=updated, new_fragments=written, fields_modified=[]
    )
    try:
        return int(lance.LanceDataset.commit(dataset.uri, operation, read_version=dataset.version).version)
    except OSError as e:
        raise VfmError(f"cannot replace rows of table {table} of {lake.root}: {str(e).splitlines()[0][:300]}") from e


def pin(lake: Lake, table: str, version: int, tag: str) -> None:
    """Tags a version, so that it outlives clean-ups; a tag of that name moves there."""
    tags = lake.table(table).tags
    if tag in tags.list():
        tags.update(tag, version)
    else:
        tags.create(tag, version)
