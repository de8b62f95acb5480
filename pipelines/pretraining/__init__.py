"""`pretrain`: a selection -> a trained model. `run` has the whole way; its parts are settings, the items of a lake, the feed,
the worker's loop, checkpoints and the report."""

from typing import TYPE_CHECKING

from pipelines.lazy import lazy_exports

__all__ = ["PretrainSummary", "make_plan", "pretrain", "run_prepared"]

if TYPE_CHECKING:
    from pipelines.pretraining.run import PretrainSummary, pretrain, run_prepared
    from pipelines.pretraining.settings import make_plan
else:
    __getattr__, __dir__ = lazy_exports(
        __name__, {**dict.fromkeys(__all__, f"{__name__}.run"), "make_plan": f"{__name__}.settings"}
    )
