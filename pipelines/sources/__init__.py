"""Sources: whatever holds images and videos, listed into rows of `assets` as they are found. `run` has `ingest`."""

from typing import TYPE_CHECKING

from pipelines.lazy import lazy_exports

__all__ = [
    "LISTED",
    "IngestReport",
    "ListingOptions",
    "RowReader",
    "Source",
    "Tally",
    "ingest",
    "list_source",
    "media_source",
    "resolve_sources",
]

if TYPE_CHECKING:
    from pipelines.sources.cells import RowReader, media_source
    from pipelines.sources.listing import Source, list_source, resolve_sources
    from pipelines.sources.rows import LISTED, ListingOptions, Tally
    from pipelines.sources.run import IngestReport, ingest
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            **dict.fromkeys(["RowReader", "media_source"], f"{__name__}.cells"),
            **dict.fromkeys(["Source", "list_source", "resolve_sources"], f"{__name__}.listing"),
            **dict.fromkeys(["LISTED", "ListingOptions", "Tally"], f"{__name__}.rows"),
            **dict.fromkeys(["IngestReport", "ingest"], f"{__name__}.run"),
        },
    )
