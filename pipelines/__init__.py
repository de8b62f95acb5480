"""Ray Data graphs, which ops in which order on which resources; and the lake that they write. The Python API beside an op's:

    ingest     pictures and videos, wherever they are -> rows of `assets` in a lake
    process    pending assets, under a Recipe -> frames, shots, embeddings, detections, tracks
    search     a text, an image or a frame -> the nearest frames
    curate     a lake -> a selection of it, each item kept or dropped for a stated reason
    pretrain   a selection -> a trained model
    export     detections and tracks -> annotation files

Each but the first takes an open `Lake`. Nothing is imported before it is asked for.
"""

from typing import TYPE_CHECKING

from pipelines.lazy import lazy_exports

__all__ = ["Lake", "Recipe", "curate", "export", "ingest", "pretrain", "process", "search"]

if TYPE_CHECKING:
    from pipelines.curation.run import curate
    from pipelines.lake.lake import Lake
    from pipelines.pretraining.run import pretrain
    from pipelines.process.recipe import Recipe
    from pipelines.process.run import process
    from pipelines.reporting.export import export
    from pipelines.search.run import search
    from pipelines.sources.run import ingest
else:
    from pipelines import process, search  # packages that can be called, which is what their names stand for anyway

    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "Lake": "pipelines.lake.lake",
            "Recipe": "pipelines.process.recipe",
            "curate": "pipelines.curation.run",
            "export": "pipelines.reporting.export",
            "ingest": "pipelines.sources.run",
            "pretrain": "pipelines.pretraining.run",
        },
    )
