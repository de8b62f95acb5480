"""Annotating a lake by hand: `pixels` gives its frames to look at, `objects` turns what models answer into annotations."""

from typing import TYPE_CHECKING

from pipelines.lazy import lazy_exports

__all__ = ["LakeFrame", "find_frames", "lake_video", "object_name", "read_frames", "rows_of"]

if TYPE_CHECKING:
    from pipelines.annotation.objects import object_name, rows_of
    from pipelines.annotation.pixels import LakeFrame, find_frames, lake_video, read_frames
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            **dict.fromkeys(["object_name", "rows_of"], f"{__name__}.objects"),
            **dict.fromkeys(["LakeFrame", "find_frames", "lake_video", "read_frames"], f"{__name__}.pixels"),
        },
    )
