"""The page of the Python API runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.conftest import optional_package
from tests.pipelines.picture_lake import picture_lake

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_code_of_the_page_runs_in_order(tmp_path, monkeypatch, capsys):
    optional_package("duckdb")
    pictures = picture_lake(tmp_path / "other", 6).frames.to_arrow(columns=["jpeg"])["jpeg"].to_pylist()
    (tmp_path / "pictures").mkdir()
    for i, jpeg in enumerate(pictures):
        (tmp_path / "pictures" / f"{i}.jpg").write_bytes(jpeg)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python run\n(.*?)```", PAGE.read_text(), flags=re.S):
        exec(code, names)
    assert names["rows"] == [(20, 6)]
    assert len(names["sharp"]) == 6
    assert "frames" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "lake")
