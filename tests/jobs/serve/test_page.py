"""The page in a real browser: what a person does on it, at a desk and on a phone, by light and by dark."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tests.conftest import chromium_program, optional_package

SCREENS = {
    "desk-light": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True},
}


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the system's, else Playwright's own."""
    api = optional_package("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_program(), args=["--no-sandbox"])
        api.expect.set_options(timeout=60_000)  # the first question loads a model
        yield browser
        browser.close()


@pytest.fixture(params=list(SCREENS))
def page(request, browser, served, tmp_path):
    """The page on one kind of screen; fails when anything is written to the console, or a request fails."""
    context = browser.new_context(**SCREENS[request.param])
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("requestfailed", lambda r: "ABORTED" in (r.failure or "") or complaints.append(f"{r.url} {r.failure}"))
    page.goto(served.url)
    page.locator(".cell img.ready").first.wait_for()
    page.shots = Path(os.environ.get("VFM_SCREENSHOTS") or tmp_path)
    page.kind = request.param
    yield page
    context.close()
    assert complaints == []


def shoot(page, name: str) -> None:
    """Keeps a screenshot, and asserts that the page is no wider than its screen."""
    page.screenshot(path=page.shots / f"{page.kind}-{name}.png")
    wide = page.locator("body").evaluate("b => [b.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1] + 1


def middle(page, selector: str) -> tuple[float, float, float]:
    """Centre of an element, and a quarter of its shorter side."""
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, min(box["width"], box["height"]) / 4


def test_search_open_segment_track_and_select(page, served):
    """The whole of a person's way, in one visit."""
    from playwright.sync_api import expect

    shoot(page, "grid")
    page.fill("#text", "a red circle")
    page.press("#text", "Enter")
    expect(page.locator("#count")).to_contain_text("results")
    expect(page.locator(".cell").first).to_contain_text(".")
    shoot(page, "words")

    page.set_input_files("#file", served.media / "chelsea.png")
    expect(page.locator("#chip")).to_contain_text("chelsea.png")
    expect(page.locator(".cell").first).to_contain_text("chelsea.png")
    page.locator(".cell").first.click()
    expect(page.locator("#title")).to_have_text("chelsea.png")
    expect(page.locator("#neighbours button")).to_have_count(12)
    expect(page.locator("#objects .object", has_not_text="·")).to_have_count(2)

    page.keyboard.press("s")
    expect(page.locator("#stage-note")).to_contain_text("Click an object")
    x, y, _ = middle(page, "#overlay")
    page.mouse.click(x, y)
    expect(page.locator("#stage-note")).to_contain_text("pixels")
    page.fill("#store-label", "a cat's face")
    page.fill("#store-author", page.kind)
    page.click("#store-form button")
    expect(page.locator("#toast")).to_contain_text("Stored in the lake's annotations")
    expect(page.locator("#objects .object", has_text=f"a cat's face · {page.kind}")).to_have_count(1)
    shoot(page, "frame")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).not_to_be_visible()
    page.locator(".cell").first.click()
    expect(page.locator("#objects .object", has_text=f"· {page.kind}")).to_have_count(1)
    page.keyboard.press("Escape")

    page.click("#home")
    page.click("[data-kind=video]")
    expect(page.locator("#count")).to_contain_text("frames")
    page.locator(".cell", has_text="bikes.mp4").first.click()
    expect(page.locator("#timeline")).to_be_visible()
    page.click("[data-tool=segment]")
    expect(page.locator("#stage-note")).to_contain_text("Click an object")
    x, y, _ = middle(page, "#overlay")
    page.mouse.click(x, y)
    page.click("#track")
    expect(page.locator("#track-state")).to_contain_text("followed over", timeout=120_000)
    page.click("#store-form button")
    expect(page.locator("#toast")).to_contain_text("frames")
    expect(page.locator("#objects .object", has_text=f"track · {page.kind}")).to_have_count(1)
    shoot(page, "track")
    page.keyboard.press("Escape")

    page.click("#tab-map")
    expect(page.locator("#map-help")).to_contain_text("Drag around")
    x, y, r = middle(page, "#map-canvas")
    r *= 1.9
    page.mouse.move(x + r, y)
    page.mouse.down()
    for k in range(1, 33):
        page.mouse.move(x + r * math.cos(k / 32 * math.tau), y + r * math.sin(k / 32 * math.tau))
    page.mouse.up()
    expect(page.locator("#tray-count")).to_contain_text("selected")
    shoot(page, "map")
    page.fill("#tray-name", f"lasso-{page.kind}")
    page.click("#tray-form .primary")
    expect(page.locator("#toast")).to_contain_text(f"as lasso-{page.kind}")
    assert f"lasso-{page.kind}" in [s["name"] for s in served.get("selections").json()]


def test_the_grid_is_walked_by_keyboard(page):
    from playwright.sync_api import expect

    page.locator(".cell").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    expect(page.locator("#tray-count")).to_have_text("1 selected")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".cell:focus")).to_have_count(1)  # back where one was
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()


def test_a_long_result_holds_only_the_cells_in_sight(page):
    """Ten thousand hits in the grid: the document holds some dozens of cells, at the top and far down."""
    hits = """async () => {
        const { Grid } = await import("/page/grid.js");
        const root = document.getElementById("grid");
        root.replaceChildren();
        const nothing = () => null;
        const grid = new Grid(root, { open: nothing, pick: nothing, more: nothing, isPicked: () => false });
        grid.set(Array.from({ length: 10000 }, (_, i) => ({ name: `n${i}`, thumbnail: "/page/icon.svg", score: null })));
        const top = root.querySelectorAll(".cell").length;
        scrollTo(0, root.offsetHeight / 2);
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        const middle = [...root.querySelectorAll(".cell")].map((c) => Number(c.textContent.match(/n(\\d+)/)[1]));
        return { top, middle: middle.length, least: Math.min(...middle), most: Math.max(...middle) };
    }"""
    seen = page.evaluate(hits)
    assert 0 < seen["top"] < 100
    assert 0 < seen["middle"] < 120
    assert seen["least"] > 3000
    assert seen["most"] < 7000
