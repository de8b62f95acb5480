"""A second opinion on pairs that a hash or a vector calls alike, from the pictures that the lake stores.

Only items that have such a pair are decoded, small where colours are all that is compared, and a few hundred are held.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.curation.pool import Pool
from vfm_ops.curate.kmeans import available_cores
from vfm_ops.curate.looks import PLAIN_ENTROPY, Look, is_plain, look_at, same_look, turned
from vfm_ops.errors import MediaError
from vfm_ops.media.images import decode_image, read_jpeg_header
from vfm_ops.media.limits import Limits

_HELD_BYTES = 256 << 20
_SMALL_SIDE = 128


class Looks:
    """Looks of a pool's rows. agree(a, b): whether the pictures of two rows allow them to be one.

    colours: compare those of every pair, as a luma hash can't; else only plain pictures are looked at. turned: one may be
    the other's rotation or mirror image. Where no picture is stored, a pair of plain ones has no evidence and is refused,
    and any other is believed.
    """

    def __init__(self, pool: Pool, rows: np.ndarray, *, colours: bool = False, turned: bool = False) -> None:
        self.pool, self.rows, self.colours, self.turned = pool, rows, colours, turned
        entropy = pool.items.quality["entropy"][rows]
        self.plain = entropy < PLAIN_ENTROPY
        self.unknown = np.isnan(entropy)
        self._held: OrderedDict[int, Look | None] = OrderedDict()
        self._bytes = 0

    def prepare(self, places: np.ndarray) -> None:
        """Decodes what the next pairs may need, on all cores."""
        wanted = self.unknown[places] | self.plain[places] | self.colours
        missing = [p for p in places[wanted].tolist() if p not in self._held]
        self._load(missing, {p: bool(self.plain[p]) for p in missing})

    def agree(self, a: int, b: int) -> bool:
        """Whether the pictures of rows a and b, places in rows, may be one."""
        close = bool(self.plain[a] or self.plain[b])
        if not close and not self.colours:
            return True
        one, other = self._look(a, close), self._look(b, close)
        if one is None or other is None:
            return not close
        return any(same_look(one, view) for view in (turned(other) if self.turned else (other,)))

    def _look(self, place: int, close: bool) -> Look | None:
        held = self._held.get(place)
        if place not in self._held or (close and held is not None and held.detail is None):
            self._load([place], {place: close})
        self._held.move_to_end(place)
        return self._held[place]

    def _load(self, places: list[int], close: dict[int, bool]) -> None:
        if not places:
            return
        with ThreadPoolExecutor(available_cores()) as threads:
            jpegs = (jpeg for _, jpeg in self.pool.jpegs(self.rows[places]))
            looks = threads.map(lambda p, jpeg: self._decoded(p, jpeg, close[p]), places, jpegs)
            for place, look in zip(places, looks, strict=True):
                self._hold(place, look)

    def _decoded(self, place: int, jpeg: bytes | None, close: bool) -> Look | None:
        """The look of a stored picture; None where none is stored, or it can't be decoded."""
        if jpeg is None:
            return None
        reduce = 1 if close or self.unknown[place] else _reduction(jpeg)
        try:
            rgb = decode_image(jpeg, Limits(), reduce=reduce)
        except MediaError:
            return None
        if self.unknown[place]:
            self.plain[place], self.unknown[place] = is_plain(rgb), False
        return look_at(rgb, close or bool(self.plain[place]))

    def _hold(self, place: int, look: Look | None) -> None:
        """Keeps a look, and forgets the ones that were longest not asked for."""
        self._bytes += _size(look) - _size(self._held.pop(place, None))
        self._held[place] = look
        while self._bytes > _HELD_BYTES and len(self._held) > 2:
            _, forgotten = self._held.popitem(last=False)
            self._bytes -= _size(forgotten)


def _reduction(jpeg: bytes) -> int:
    """How far a JPEG may be shrunk while it is decoded, for its colours alone."""
    header = read_jpeg_header(jpeg)
    reduce = 1
    while header is not None and reduce < 8 and min(header.width, header.height) >= 2 * reduce * _SMALL_SIDE:
        reduce *= 2
    return reduce


def _size(look: Look | None) -> int:
    return 0 if look is None else look.colours.nbytes + (0 if look.detail is None else look.detail.nbytes)
