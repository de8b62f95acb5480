"""The lake: table schemas, commits, ledger, quarantine, lease. The only place that imports Lance."""

from pipelines.lake.fence import LostLease
from pipelines.lake.lake import Lake, StoreError, filesystem
from pipelines.lake.lease import Lease
from pipelines.lake.ledger import (
    PendingAssets,
    Work,
    forget_replaced,
    quarantined_assets,
    sweep,
)
from pipelines.lake.schema import (
    CHILD_TABLES,
    SCHEMAS,
    make_asset_id,
    make_frame_id,
    make_run_key,
    new_run_id,
    with_nulls,
)
from pipelines.lake.verify import LakeReport, verify_lake
from vfm_ops.embed.columns import (
    embedding_column,
    embedding_field,
    is_model_column,
    patches_column,
    patches_field,
)

__all__ = [
    "CHILD_TABLES",
    "SCHEMAS",
    "Lake",
    "LakeReport",
    "Lease",
    "LostLease",
    "PendingAssets",
    "StoreError",
    "Work",
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
    "quarantined_assets",
    "sweep",
    "verify_lake",
    "with_nulls",
]
