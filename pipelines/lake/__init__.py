"""The lake: table schemas, commits, ledger, quarantine, lease. The only place that imports Lance."""

from pipelines.lake.lake import Lake, filesystem
from pipelines.lake.schema import (
    CHILD_TABLES,
    SCHEMAS,
    embedding_column,
    embedding_field,
    make_asset_id,
    make_frame_id,
    make_run_key,
)

__all__ = [
    "CHILD_TABLES",
    "SCHEMAS",
    "Lake",
    "embedding_column",
    "embedding_field",
    "filesystem",
    "make_asset_id",
    "make_frame_id",
    "make_run_key",
]
