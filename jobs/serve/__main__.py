"""`python -m jobs.serve`."""

import sys

from jobs.cli import run
from jobs.serve import command

sys.exit(run(command))
