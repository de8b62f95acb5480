"""Sources: whatever holds images and videos, listed into rows of `assets` as they are found."""

from pipelines.sources.cells import RowReader, media_source
from pipelines.sources.listing import Source, list_source, resolve_sources
from pipelines.sources.rows import LISTED, ListingOptions, Tally

__all__ = ["LISTED", "ListingOptions", "RowReader", "Source", "Tally", "list_source", "media_source", "resolve_sources"]
