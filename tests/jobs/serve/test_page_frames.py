"""A video on the page stands at the very frame that is stored, so that boxes and clicks are of what is seen."""

from __future__ import annotations

import base64
import io
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from jobs.bench.serve import free_port
from jobs.cli import main
from pipelines.lake import Lake
from tests.jobs.serve.corpus import frame_row, write
from tests.jobs.serve.local import listening
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource

COUNT, STEP = 60, 3
RNG = np.random.default_rng(0)
# Times of frames, in milliseconds: a rate that no millisecond hits, a rate that varies, and one that begins late.
CLOCKS = {
    "even": [round(i * 1000 / 30) for i in range(COUNT)],
    "varying": np.concatenate([[0], np.cumsum(RNG.integers(17, 120, COUNT - 1))]).tolist(),
    "late": [1500 + 40 * i for i in range(COUNT)],
}
PIXELS = """() => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [320, 240];
  canvas.getContext("2d").drawImage(document.getElementById("video"), 0, 0, 320, 240);
  return canvas.toDataURL("image/png").split(",")[1];
}"""
STANDS = """() => {
  const video = document.getElementById("video");
  return !video.hidden && video.style.opacity === "1" && !video.seeking && video.readyState >= 2;
}"""


def bar(index: int) -> int:
    """Where the white bar of a frame begins: what tells frames apart."""
    return 4 * index


def film(path: Path, times_ms: list[int]) -> None:
    """A video whose frames show their number as a bar. VP9 in WebM: what every Chromium plays."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=Fraction(30), options={"g": "20", "deadline": "realtime"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times_ms):
            rgb = np.full((240, 320, 3), 40, np.uint8)
            rgb[180:220, bar(index) : bar(index) + 50] = 255
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = time, stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    root = tmp_path_factory.mktemp("frames")
    (root / "media").mkdir()
    for name, times in CLOCKS.items():
        film(root / "media" / f"{name}.webm", times)
    assert main(["ingest", str(root / "media"), "--lake", str(root / "lake")]) == 0
    lake = Lake.open(root / "lake")
    for table in ("frames", "shots", "detections", "tracks", "ledger"):
        lake.ensure(table)
    with Sandbox(DecodeSettings(jpeg_max_side=320)) as sandbox:
        for asset in lake.read("assets").to_pylist():
            source, own = MediaSource(asset["uri"]), {"asset_id": asset["asset_id"], "run_key": "r.1"}
            times = sandbox.probe(source).pts_s
            frames = list(sandbox.frames(source, np.arange(0, COUNT, STEP)))
            write(lake, "frames", [frame_row(asset["asset_id"], f) for f in frames])
            rows = [
                {
                    **own,
                    "track_id": "t",
                    "frame_index": i,
                    "pts_s": float(t),
                    "box": [bar(i), 180, bar(i) + 50, 220],
                    "visible": True,
                }
                for i, t in enumerate(times)
            ]
            write(lake, "tracks", rows)
            write(lake, "ledger", [{**own, "frames": len(frames)}])
    return lake


@pytest.fixture
def page(lake):
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    found = next((path for n in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(n))), None)
    with listening(lake, free_port()) as url, api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error:
            pytest.skip("needs Chromium: apt-get install chromium, or playwright install chromium")
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.locator(".cell img.ready").first.wait_for()
        yield page
        browser.close()


def test_the_frame_that_is_opened_is_the_frame_that_is_seen(page):
    """It was the one before, for a third of all frames, and boxes and prompts lay a frame off."""
    seen = {}
    for number in range(2, page.locator(".cell").count(), 7):
        page.locator(".cell").nth(number).click()
        page.locator("#numbers dd").first.wait_for()
        page.wait_for_function(STANDS)
        facts = page.locator("#numbers").inner_text()
        index = int(facts.split("frame ")[1].split()[0])
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(page.evaluate(PIXELS)))).convert("L"))
        seen[page.locator("#title").inner_text(), index] = int(np.flatnonzero(shown[200] > 150)[0])
        page.keyboard.press("Escape")
    assert len(seen) >= 4
    assert {key: round(x / 4) for key, x in seen.items()} == {key: key[1] for key in seen}
