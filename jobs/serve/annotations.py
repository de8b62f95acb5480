"""What is answered by hand, kept in the lake's annotations: without the lease, so that it may be while a run writes."""

from __future__ import annotations

import json
import logging
from typing import Any

from jobs.serve.problems import Problem
from jobs.serve.routes.schemas import SegmentClick, SegmentEverything, StoreAs, TrackStore
from pipelines.annotation.objects import Asked, fitted, object_name
from pipelines.annotation.pixels import stored_size_of
from pipelines.lake import Lake
from vfm_ops.errors import UsageError

log = logging.getLogger("ray.serve")
Row = dict[str, Any]


def keep(root: str, rows: list[Row], author: str, source: str, replace: bool) -> list[str]:
    """Writes annotations and returns their ids. UsageError for what does not fit; Problem 503 where the lake is read-only."""
    lake = Lake(root)
    try:
        return lake.add_annotations(rows, author=author, source=source, replace=replace)
    except UsageError as error:
        if root not in str(error):
            raise
        log.error("annotations were not stored: %s", error)  # it names the place, which is the server's own affair
        raise Problem(503, "", "The lake can't be written: nothing was stored.") from error


def segmented_rows(lake: Lake, frame_id: str, found: list[Row], body: SegmentClick | SegmentEverything) -> list[Row]:
    """Rows of masks that were found on a frame: of a click the best, of everything mode all."""
    store = body.store
    assert store is not None
    settings = body.model_dump(mode="json", exclude={"store"}, exclude_defaults=True, exclude_none=True)
    if isinstance(body, SegmentEverything):
        asked = Asked(None, {"everything": settings}, store.label, store.object)
    else:
        entry: Row = {k: settings.pop(k) for k in ("points", "labels", "box", "mask") if k in settings}
        settings = settings | ({"mask_input": "logits of an earlier answer"} if "mask_input" in settings else {})
        settings.pop("return_logits", None)
        entry |= {"object": store.object} if store.object else {}
        asked, found = Asked([entry], settings, store.label), found[:1]
    size = stored_size_of(lake, frame_id.rpartition(":")[0])
    numbered = [mask | {"object": number} for number, mask in enumerate(found, 1)]
    return [fitted(row, size) for row in asked.rows(frame_id, numbered, store.author)]


def tracked_rows(lake: Lake, told: Row, body: TrackStore) -> list[Row]:
    """Rows of what a session tracked. told: of `Tracking.objects`."""
    names, prompts = {}, {}
    for number, said in told["said"].items():
        first = said[0]
        names[number] = body.objects.get(number) or object_name(body.author, first["frame_idx"], first)
        prompts[number] = json.dumps({"prompts": [*said, {"propagate_in_video": {}}]})
    size = stored_size_of(lake, told["asset_id"])
    rows = []
    for answer in told["rows"]:
        number = answer["object_id"]
        place = {"asset_id": told["asset_id"], "kind": "track", "object_id": names[number]}
        said = {"label": body.labels.get(number), "prompts": prompts[number]}
        seen = {k: answer[k] for k in ("frame_index", "pts_s", "mask", "box", "score")}
        rows.append(fitted(place | said | seen, size))
    return rows


def check_stored(store: StoreAs | TrackStore | None, allowed: bool) -> None:
    """Problem 403 where something is to be stored, and may not be."""
    if store is not None and not allowed:
        raise Problem(403, "", "This server stores no annotations: start it without --read-only.")
