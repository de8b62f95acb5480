"""How rows and pictures look in a notebook: small HTML in which every text is escaped and nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any

import numpy as np

from vfm_ops.errors import MediaError
from vfm_ops.media.images import decode_image
from vfm_ops.media.jpeg import encode_jpeg, read_jpeg_header
from vfm_ops.media.limits import Limits

THUMBNAIL = 128  # pixels, the longer side
LONGEST_TEXT = 80  # characters of a cell
_LISTED = 6  # a longer list of numbers is named by its length: nobody reads a vector


class Html(str):
    """A text that is HTML already: `table_html` does not escape it."""

    __slots__ = ()


def thumbnail_html(picture: bytes | np.ndarray | None, side: int = THUMBNAIL) -> Html:
    """A picture as an `<img>` that carries its own bytes, the longer side shrunk to `side` pixels, and no further by its table.

    picture: an encoded still, or RGB uint8 (H, W, 3). Empty for None, and for what does not decode.
    """
    if picture is None:
        return Html()
    try:
        rgb = picture if isinstance(picture, np.ndarray) else _decode_small(picture, side)
    except MediaError:
        return Html()
    data = base64.b64encode(encode_jpeg(rgb, 80, side)).decode()
    return Html(f'<img alt="" style="max-width: none" src="data:image/jpeg;base64,{data}">')


def _decode_small(data: bytes, side: int) -> np.ndarray:
    header = read_jpeg_header(data)
    longest = max(header.width, header.height) if header else 0
    reduce = next((factor for factor in (8, 4, 2) if longest >= factor * side), 1)
    return decode_image(data, Limits(), reduce=reduce, header=header)


def table_html(caption: str, headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of values, each escaped unless it is `Html`. caption: a line above it."""
    head = "".join(f"<th>{escape(name)}</th>" for name in headers)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<p>{escape(caption)}</p><div style="overflow-x: auto">{table}</div>'


def _cell(value: Any) -> str:
    return value if isinstance(value, Html) else escape(short_text(value))


def short_text(value: Any) -> str:
    """One value of a row in a few characters: a vector by its length, bytes by their number, long texts cut."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, dict):
        return _cut(", ".join(f"{name} {short_text(inner)}" for name, inner in value.items() if inner is not None))
    if isinstance(value, list):
        if len(value) > _LISTED and not isinstance(value[0], str):
            return f"{len(value)} values"
        return _cut("[" + ", ".join(short_text(inner) for inner in value) + "]")
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
