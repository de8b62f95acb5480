"""The command `vfm`: a table of jobs, each a module that also runs as `python -m jobs.NAME`. Only the named one is imported."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

# name: what it does, in the order in which a user meets them.
COMMANDS = {
    "demo": "Build a small corpus from real media, then ingest, process and search it, offline.",
    "ingest": "List images and videos into a lake's assets.",
    "process": "Decode, sample, embed, detect and track every pending asset, into the lake's tables.",
    "embed": "Fill one more embedding column of an existing lake.",
    "detect": "Find objects by text prompts in images.",
    "track": "Follow objects through a video.",
    "search": "Find frames by text, by image, or by frame id.",
    "curate": "Deduplicate, cluster, balance and explain a selection.",
    "schedule": "Run a curation on a schedule, on a Ray cluster.",
    "pretrain": "Train a backbone on a lake or a selection of it.",
    "export": "Write COCO, YouTube-VIS, MOT or WebDataset files.",
    "overlay": "Render boxes, masks and ids over a video or a contact sheet.",
    "eval": "Score detections and tracks against ground truth.",
    "report": "Write one HTML file about a lake and its selections.",
    "serve": "Answer over HTTP from a lake.",
    "world": "Generate images and videos with perfect ground truth.",
    "models": "List the models: what for, licence, size, where their weights lie.",
    "verify": "Prove that every asset is settled exactly once and that counts agree.",
    "retry": "Run the quarantined assets again.",
    "index": "Compact a lake and build its vector and scalar indices.",
    "doctor": "Check this machine: packages, devices, disk, memory.",
    "bench": "Measure: process, decode, track, detect, curate, pretrain, serve.",
}


def run(command: Callable[..., Any], argv: list[str] | None = None) -> int:
    """Runs a job's typer function on argv. Returns the exit code: 0 done, 1 something quarantined, 2 wrong usage, 3 failed.

    Errors go to stderr in one line; tracebacks only with --debug.
    """
    import typer

    from vfm_ops.errors import VfmError

    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(no_args_is_help=False)(command)
    try:
        code = app(argv, standalone_mode=False, prog_name=f"vfm {command.__name__.rstrip('_')}")
        return int(code or 0)
    except VfmError as e:
        error, code = str(e), e.exit_code
    except KeyboardInterrupt:
        error, code = "interrupted; what was committed stays, the same command goes on from there", 3
    except Exception as e:
        if hasattr(e, "format_message"):  # click's usage errors
            error, code = e.format_message(), 2
        else:
            error, code = f"{type(e).__name__}: {e}".split("\n")[0], 3
    if debug:
        traceback.print_exc()
    print(f"error: {error}" + ("" if debug or code == 2 else " (--debug shows the traceback)"), file=sys.stderr)
    return code


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
