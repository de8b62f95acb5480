"""The lake: table schemas, commits, ledger, quarantine, lease. The only place that imports Lance."""

from pipelines.lake.lake import Lake, filesystem
from pipelines.lake.lease import Lease, new_run_id
from pipelines.lake.ledger import (
    LakeReport,
    forget_replaced,
    pending_assets,
    quarantined_assets,
    settled_assets,
    sweep,
    verify_lake,
)
from pipelines.lake.schema import (
    CHILD_TABLES,
    SCHEMAS,
    embedding_column,
    embedding_field,
    is_model_column,
    make_asset_id,
    make_frame_id,
    make_run_key,
    patches_column,
    patches_field,
    with_nulls,
)

__all__ = [
    "CHILD_TABLES",
    "SCHEMAS",
    "Lake",
    "LakeReport",
    "Lease",
    "embedding_column",
    "embedding_field",
    "filesystem",
    "forget_replaced",
    "is_model_column",
    "make_asset_id",
    "make_frame_id",
    "make_run_key",
    "new_run_id",
    "patches_column",
    "patches_field",
    "pending_assets",
    "quarantined_assets",
    "settled_assets",
    "sweep",
    "verify_lake",
    "with_nulls",
]
