"""Progress from Python: a notebook's user sees that something goes on, and a script's stderr stays as it was."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest

from pipelines.curation.run import curate
from pipelines.pretraining.run import pretrain
from pipelines.process.run import process
from pipelines.progress import callback, in_notebook, shows_progress
from pipelines.sources.run import ingest
from tests.pipelines.picture_lake import picture_lake

EVIL = "<script>"


@shows_progress("count", lambda done, total: (done, total, EVIL))
def count(upto: int, progress=None) -> int:
    """Counts, and says so."""
    for i in range(upto + 1):
        if tell := callback(progress):
            tell(i, upto)
    return upto


@pytest.fixture
def notebook(monkeypatch) -> list[str]:
    """A kernel, as IPython tells of one. Returns what its display shows, one after the other."""
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    display.HTML = str
    display.display = lambda html, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_notebook_sees_a_bar_that_ends_where_the_work_did(notebook):
    assert count(7) == 7
    assert notebook[0].startswith("<progress></progress> count: starting")
    assert notebook[-1] == '<progress value="7" max="7"></progress> count: 7 &lt;script&gt;'


def test_a_notebook_that_asks_for_quiet_or_brings_a_callback_sees_none(notebook):
    seen: list[tuple[int, int]] = []
    count(2, progress=False)
    count(2, lambda done, total: seen.append((done, total)))
    assert notebook == []
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_a_script_is_silent_unless_it_asks(capsys):
    assert not in_notebook()
    count(3)
    assert capsys.readouterr() == ("", "")
    count(3, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "count: 3 <script>" in err


def test_a_terminals_ipython_is_no_notebook(monkeypatch):
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not in_notebook()
    ipython.get_ipython = lambda: None
    assert not in_notebook()


def test_a_failure_leaves_the_bar_where_it_was(notebook):
    @shows_progress("fail", lambda done: (done, 9, "items"))
    def fail(progress=None) -> None:
        progress(4)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert notebook[-1].endswith("fail: 4 of 9 items")


@pytest.mark.parametrize("function", [ingest, process, curate, pretrain])
def test_every_long_call_takes_progress_and_keeps_its_signature(function):
    assert inspect.signature(function).parameters["progress"].default is None
    assert inspect.unwrap(function) is not function


def test_ingest_takes_one_path_as_well_as_several(tmp_path, notebook):
    folder = tmp_path / "pictures"
    folder.mkdir()
    lake = picture_lake(tmp_path / "other", 2)
    for i, jpeg in enumerate(lake.read("frames", ["jpeg"])["jpeg"].to_pylist()):
        (folder / f"{i}.jpg").write_bytes(jpeg)
    assert ingest(folder, tmp_path / "lake").added == 2
    assert ingest(str(folder), str(tmp_path / "lake")).unchanged == 2
    assert ingest([folder / "0.jpg"], tmp_path / "lake", progress=False).unchanged == 1
    # How many there were is known at the end; before, the bar runs to and fro.
    assert '<progress value="2" max="2"></progress> ingest: 2 files, 2 added, 0 left out' in notebook
