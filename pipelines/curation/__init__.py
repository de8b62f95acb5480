"""`curate`: every item of a lake is kept or dropped, for a stated reason. `run` has the steps, `selections` what is stored."""

from typing import TYPE_CHECKING

from pipelines.lazy import lazy_exports

__all__ = ["CurationRecipe", "CurationSummary", "curate", "reproduce"]

if TYPE_CHECKING:
    from pipelines.curation.recipe import CurationRecipe
    from pipelines.curation.run import CurationSummary, curate, reproduce
else:
    __getattr__, __dir__ = lazy_exports(
        __name__, {**dict.fromkeys(__all__, f"{__name__}.run"), "CurationRecipe": f"{__name__}.recipe"}
    )
