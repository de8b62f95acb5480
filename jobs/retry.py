"""`vfm retry`: runs the quarantined assets again, alone."""

from __future__ import annotations

import sys

from jobs.cli import run
from jobs.process import JsonOption, LakeOption, RecipeOption, SetOption, run_process


def command(lake: LakeOption, recipe: RecipeOption = None, set_: SetOption = None, as_json: JsonOption = False) -> int:
    """Runs what is in quarantine under this recipe again; what succeeds leaves it."""
    return run_process(lake, recipe, set_ or [], as_json, retry=True)


if __name__ == "__main__":
    sys.exit(run(command))
