"""If these fail, `vfm doctor` calls a lake sound that is slow or unsafe, or leaves something behind in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import pipelines.lake.health as health
from jobs.cli import main
from pipelines.lake import SCHEMAS, Lake, embedding_column, embedding_field, with_nulls
from pipelines.lake.health import examine


@pytest.fixture
def lake(tmp_path) -> Lake:
    lake = Lake.create(tmp_path / "lake")
    lake.ensure("frames", [embedding_field("timm:tiny", 4, {"digest": "d"})])
    rows = {
        "frame_id": [str(i) for i in range(30)],
        "asset_id": ["a"] * 30,
        "run_key": ["r"] * 30,
        embedding_column("timm:tiny"): pa.array(
            list(np.ones((30, 4), np.float16)), lake.schema("frames").field(embedding_column("timm:tiny")).type
        ),
    }
    for start in range(0, 30, 10):
        part = with_nulls(lake.schema("frames"), {name: values[start : start + 10] for name, values in rows.items()})
        lake.commit("frames", lake.write_fragments("frames", part))
    return lake


def told(lake: Lake) -> dict[str, tuple[str, bool]]:
    return {finding.what: (finding.found, finding.fine) for finding in examine(lake)}


def test_a_sound_lake_is_fine_and_left_as_it_was(lake, capsys):
    before = sorted(path.name for path in Path(lake.root).iterdir())
    assert all(fine for _, fine in told(lake).values())
    assert told(lake)["store"] == ("refuses a second writer of the same file", True)
    assert sorted(path.name for path in Path(lake.root).iterdir()) == before
    assert main(["doctor", "--lake", lake.root]) in (0, 3)  # 3: this machine may lack something
    assert "refuses a second writer" in capsys.readouterr().out


def test_what_is_slow_is_said_with_what_to_do(lake, monkeypatch):
    monkeypatch.setattr(health, "MOST_FRAGMENTS", 2)
    monkeypatch.setattr(health, "EXACT_ROWS", 20)
    monkeypatch.setattr(health, "LARGEST_UNINDEXED", 5)
    lake.append("quarantine", with_nulls(SCHEMAS["quarantine"], {"asset_id": ["a"], "run_key": ["r"]}))
    findings = told(lake)
    assert findings["table frames"] == ("3 fragments of 10 rows", False)
    assert findings[embedding_column("timm:tiny")] == ("30 vectors, 30 in no index", False)
    assert findings["quarantine"] == ("1 items", False)


def test_a_store_without_put_if_absent_is_named(lake, monkeypatch):
    write = health.write_table
    monkeypatch.setattr(health, "write_table", lambda uri, rows: write(uri, rows) if "doctor" not in uri else None)
    assert told(lake)["store"] == ("lets two writers make the same file", False)


def test_a_place_that_can_not_be_written_is_named(lake, monkeypatch):
    def refused(uri, rows):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(health, "write_table", refused)
    assert told(lake)["store"] == ("can't be written (403 Forbidden)", False)
