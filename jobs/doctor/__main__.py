"""`python -m jobs.doctor`."""

import sys

from jobs.cli import run
from jobs.doctor import command

sys.exit(run(command))
