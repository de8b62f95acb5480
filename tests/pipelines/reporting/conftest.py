"""A curated lake with everything that a report shows, and a headless browser."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.curation import curate
from pipelines.curation.recipe import CurationRecipe
from pipelines.lake import SCHEMAS, Lake
from tests.conftest import chromium_program, optional_package
from tests.pipelines.curation.conftest import NOW, LakeBuilder, kinds, picture


@pytest.fixture(scope="session")
def curated(tmp_path_factory) -> Lake:
    """Stills of three kinds with copies, a video of two shots, two quarantined items, and a selection of 20."""
    builder = LakeBuilder(tmp_path_factory.mktemp("report") / "lake")
    x, _ = kinds([40, 20, 6], seed=3)
    pictures = [picture(i) for i in range(66)]
    builder.stills(pictures[:54], list(x[:54]))
    builder.stills(pictures[:5], list(x[:5]))
    frames = builder.video(pictures[54:], list(x[54:]))
    asset = frames[0].split(":")[0]
    owner = {"asset_id": asset, "run_key": "r.1"}
    spans = ((0.0, 2.5), (3.0, 5.5))
    shots = [{**owner, "shot_id": f"s{i}", "start_s": a, "end_s": b} for i, (a, b) in enumerate(spans)]
    builder.lake.append("shots", pa.Table.from_pylist(shots, SCHEMAS["shots"]))
    bad = {"run_key": "r.1", "stage": "decode", "error_type": "truncated", "recipe": "r", "attempt": 1, "run_id": "x"}
    bad |= {"message": "</script><b>ends early & oddly</b>", "finished_at": NOW, "salvaged_frames": 2}
    rows = [{**bad, "asset_id": f"q{i}", "uri": f"/m/<i>{i}.mp4"} for i in range(2)]
    builder.lake.append("quarantine", pa.Table.from_pylist(rows, SCHEMAS["quarantine"]))
    plan = CurationRecipe.model_validate({"cluster": {"levels": [12, 4]}, "sample": 20})
    curate(builder.lake, plan)
    return builder.lake


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium, driven by playwright, whose loop runs until it ends: no other of its kind, nor asyncio, meanwhile."""
    path = chromium_program()
    with optional_package("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
