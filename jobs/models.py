"""`vfm models`: every family, what it is for, its licence and size, and where its weights lie when there is no network."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.cli import run


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """Lists the models that this version knows. Sizes are counted on the real architectures, without weights."""
    from vfm_ops.models import catalogue

    cards = catalogue()
    if as_json:
        print(json.dumps(cards))
        return 0
    table = Table("model", "for", "parameters", "licence", "weights", box=None, pad_edge=False)
    for card in cards:
        size = f"{card['parameters'] / 1e6:.1f} M" if card["parameters"] else "?"
        here = "here" if card["present"] else card["weights"]
        table.add_row(card["spec"], card["purpose"], size, card["licence"], here)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
