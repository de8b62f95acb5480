"""What follows from the rows of `vfm bench gpu`: whether the product took the fastest way, and what its card waits for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]
TAKEN = 0.9  # of the fastest way's rate: at least so much the product should reach
OURS = "ours"


def conclusions(rows: list[Row]) -> list[Row]:
    """Rows that are drawn from the others, as far as these are there."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("way") and row.get("ours") and "alone" not in row["way"] and "prepared" not in row["way"]:
            groups.setdefault(row["what"], []).append(row)
    compared = [c for what, group in groups.items() if (c := fastest(what, group)) is not None]
    return [*compared, *feeding(rows)]


def fastest(what: str, rows: list[Row]) -> Row | None:
    """The product's best over the best of all ways, its own among them; None where there is nothing to compare."""
    own = [row for row in rows if row["way"].startswith(OURS)]
    if not own or len(own) == len(rows) == 1:
        return None
    best, ours = max(rows, key=_rate), max(own, key=_rate)
    return {
        "what": f"conclusion: {what}, ours over the fastest way", "ours": ours["ours"], "floor": best["ours"],
        "ratio": ours["ours"] / best["ours"], "bar": f"at least {TAKEN}",
        "note": f"fastest: {_shown(best)}; ours: {_shown(ours)}",
    }  # fmt: skip


def feeding(rows: list[Row]) -> Iterator[Row]:
    """How many CPU cores feed one card, with JPEGs and with views, and which of the two is behind."""
    cores = os.cpu_count() or 1
    decoding = [r for r in rows if r["what"].startswith("JPEGs, ") and "sandbox" in r.get("way", "") and r.get("ours")]
    for what, group in _by_what(r for r in rows if r["what"].startswith("embed, ") and _is_ours(r)):
        if decoding:
            best = max(decoding, key=_rate)
            yield _cores(what, max(map(_rate, group)), best["ours"] / _processes(best), cores, "decoding")
    views = next((r["ours"] for r in rows if r["what"].startswith("views for ") and r.get("ours")), None)
    for what, group in _by_what(r for r in rows if r["what"].startswith("pretrain, ") and _is_ours(r)):
        if views:
            yield _cores(what, max(map(_rate, group)), views, cores, "making views")


def _cores(what: str, card: float, core: float, cores: int, work: str) -> Row:
    behind = work if cores * core < card else "the card"
    return {
        "what": f"conclusion: {what.removesuffix(': images/s')}, CPU cores that feed it", "ours": card / core, "floor": cores,
        "note": f"the bottleneck is {behind}: the card takes {card:.0f}/s, {core:.0f}/s a core by {work}; floor: cores here",
    }  # fmt: skip


def _by_what(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["what"], []).append(row)
    yield from groups.items()


def _is_ours(row: Row) -> bool:
    return bool(row.get("way", "").startswith(OURS) and row.get("ours"))


def _rate(row: Row) -> float:
    return float(row["ours"])


def _processes(row: Row) -> int:
    return int(row["way"].rpartition(", ")[2].split()[0])


def _shown(row: Row) -> str:
    return row["way"] + (f", batch {row['batch']}" if row.get("batch") else "")
