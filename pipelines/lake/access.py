"""A lake that may be read but not written (a chmod, a read-only mount, credentials that only list and get), in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vfm_ops.errors import UsageError, VfmError

# What the operating system, pyarrow's filesystems and Lance's object stores call it.
_REFUSALS = (
    (r"permission denied|os error 13\b|operation not permitted|os error 1\b", "permission denied"),
    (r"read-only file ?system|os error 30\b", "the file system is read-only"),
    (r"access.?denied|status:? (code:? )?40[13]\b|40[13] (forbidden|unauthorized)", "the store denies it"),
)


def refusal(error: BaseException) -> str | None:
    """Why a write was refused, in words, when an error says that it may not be done at all; None for any other error."""
    if isinstance(error, FileNotFoundError):
        return None  # whatever the path is called
    text = str(error).lower()
    return next((reason for pattern, reason in _REFUSALS if re.search(pattern, text)), None)


@contextmanager
def writable(root: str) -> Iterator[None]:
    """Around the first write of a command to a lake. Raises UsageError where nobody with these rights may write it.

    Only the first: a store that refuses later, in the middle of a run, is a failure of that run and not a wrong command.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, VfmError) as error:
        reason = None if isinstance(error, UsageError) else refusal(error)
        if reason is None:
            raise
        raise UsageError(
            f"cannot write to the lake {root}: {reason}; run this as who may write there, or work on a copy of the lake "
            "(searching, verifying, exporting and reporting only read, and so does a server that is told to)"
        ) from error
