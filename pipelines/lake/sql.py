"""Conditions in SQL that this package writes itself, with values quoted: what a person wrote passes `filters` instead."""

from __future__ import annotations

from collections.abc import Iterable


def literal(value: str | int | float) -> str:
    """A value as SQL; quotes inside a text are doubled."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def equals(column: str, value: str | int | float | None) -> str:
    """Rows whose column is a value; with None, those where it is null."""
    return f"{column} IS NULL" if value is None else f"{column} = {literal(value)}"


def one_of(column: str, values: Iterable[str | int]) -> str:
    """Rows whose column is one of some values, none of them null; no row where there are none."""
    listed = ", ".join(map(literal, values))
    return f"{column} IN ({listed})" if listed else "false"
