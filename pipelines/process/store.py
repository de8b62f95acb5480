"""Whose fault an object is that could not be read: its own, or that of its store. Of the latter no item is ever blamed.

The decoders report an object as unreadable, and `Doubt` asks the store again before that is believed. An object that can't be
read, while another object of the same store can, is a bad item; while none can, it is the store, and that is the run's error.
What is written is tried again by the lake itself (`Lake.attempt`).
"""

from __future__ import annotations

import json
import time
from collections import deque
from enum import Enum
from typing import Any

from pipelines.lake import Lake, StoreError
from pipelines.lake import lake as stores
from pipelines.lake.sql import literal
from pipelines.sources import RowReader, media_source
from vfm_ops.errors import MediaError

REFUSALS = 3  # of one object, while others of its store are read, before it is taken for the object's own fault
WITNESSES = 4  # other objects that are tried
SOURCE_COLUMNS = ["uri", "member", "container", "offset", "length", "media_type"]


class Verdict(Enum):
    """Whose fault it is that an object could not be read."""

    ITEM = "item"  # it is absent, or refused while its neighbours are not
    STORE = "store"  # the store answers again, or can't be judged for want of a neighbour: the item stays pending


class Doubt:
    """Judges objects of a store that decoders could not read; remembers stores that have nothing else to be judged by."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._unjudged: set[str] = set()
        self._well_read: deque[str] = deque(maxlen=WITNESSES)

    def note(self, outcome: str) -> None:
        """An item's closing row, as JSON, where it was read well: the best witness there is."""
        self._well_read.append(outcome)

    def judge(self, asset: dict[str, Any]) -> Verdict:
        """asset: SOURCE_COLUMNS of one whose reading failed. Waits for a minute for its store to answer.

        Raises StoreError when no other object of the store can be read, either, for as long.
        """
        store = store_of(asset["uri"])
        if store is None:  # a file: what the system says of it is final
            return Verdict.ITEM
        refused, pauses = 0, iter(stores.STORE_WAITS_S)
        witnesses = self._witnesses(asset, store)
        while True:
            error = read_error(asset)
            if error is None:
                return Verdict.STORE
            if error.kind != "unreadable":
                return Verdict.ITEM
            if any(_answers(other) for other in witnesses):
                refused += 1
                if refused >= REFUSALS:
                    return Verdict.ITEM
            elif store in self._unjudged:
                return Verdict.STORE
            pause = next(pauses, None)
            if pause is None:
                break
            time.sleep(pause)
        if not witnesses:
            self._unjudged.add(store)
            return Verdict.STORE
        raise StoreError(
            f"nothing can be read from {store} ({error}); what was committed stays, and the same command goes on once the "
            "store answers"
        )

    def _witnesses(self, asset: dict[str, Any], store: str) -> list[dict[str, Any]]:
        """Other objects of that store: those read last, then any that the lake knows."""
        read = [json.loads(outcome)["source"] for outcome in self._well_read]
        read = [other for other in read if store_of(other["uri"]) == store and other["uri"] != asset["uri"]]
        only = f"starts_with(uri, {literal(store + '/')}) AND uri <> {literal(asset['uri'])}"
        return read + self.lake.read("assets", SOURCE_COLUMNS, filter=only, limit=WITNESSES).to_pylist()


def store_of(uri: str) -> str | None:
    """Scheme and bucket of an object's URL; None for a local file."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if separator and scheme != "file" else None


def _answers(asset: dict[str, Any]) -> bool:
    """Whether an asset's store answers for it, be it that the object is gone."""
    error = read_error(asset)
    return error is None or error.kind != "unreadable"


def read_error(asset: dict[str, Any]) -> MediaError | None:
    """Why an asset's first bytes can't be read; None when they can."""
    try:
        media_source(asset, RowReader()).head(1)
    except MediaError as e:
        return e
    except OSError as e:
        return MediaError("unreadable", str(e).split("\n")[0])
    return None
