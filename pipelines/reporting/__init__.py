"""What leaves a lake for people and other tools: `run` writes the report, `export` annotation files, `evaluate` scores; `diff`
and `selection_diff` tell what changed."""

from typing import TYPE_CHECKING

from pipelines.lazy import lazy_exports

__all__ = ["diff_lake", "diff_selections", "write_report"]

if TYPE_CHECKING:
    from pipelines.reporting.diff import diff_lake
    from pipelines.reporting.run import write_report
    from pipelines.reporting.selection_diff import diff_selections
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "diff_lake": f"{__name__}.diff",
            "diff_selections": f"{__name__}.selection_diff",
            "write_report": f"{__name__}.run",
        },
    )
