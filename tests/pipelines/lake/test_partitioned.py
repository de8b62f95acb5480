"""What a team loses if keys of a large lake are compared wrongly: damage that is not seen, or rows that a sweep should keep."""

from __future__ import annotations

import errno
import tempfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.lake import Lake, partitioned, sweep, verify_lake
from pipelines.lake.partitioned import PARTITIONS, Partitioned
from tests.pipelines.lake.test_lake import assets, frames, settle
from vfm_ops.errors import UsageError


@pytest.fixture(params=["in memory", "in a file"])
def held(request):
    """Rows go to a file after 64 bytes, or not."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in a file":
            patch.setattr(partitioned, "HELD_BYTES", 64)
        yield request.param


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=20), max_size=10))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_rows_come_back_and_equal_keys_in_one_partition(held, batches):
    rows, expected = Partitioned(2), Counter[tuple[int, int]]()
    for n, keys in enumerate(batches):
        rows.add(np.array(keys, np.int64), np.full(len(keys), n))
        expected.update((key, n) for key in keys)
    parts = [part.tolist() for part in rows]
    assert len(parts) == PARTITIONS
    assert Counter(tuple(row) for part in parts for row in part) == expected
    assert len(rows) == expected.total()
    places = Counter(key for part in parts for key in {key for key, _ in part})
    assert set(places.values()) <= {1}


def test_verify_and_sweep_see_the_same_whatever_lies_in_files(held, tmp_path):
    lake = Lake.create(tmp_path / "lake")
    lake.append("assets", assets("a", "b", "c"))
    lake.append("frames", frames("a", 3))
    lake.append("frames", frames("b", 2, "killed.1"))
    settle(lake, "a", 3)
    settle(lake, "b", 1)
    said = " ".join(verify_lake(lake).violations)
    assert "1 assets are pending" in said
    assert "has 2 rows of killed.1, its ledger row says 0" in said
    assert "has 0 rows of r.1, its ledger row says 1" in said
    assert sweep(lake) == {"frames": 2}
    assert sweep(lake) == {}


def test_no_room_for_keys_is_a_sentence(monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(partitioned, "HELD_BYTES", 64)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UsageError, match="No space left on device; free some space there, or name another folder"):
        Partitioned(1).add(np.arange(100))
