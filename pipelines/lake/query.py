"""Questions to a lake that need Lance: nearest vectors under a filter, and tables that are not a lake's."""

from __future__ import annotations

import warnings
from typing import Any

from vfm_ops.errors import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lance


def open_table(uri: str) -> Any:
    """A Lance table anywhere, read-only. UsageError when there is none."""
    try:
        return lance.dataset(uri)
    except (ValueError, OSError) as e:
        raise UsageError(f"{uri} is no Lance table: {str(e).split(chr(10))[0][:200]}") from e
