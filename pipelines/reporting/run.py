"""A report: one HTML file about a lake and a selection of it, that opens from disk and asks nobody for anything."""

from __future__ import annotations

import html
import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.curation import selections
from pipelines.curation.items import Items, load_items
from pipelines.curation.selections import Manifest
from pipelines.lake import Lake
from pipelines.reporting import selected as parts
from pipelines.reporting import tables
from pipelines.reporting.pictures import Thumbnails
from pipelines.search.columns import embedding_columns
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.files import check_place, written_at


def write_report(lake: Lake, out: Path, selection: str | None = None) -> int:
    """Writes the report. Returns its size in bytes, which stays below 20 MB as pictures and points are sampled.

    selection: which one to show; the only one when None. Raises UsageError for an unknown selection, an ambiguous choice, or
    a place that can't be written.
    """
    check_place(out)
    manifest = choose_selection(lake, selection)
    page = render(collect(lake, manifest))
    with written_at(out):
        out.write_text(page, encoding="utf-8")
    return len(page.encode())


def choose_selection(lake: Lake, wanted: str | None) -> Manifest | None:
    """The manifest of the selection to show; None for a lake without any."""
    known = selections.list_selections(lake)
    if wanted is None and len(known) > 1:
        raise UsageError(f"{lake.root} has several selections: name one as `selection`; there are {', '.join(known)}")
    if wanted is None and not known:
        return None
    return selections.open_selection(lake, wanted or known[0])


def collect(lake: Lake, manifest: Manifest | None) -> dict[str, Any]:
    """Everything that the page shows, as JSON-able values."""
    facts: dict[str, Any] = {
        "lake": lake.root,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "counts": tables.table_counts(lake),
        "manifest": _manifest_facts(manifest) if manifest else None,
        "quarantine": tables.quarantine_causes(lake),
        "runs": tables.run_history(lake),
    }
    if lake.count("frames"):
        facts |= _of_items(lake, manifest)
    return facts


def _of_items(lake: Lake, manifest: Manifest | None) -> dict[str, Any]:
    """The parts that show frames."""
    versions = manifest.versions if manifest else {t: int(lake.table(t).version) for t in ("frames", "assets")}
    items = load_items(lake, versions["frames"], versions["assets"])
    thumbs = Thumbnails(lake, items)
    chosen = parts.Selected.of(items, selections.read_rows(lake, manifest.selection)) if manifest else None
    kept = chosen.kept if chosen else None
    facts: dict[str, Any] = {"quality": tables.quality_histograms(items, kept)}
    # Sheets, groups and timelines come before the map: when pictures run out, its last points go without.
    facts["clusters"] = parts.cluster_sheets(items, chosen, thumbs) if chosen else []
    facts["duplicates"] = parts.duplicate_groups(lake, items, chosen, thumbs) if chosen else []
    facts["timelines"] = tables.shot_timelines(lake, items, kept, thumbs)
    facts["map"] = _map(lake, manifest, items, chosen, thumbs)
    facts["thumbs"] = thumbs.urls
    return facts


def _map(
    lake: Lake, manifest: Manifest | None, items: Items, chosen: parts.Selected | None, thumbs: Thumbnails
) -> dict[str, Any]:
    try:
        columns = embedding_columns(lake)
    except UsageError:
        return {}  # a lake without embeddings has no map
    wanted = manifest.column if manifest else columns[0].name
    column = next((c for c in columns if c.name == wanted), columns[0])
    return parts.map_points(lake, column, items, chosen, thumbs) | {"model": column.spec}


def _manifest_facts(manifest: Manifest) -> dict[str, Any]:
    facts = asdict(manifest)
    facts["share"] = manifest.kept / max(1, manifest.items)
    return facts


def render(facts: dict[str, Any]) -> str:
    """The page: template, style, script and data in one string."""
    assets = files("pipelines.reporting") / "page"
    template, style, script = ((assets / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    # In a script element only "</" ends the data, and U+2028 and U+2029 are fine inside JSON's strings.
    data = json.dumps(facts, separators=(",", ":"), default=_plain, allow_nan=False).replace("</", "<\\/")
    filled = {"TITLE": html.escape(Path(facts["lake"]).name), "STYLE": style, "SCRIPT": script, "DATA": data}
    return re.sub(r"%(TITLE|STYLE|SCRIPT|DATA)%", lambda mark: filled[mark[1]], template)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a report")
