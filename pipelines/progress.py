"""Progress of a call from Python: in a notebook by default, in a script where it is asked for.

The commands have their own, with peak memory and a summary: `jobs.progress`.

A function that takes `progress` is decorated with how its own callback's arguments read as (done, total, of what, and more):

    progress=None      a bar in a notebook, nothing elsewhere
    progress=True      a bar, also on a terminal; False: none
    progress=callback  that, and no bar
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
import warnings
from collections.abc import Callable
from html import escape
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# How far it is: how many are done, of how many (None where nobody knows), and of what, with more that there is to say.
State = tuple[int, int | None, str]
SHOW_EVERY_S = 0.2


def shows_progress(title: str, describe: Callable[..., State]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives a function with an argument `progress` a bar, see above. describe: called with what its callback is called with."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args: P.args, **named: P.kwargs) -> R:
            bound = signature.bind(*args, **named)
            asked = bound.arguments.get("progress")
            if callable(asked):
                return function(*args, **named)
            if not (in_notebook() if asked is None else asked):
                bound.arguments["progress"] = None
                return function(*bound.args, **bound.kwargs)
            with Bar(title) as bar:
                bound.arguments["progress"] = lambda *facts: bar.show(*describe(*facts))
                return function(*bound.args, **bound.kwargs)

        return wrapped

    return decorate


def callback(progress: Callable[..., None] | bool | None) -> Callable[..., None] | None:
    """What a decorated function calls: its decorator left a callback or nothing."""
    return progress if callable(progress) else None


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, which can show HTML and change it; a terminal's IPython can't."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class Bar:
    """A bar with a line of text: HTML in a notebook (no widgets needed), rich's on a terminal, on stderr."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._state: State | None = None
        self._display: _Notebook | _Terminal = _Notebook() if in_notebook() else _Terminal(title)
        self._shown_at = 0.0

    def __enter__(self) -> Bar:
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        if self._state is not None and self._state[1] is None:  # now it is known how many there were
            self._state = self._state[0], self._state[0], self._state[2]
        self._show()
        self._display.close()

    def show(self, done: int, total: int | None, text: str) -> None:
        """How far it is now. Called however often; the eye gets five a second, and the last."""
        self._state = done, total, text
        if time.monotonic() - self._shown_at >= SHOW_EVERY_S:
            self._shown_at = time.monotonic()
            self._show()

    def _show(self) -> None:
        line, done, total = f"{self.title}: starting", 0, None
        if self._state is not None:
            done, total, text = self._state
            count = f"{done:,}" if total is None or total == done else f"{done:,} of {total:,}"
            line = f"{self.title}: {count} {text}"
        self._display.show(line, done, total)


class _Notebook:
    def __init__(self) -> None:
        from IPython.display import HTML, display

        # Libraries that are loaded meanwhile miss the widgets of theirs; this bar needs none.
        warnings.filterwarnings("ignore", message="IProgress not found")
        self._html = HTML
        self._handle = display(HTML(""), display_id=True)

    def show(self, line: str, done: int, total: int | None) -> None:
        # Without a value a browser's bar runs to and fro: nobody knows how much there is. Of nothing, all is done.
        known = "" if total is None else f' value="{done if total else 1}" max="{total or 1}"'
        self._handle.update(self._html(f"<progress{known}></progress> {escape(line)}"))

    def close(self) -> None:
        """What was shown last stays."""


class _Terminal:
    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(title, total=None)
        self._bar.start()

    def show(self, line: str, done: int, total: int | None) -> None:
        self._bar.update(self._task, description=line, completed=done, total=total)

    def close(self) -> None:
        self._bar.stop()
