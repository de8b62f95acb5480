"""`search`: a text, an image or a frame in, the nearest frames of a lake out. `columns` says which model made which vectors."""

from typing import TYPE_CHECKING

from pipelines.lazy import lazy_exports, make_callable

__all__ = ["Hit", "Query", "SearchResult", "hit_pictures", "search"]

if TYPE_CHECKING:
    from pipelines.search.result import Hit, SearchResult, hit_pictures
    from pipelines.search.run import Query, search
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            **dict.fromkeys(["Hit", "SearchResult", "hit_pictures"], f"{__name__}.result"),
            **dict.fromkeys(["Query", "search"], f"{__name__}.run"),
        },
    )
    make_callable(__name__)
