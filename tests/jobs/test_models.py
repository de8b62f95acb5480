"""If these fail, a newcomer cannot copy the name of a model from the list, or the path where its weights must lie."""

from __future__ import annotations

import json

import pytest

from jobs.cli import main
from jobs.models import listing


@pytest.fixture
def cards(tmp_path, monkeypatch) -> list[dict]:
    """The catalogue with made-up sizes, which take half a minute to count."""
    from vfm_ops.models import catalogue as models

    monkeypatch.setenv("VFM_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "count_parameters", lambda card: 7_000_000)
    return models.catalogue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_spec_and_path_stands_whole_on_a_terminal_of_any_width(cards, width):
    text = listing(cards, width)
    lines, words = text.splitlines(), text.split()
    for card in cards:
        assert lines.count(card["spec"]) == 1
        assert card["present"] or set(card["weights"].split()) <= set(words)
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines), "only a word that is longer sticks out"


def test_the_command_prints_the_list_or_json(cards, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["models"]) == 0
    assert capsys.readouterr().out == listing(cards, 80) + "\n"
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == cards
