"""`vfm ops`: the ops that have a plain name, built in or of an installed package: what they add, and their settings."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from jobs.cli import run


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """Lists the ops. One of a user's own is named as package.module:Name."""
    from vfm_ops.op_registry import find_op, known_ops

    cards = [op_card(name, where, find_op(name)) for name, where in sorted(known_ops().items())]
    print(json.dumps(cards) if as_json else "\n".join(_lines(card) for card in cards))
    return 0


def op_card(name: str, where: str, op: Any) -> dict[str, Any]:
    """An op in plain values: name, where it lies, version, what it adds, its docstring's first line, settings and defaults."""
    settings = {
        key: None if field.is_required() else field.get_default() for key, field in op.Settings.model_fields.items()
    }
    return {
        "name": name,
        "where": where,
        "version": op.version,
        "adds": {column: str(type) for column, type in op.adds.items()},
        "summary": (op.__doc__ or "").strip().split("\n")[0],
        "required": [key for key, field in op.Settings.model_fields.items() if field.is_required()],
        "settings": settings,
    }


def _lines(card: dict[str, Any]) -> str:
    adds = ", ".join(f"{column} ({type})" for column, type in card["adds"].items())
    lines = [f"{card['name']}  {card['summary']}", f"  version {card['version']}, {card['where']}"]
    lines += [f"  adds {adds}"] if adds else []
    for key, default in card["settings"].items():
        lines.append(f"  {key}: " + ("required" if key in card["required"] else f"{default}"))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(command))
