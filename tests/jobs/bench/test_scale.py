"""If these fail, the table that says what a corpus takes is wrong."""

from __future__ import annotations

import pytest

from jobs.bench import scale
from jobs.bench.scale_model import NODE_CORES, Costs, _predicted, _slope_of_memory, driver_seconds

COSTS = Costs(start_s=3.0, core_s=0.01, driver_s=2e-5, item_bytes=1e5, held_bytes=0.5)


def test_a_run_takes_its_start_and_the_slower_of_workers_and_driver():
    assert COSTS.seconds(1000, 2) == pytest.approx(3 + 5)
    assert COSTS.seconds(1000, 10_000) == pytest.approx(3 + 0.02)
    assert COSTS.limits == {"the driver's commits": pytest.approx(1 / 2e-5 / (NODE_CORES / 0.01))}


def test_a_node_that_moves_more_than_its_network_bears_is_saturated_at_once():
    heavy = Costs(3.0, 0.001, 1e-6, 1e6, 0.5)
    assert min(heavy.limits, key=heavy.limits.__getitem__) == "the nodes' networks"


def test_a_prediction_names_nodes_hours_cost_and_what_saturates():
    row = _predicted(COSTS, 10**9)
    # 10^7 core seconds: 2,778 core hours, 87 nodes for an hour, 4 for a day.
    assert row["note"].startswith("4 nodes of 32 cores, 21.7 h, 2,778 core hours, $139; driver: 477 MB more")
    assert row["note"].endswith("saturated first: the driver's commits, at 16 nodes")


def test_memory_is_told_by_the_largest_and_the_smallest_lake():
    row = {"what": "process, nothing to do", "1x is": 1_000_000, "MB at 1x": 300.0, "MB at 4x": 330.0}
    assert _slope_of_memory([row]) == pytest.approx(30 * 2**20 / 3e6)
    assert _slope_of_memory([]) == 0


def test_the_drivers_share_is_measured_with_a_lake(tmp_path):
    assert 0 < driver_seconds(tmp_path / "lake", results=3, each=16) < 1


def test_commands_on_a_lake_of_synthetic_assets(tmp_path):
    found = scale.assets_at(tmp_path / "small", 1500)
    assert set(found) >= {"ingest", "ingest, nothing new", "first committed row", "process, nothing to do", "verify"}
    assert all(seconds > 0 for seconds, _ in found.values())
    assert found["verify"][1] > 0
