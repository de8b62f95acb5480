"""The command `vfm`: a table of jobs, each a module that also runs as `python -m jobs.NAME`. Only the named one is imported."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

# name: what it does, in the order in which a user meets them.
COMMANDS = {
    "demo": "Build a small corpus from real media, then ingest, process and search it, offline.",
    "ingest": "List images and videos into a lake's assets.",
    "process": "Decode, sample, embed, detect and track every pending asset, into the lake's tables.",
    "try": "Show an op's values on a few pictures; nothing is written.",
    "embed": "Fill one more embedding column of an existing lake.",
    "detect": "Find objects by text prompts in images.",
    "segment": "Mask objects in images, from points, boxes and masks, or everything.",
    "track": "Follow objects through a video, and correct them.",
    "search": "Find frames by text, by image, or by frame id.",
    "curate": "Deduplicate, cluster, balance and explain a selection.",
    "schedule": "Run a curation on a schedule, on a Ray cluster.",
    "pretrain": "Train a backbone on a lake or a selection of it.",
    "export": "Write COCO, YouTube-VIS, MOT or WebDataset files.",
    "import": "Add a COCO file's boxes and masks to a lake's annotations.",
    "overlay": "Render boxes, masks and ids over a video or a contact sheet.",
    "eval": "Score detections and tracks against ground truth, or against annotations.",
    "report": "Write one HTML file about a lake and its selections.",
    "diff": "Compare two states of a lake, or two selections of it.",
    "serve": "Answer over HTTP from a lake.",
    "world": "Generate images and videos with perfect ground truth.",
    "models": "List the models: what for, licence, size, where their weights lie.",
    "ops": "List the ops: what each adds, and its settings.",
    "info": "Show what a lake holds, and what is in quarantine, by reason.",
    "verify": "Prove that every asset is settled exactly once and that counts agree.",
    "retry": "Run the quarantined assets again.",
    "drop": "Remove the columns of an op or a model.",
    "index": "Compact a lake and build its vector and scalar indices.",
    "doctor": "Check this machine, the cluster, and a lake: what is missing or slow, and what to do.",
    "bench": "Measure: process, cluster, decode, track, detect, curate, copies, pretrain, serve.",
}


class _Interrupted(Exception):
    """Ctrl-C or SIGTERM, as an ordinary exception: typer makes an exit code without a sentence of KeyboardInterrupt."""


def run(command: Callable[..., Any], argv: list[str] | None = None) -> int:
    """Runs a job's typer function on argv. Returns the exit code: 0 done, 1 something quarantined, 2 wrong usage, 3 failed.
    VFM_QUARANTINE_EXIT_CODE=0 makes 0 of 1.

    Errors go to stderr in one line; tracebacks only with --debug.
    """
    import typer

    from vfm_ops.errors import VfmError

    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(no_args_is_help=False)(_interruptible(command))
    try:
        with _stopped_by_sigterm():
            code = int(app(argv, standalone_mode=False, prog_name=f"vfm {_name(command)}") or 0)
        return _quarantine_exit_code() if code == 1 else code
    except VfmError as e:
        error, code = str(e), e.exit_code
    except _Interrupted as e:
        error, code = f"{e}; what was committed stays, and the same command goes on from there", 3
    except Exception as e:
        if hasattr(e, "format_message"):  # click's usage errors
            error, code = e.format_message(), 2
        else:
            error, code = f"{type(e).__name__}: {e}".split("\n")[0], 3
    if debug:
        traceback.print_exc()
    print(
        f"error: {in_options(command, error)}" + ("" if debug or code == 2 else " (--debug shows the traceback)"),
        file=sys.stderr,
    )
    return code


def _quarantine_exit_code() -> int:
    """What a command that is done exits with, where something is in quarantine: 1, or VFM_QUARANTINE_EXIT_CODE.

    A scheduler takes 1 for a failure, and runs again what is done.
    """
    return 0 if os.environ.get("VFM_QUARANTINE_EXIT_CODE") == "0" else 1


def in_options(command: Callable[..., Any], sentence: str) -> str:
    """A sentence of the Python API in a command's words: where the command has that option, `model` becomes --model,
    `full=True` --full and `pictures=False` --no-pictures.

    A module of a job whose options are called otherwise than the function's arguments says so in OPTIONS_OF_ARGUMENTS.
    """
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(command)
    options = {"overrides": "--set", **getattr(sys.modules[command.__module__], "OPTIONS_OF_ARGUMENTS", {})}
    for parameter in typer.main.get_command(app).params:
        on, off = list(parameter.opts), list(parameter.secondary_opts)
        if on and on[0].startswith("-") and parameter.name:
            options |= {parameter.name: on[0], f"{parameter.name}=True": on[0]}
            options |= {f"{parameter.name}=False": off[0]} if off else {}
    return re.sub(r"`([a-z_]+(?:=(?:True|False))?)`", lambda found: options.get(found[1], found[0]), sentence)


def _name(command: Callable[..., Any]) -> str:
    """What a user types: the name of the module that holds the command, also where that one runs as `__main__`."""
    path = Path(inspect.getfile(command))
    return path.parent.name if path.stem == "__init__" else path.stem


def _interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def wrapped(*args: Any, **named: Any) -> Any:
        try:
            return command(*args, **named)
        except KeyboardInterrupt as e:
            raise _Interrupted(str(e) or "interrupted") from e

    return wrapped


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that the lease is given back and the decoders end: schedulers stop jobs that way."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("stopped by SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `vfm`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: vfm COMMAND [OPTIONS]\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items() if _exists(name)))
        print("\nvfm COMMAND --help shows a command's options; --debug shows tracebacks.")
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("vfm-pipelines"))
        return 0
    name = argv[0]
    if name not in COMMANDS or not _exists(name):
        import difflib

        near = difflib.get_close_matches(name, [c for c in COMMANDS if _exists(c)], n=1)
        print(
            f"error: there is no command {name!r}" + (f"; did you mean {near[0]}?" if near else "; see vfm --help"),
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return run(importlib.import_module(f"jobs.{name}").command, argv[1:])


def _exists(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(f"jobs.{name}") is not None


if __name__ == "__main__":
    sys.exit(main())
