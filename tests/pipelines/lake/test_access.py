"""What a user of somebody else's lake loses: a sentence that says that they may not write it, instead of a library's log."""

from __future__ import annotations

import errno

import pytest

from pipelines.lake.access import refusal, writable
from vfm_ops.errors import UsageError

REFUSED = [
    PermissionError(errno.EACCES, "Permission denied", "/lake/lake.json"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(
        'LanceError(IO): Permission denied (os error 13) at path "/lake/lease.lance/data/.tmp", object_store.rs:1019:34'
    ),
    OSError("LanceError(IO): Read-only file system (os error 30)"),
    OSError("LanceError(IO): Generic S3 error: Client error with status 403 Forbidden: <Code>AccessDenied</Code>"),
    OSError("When initiating multiple part upload for key 'x' in bucket 'b': AWS Error ACCESS_DENIED during ..."),
]
OTHERS = [
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/lake/403/forbidden.lance"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError("LanceError(IO): Generic S3 error: status 503 Slow Down"),
    ValueError("the schema of 403 columns does not fit"),
]


@pytest.mark.parametrize("error", REFUSED, ids=range(len(REFUSED)))
def test_a_refusal_of_any_store_is_one_sentence_with_exit_code_2(error):
    with (
        pytest.raises(UsageError, match=r"cannot write to the lake /lake: .*; run this as who may write there"),
        writable("/lake"),
    ):
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=range(len(OTHERS)))
def test_any_other_failure_stays_what_it_is(error):
    assert refusal(error) is None
    with pytest.raises(type(error)) as caught, writable("/lake"):
        raise error
    assert caught.value is error
