"""What came back in place of results: items that raised or killed their worker, or that only their store kept from being read.

An item is given up only once it ran alone, so that what is one item's fault takes no other along; and never where no worker
lives long enough for anything at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.lake import Lake, PendingAssets, Work
from pipelines.process.commit import Committer
from pipelines.process.frames import Outcome
from pipelines.process.local import DEATHS
from pipelines.process.units import empty_unit
from pipelines.process.write import WORKER_DIED, UnitError
from vfm_ops.errors import UsageError, VfmError

Run = Callable[[list[pa.Table]], Iterable[pa.Table]]

logger = logging.getLogger(__name__)


@dataclass
class Failures:
    """What came back in place of results."""

    interrupted: set[str] = field(default_factory=set)  # assets whose store failed while they were read
    raised: dict[str, UnitError] = field(default_factory=dict)  # by asset: what a unit of that asset alone raised
    last: UnitError | None = None

    def note(self, result: dict[str, Any]) -> None:
        """Takes a RESULT row. Raises what is the run's fault and not an item's."""
        self.interrupted.update(result["interrupted"])
        if result["error"] is None:
            return
        self.last = UnitError(**json.loads(result["error"]))
        if self.last.exit_code is not None:
            raise UsageError(self.last.message) if self.last.exit_code == 2 else VfmError(self.last.message)
        if len(self.last.asset_ids) == 1:
            self.raised[self.last.asset_ids[0]] = self.last
        else:
            logger.info("a unit failed; each of its items is tried again alone:\n%s", self.last.traceback)


def give_up(lake: Lake, work: Work, committer: Committer, failures: Failures, run: Run) -> None:
    """Quarantines what ran alone and is still pending: with what it raised, or else its worker died.

    run: gives the results of units. Not what a store failed on; and nothing where no worker lives long enough for anything at
    all.
    """
    checked = bool(committer.settled or any(error.kind != WORKER_DIED for error in failures.raised.values()))
    for batch in PendingAssets(lake, work):
        version = lake.table("assets").version
        for asset in lake.take("assets", batch["_rowid"].to_pylist(), version).to_pylist():
            if asset["asset_id"] in failures.interrupted:
                continue
            if not checked:
                _check_workers(run)
                checked = True
            committer.add_outcome(asdict(_failed({**asset, "attempt": 1}, work, failures)))
    committer.flush(last=True)


def _failed(asset: dict[str, Any], work: Work, failures: Failures) -> Outcome:
    outcome = Outcome.of(asset, work.key, work.op)
    if (error := failures.raised.get(asset["asset_id"])) is not None:
        outcome.fail("process", error.kind, error.message, error.traceback)
    else:
        outcome.fail(
            "process",
            WORKER_DIED,
            f"the worker died each of the {DEATHS} times that it ran this item alone; look at Ray's logs, then vfm retry",
        )
    return outcome


def _check_workers(run: Run) -> None:
    """Runs a unit of nothing. VfmError when that kills its worker, too: then no item is to blame."""
    if not any(True for _ in run([empty_unit()])):
        raise VfmError(
            "every worker died before it had done anything: memory is the usual reason, then set resources.actors lower; on a "
            "cluster, Ray's logs in /tmp/ray/session_latest/logs say more"
        )
