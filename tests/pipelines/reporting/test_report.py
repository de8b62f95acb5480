"""The report as its reader meets it: one file, opened from disk, that shows what the lake and the selection hold."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipelines.curation import selections
from pipelines.reporting import write_report
from pipelines.reporting.pictures import Thumbnails, shrink
from pipelines.reporting.run import collect, render
from tests.pipelines.curation.conftest import LakeBuilder, jpeg, picture
from vfm_ops.errors import UsageError


@pytest.fixture(scope="module")
def page_file(curated, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report.html"
    assert write_report(curated, out) == out.stat().st_size
    return out


@pytest.fixture
def opened(chromium, page_file):
    """Opens the report as a theme and width would; any request, console error or exception is noted."""
    pages = []

    def open_page(theme: str = "light", width: int = 1280):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        noted: list[str] = []
        page.on("console", lambda m: noted.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: noted.append(str(e)))
        page.on("request", lambda r: noted.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(page_file.as_uri())
        page.wait_for_selector("canvas")
        pages.append(page)
        return page, noted

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 1440), ("light", 390)])
def test_it_opens_in_chromium_without_an_error_or_a_request_and_fits_the_width(opened, theme, width):
    page, noted = opened(theme, width)
    titles = page.locator("section h2").all_inner_texts()
    assert titles == ["Funnel", "Map", "Clusters", "Duplicates", "Shots", "Quality", "Quarantine", "Runs"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (theme == "dark")
    assert noted == []


def painted(page) -> int:
    """Pixels of the map that are not empty."""
    return page.evaluate(
        "(() => { const c = document.querySelector('canvas'); let n = 0;"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
    )


def test_the_map_shows_points_zooms_filters_and_names_what_the_pointer_is_on(opened, curated):
    page, noted = opened()
    everything = painted(page)
    page.get_by_role("button", name="kept", exact=True).click()
    assert 0 < painted(page) < everything
    page.get_by_role("button", name="all", exact=True).click()
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    found = ""
    for x in range(0, int(box["width"]), 12):
        page.mouse.move(box["x"] + x, box["y"] + box["height"] / 2)
        found = found or (page.locator("#tip").inner_text() if page.locator("#tip").is_visible() else "")
    assert re.search(r"(\.jpg|\.mp4 at).*(kept|dropped): ", found, re.DOTALL)
    canvas.focus()
    for _ in range(8):
        page.keyboard.press("+")
    assert painted(page) != everything
    page.get_by_role("button", name="Cluster", exact=True).click()
    assert page.locator(".legend span").count() == 4
    assert noted == []


def test_what_the_page_says_is_what_the_tables_hold(curated, opened):
    manifest = selections.load_manifest(curated, "curated")
    facts = collect(curated, manifest)
    assert {c["table"]: c["rows"] for c in facts["counts"]} | {"frames": 71, "shots": 2, "quarantine": 2} == {
        c["table"]: c["rows"] for c in facts["counts"]
    }
    assert sum(facts["map"]["kept"]) == manifest.kept == 20
    assert sum(c["kept"] for c in facts["clusters"]) == 20
    assert sum(c["size"] for c in facts["clusters"]) == 71
    assert sum(g["count"] for g in facts["duplicates"] if g["kind"] == "exact_duplicate") == 5
    assert all(g["led"] == 1 and len(g["thumbs"]) == 2 for g in facts["duplicates"] if g["kind"] == "exact_duplicate")
    assert facts["quarantine"][0] | {"count": 2, "salvaged": 4} == facts["quarantine"][0]
    assert all(sum(q["all"]) == 71 and sum(q["kept"]) == 20 for q in facts["quality"])
    page, _ = opened()
    assert "20" in page.locator(".figure.hero").inner_text()
    # A message that is markup stays text.
    assert "</script><b>ends early & oddly</b>" in page.locator("#quarantine").inner_text()


def test_a_lake_without_selection_embedding_or_frames_has_a_report_too(builder_of, tmp_path):
    empty, plain = builder_of("empty"), builder_of("plain")
    plain.stills([picture(i) for i in range(4)], [None] * 4)
    for lake in (empty.lake, plain.lake):
        assert write_report(lake, tmp_path / "r.html") > 10_000


@pytest.fixture
def builder_of(tmp_path):
    return lambda name: LakeBuilder(tmp_path / name)


def test_unknown_selections_and_places_are_refused(curated, tmp_path):
    with pytest.raises(UsageError, match="has no selection 'x'; it has curated"):
        write_report(curated, tmp_path / "r.html", "x")
    with pytest.raises(UsageError, match="is no directory"):
        write_report(curated, tmp_path / "no" / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_thumbnails_stop_at_their_budget_and_are_stored_once(curated):
    manifest = selections.load_manifest(curated, "curated")
    from pipelines.curation.items import load_items

    items = load_items(curated, manifest.versions["frames"], manifest.versions["assets"])
    some = np.array([3, 3, 5])
    thumbs = Thumbnails(curated, items)
    assert thumbs.of(some) == [0, 0, 1]
    assert thumbs.of(some[::-1]) == [1, 0, 0]
    assert len(thumbs.urls) == 2
    none = Thumbnails(curated, items, budget=0)
    assert none.of(some) == [-1, -1, -1]
    assert shrink(b"\xff\xd8\xff nothing", 88) is None
    assert len(shrink(jpeg(picture(0, 640)), 88)) < 8000


def test_the_page_needs_nothing_from_elsewhere():
    page = render({"lake": "/l/x", "counts": [], "manifest": None, "quarantine": [], "runs": [], "made": ""})
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:|#)[\w/]", page)
    assert "@import" not in page
    assert "fetch(" not in page
