"""One SQL condition over two tables: which of its AND-ed parts speak of frames, and which of the assets that own them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from vfm_ops.errors import UsageError

_TOKEN = re.compile(r"'(?:[^']|'')*'|`[^`]+`|[A-Za-z_][\w.]*|\d[\w.]*|\s+|.", re.DOTALL)
_RESERVED = """and or not in is null true false like ilike between escape case when then else end cast as regexp
date timestamp interval string int integer bigint smallint tinyint float double boolean decimal asc desc"""
_KEYWORDS = frozenset(_RESERVED.split())


@dataclass(frozen=True)
class SplitFilter:
    """Conditions that must both hold; None where nothing is asked of a table."""

    frames: str | None = None
    assets: str | None = None


def split_filter(where: str | None, frames: Collection[str], assets: Collection[str]) -> SplitFilter:
    """Splits `where` at its outermost ANDs by the columns that each part names; a column of both tables is that of frames.

    frames, assets: the tables' column names. UsageError for an unknown column, for unbalanced brackets or quotes, and for a
    part that mixes the tables (in an OR, say), which no single table can answer.
    """
    if where is None or not where.strip():
        return SplitFilter()
    parts: dict[bool, list[str]] = {True: [], False: []}
    for part in _conjuncts(where):
        columns = list(_columns(part))
        for name in columns:
            if name not in frames and name not in assets:
                near = difflib.get_close_matches(name, [*frames, *assets], n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*frames, *assets])}"
                raise UsageError(f"the filter {where!r} names the unknown column {name}; {hint}")
        of_frames = {name in frames for name in columns} or {True}
        if len(of_frames) > 1:
            raise UsageError(
                f"the filter's part {part.strip()!r} mixes columns of frames and of assets: join them with AND instead"
            )
        parts[of_frames.pop()].append(part.strip())
    frames_sql, assets_sql = (" AND ".join(f"({p})" for p in parts[key]) or None for key in (True, False))
    return SplitFilter(frames_sql, assets_sql)


def _conjuncts(where: str) -> Iterator[str]:
    depth, between, part = 0, 0, ""
    for token in _TOKEN.findall(where):
        word = token.lower()
        depth += (token == "(" or word == "case") - (token == ")" or word == "end")
        if token in ("'", "`") or depth < 0:
            raise UsageError(f"the filter {where!r} has a quote or bracket too many")
        if word == "between" and depth == 0:
            between += 1
        if word == "and" and depth == 0:
            if not between:
                yield part
                part = ""
                continue
            between -= 1  # the AND that belongs to BETWEEN
        part += token
    if depth:
        raise UsageError(f"the filter {where!r} has an open bracket")
    yield part


def _columns(part: str) -> Iterator[str]:
    tokens = [t for t in _TOKEN.findall(part) if not t.isspace()]
    for token, after in zip(tokens, [*tokens[1:], ""]):
        if token.startswith("`"):
            yield token.strip("`").split(".")[0]
        elif re.match(r"[A-Za-z_]", token) and token.lower() not in _KEYWORDS and after != "(":
            yield token.split(".")[0]
