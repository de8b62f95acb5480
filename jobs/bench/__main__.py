"""`python -m jobs.bench WHAT`."""

import sys

from jobs.bench import command
from jobs.cli import run

sys.exit(run(command))
