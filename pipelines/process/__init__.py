"""`process`: pending assets -> decode -> embed, detect, track -> write -> commit. `run` has the whole way on one screen.

    recipe     what is done to an asset         plan       what a run still has to do, as units
    units      how assets are cut for workers   graph      where units run: on Ray, or without
    chain      the ops in one actor             local      workers without Ray, each a `worker_process`
    stages     the ops of a chain               ops        a recipe's ops, their keys and columns
    commit     results in, commits out          failures   what came back in place of results
    backfill   a new model's column for frames that are there already
The ops are decode, embed, detect, track and write, on tables as `frames` describes them; `store` says whose fault it is when
an object can't be read, and `verify` looks at what is stored.
"""

from typing import TYPE_CHECKING

from pipelines.lazy import lazy_exports, make_callable

__all__ = ["RunSummary", "process"]

if TYPE_CHECKING:
    from pipelines.process.run import RunSummary, process
else:
    __getattr__, __dir__ = lazy_exports(__name__, dict.fromkeys(__all__, f"{__name__}.run"))
    make_callable(__name__)
