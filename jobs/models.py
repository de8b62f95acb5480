"""`vfm models`: every family, what it is for, its licence and size, and where its weights lie when there is no network."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import Annotated, Any

import typer

from jobs.cli import run


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """Lists the models that this version knows. Sizes are counted on the real architectures, without weights."""
    from vfm_ops.models.catalogue import catalogue

    cards = catalogue()
    print(json.dumps(cards) if as_json else listing(cards, shutil.get_terminal_size().columns))
    return 0


def listing(cards: list[dict[str, Any]], width: int) -> str:
    """A paragraph a model: its spec on a line of its own, whole, as it is to be copied; the rest wrapped at spaces alone."""
    paragraphs = []
    for card in cards:
        size = f"{card['parameters'] / 1e6:.1f} M parameters" if card["parameters"] else "size unknown"
        facts = [f"{card['purpose']}; {size}, {card['licence']}"]
        facts.append("weights: " + ("here" if card["present"] else card["weights"]))
        lines = (
            textwrap.fill(
                fact,
                width,
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for fact in facts
        )
        paragraphs.append("\n".join([card["spec"], *lines]))
    return "\n".join(paragraphs)


if __name__ == "__main__":
    sys.exit(run(command))
