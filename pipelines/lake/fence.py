"""The fence: an epoch in the config of every table, raised when the lake is taken from a run that did not give it back.

A commit prepared before a Restore is incompatible with it, whatever the commit does (append, delete, update, merge, columns,
compaction, index), on any store whose commits are put-if-absent; transaction properties and config updates do not do that. So
a takeover writes the new epoch and then restores the version that it finds: handles that were opened earlier can no longer
commit, and a run that opens the table later sees an epoch that is not its own (`Lake.change`). A table without the key is of
epoch 0.
"""

from __future__ import annotations

from typing import Any

from pipelines.lake.lake import Lake, commit, lance
from vfm_ops.errors import VfmError

EPOCH = "vfm.epoch"


class LostLease(VfmError):
    """Another run took the lake, since this one seemed dead; what it committed stays, and it must stop."""


def epoch_of(dataset: Any) -> int:
    """The epoch of a table at the version of a handle."""
    return int(dataset.config().get(EPOCH, 0))


def raise_fence(lake: Lake, table: str, epoch: int) -> None:
    """Raises the epoch of a table and makes all older handles fail. LostLease where it is higher already.

    A kill in the middle leaves a lease that was never given back: the next run raises the epoch again, and restores.
    """

    def once(tries: int) -> None:
        dataset = lake.table(table)
        if epoch_of(dataset) > epoch:
            raise LostLease(f"another run has taken the lake {lake.root}: this one stops, and what it committed stays")
        if epoch_of(dataset) < epoch:
            dataset.update_config({EPOCH: str(epoch)})
            dataset = lake.table(table)
        read = target = dataset.version
        while (restored := commit(dataset, lance.LanceOperation.Restore(target), read).version) != read + 1:
            # An older handle's commit slipped in and was undone. Its run was told that it is in: bring it back.
            target, read = restored - 1, restored

    lake.attempt(f"fence table {table}", once)
