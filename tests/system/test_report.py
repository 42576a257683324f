"""A report in a browser: headless Chromium finds its plots and nothing to complain of, in light and in dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser
from sample_run import EVERY, record, rows, trial

from zoo.report import Run, render

PLOTS = """[...document.querySelectorAll('svg[data-plot]')].map(svg => {
  const box = svg.getBoundingClientRect(), marks = [...svg.querySelectorAll('circle,polyline,rect')];
  const inside = marks.every(m => { const b = m.getBoundingClientRect(); return b.right <= box.right + 1 && b.left >= box.left - 1; });
  const mark = marks.find(m => !m.classList.contains('rule')), style = getComputedStyle(mark);
  return {name: svg.dataset.plot, width: box.width, height: box.height, inside,
          colour: mark.tagName === 'polyline' ? style.stroke : style.fill};
})"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render(Run("churn@3", {**record(), **trial()}, {"log": {"events": 7}}, rows())), encoding="utf-8")
    return path


def test_every_plot_is_there_and_the_console_is_silent(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    found = browser.evaluate(PLOTS)
    assert sorted(plot["name"] for plot in found) == sorted([*EVERY, "uplift", "policies"])
    for plot in found:
        assert plot["width"] > 200, plot
        assert plot["height"] > 60, plot
        assert plot["inside"], plot
    assert browser.of("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    asked = [event["params"]["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_broken_page_is_heard(browser: Browser, page: Path) -> None:
    page.write_text(
        page.read_text().replace("</main>", "<script>console.error('x')</script><img src='http://127.0.0.1:9/x.png'></main>")
    )
    browser.open(page.as_uri())
    assert len(browser.of("Log.entryAdded", "Runtime.consoleAPICalled")) >= 2  # the page's own policy refuses both


def test_it_is_dark_where_the_reader_is(browser: Browser, page: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(page.as_uri())
        ground, text = browser.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        seen[scheme] = (_light(ground), _light(text), {plot["colour"] for plot in browser.evaluate(PLOTS)})
    assert seen["light"][0] > 0.9 > 0.3 > seen["light"][1]
    assert seen["dark"][0] < 0.15 < 0.8 < seen["dark"][1]
    assert not seen["light"][2] & seen["dark"][2]


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, page: Path) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
    browser.open(page.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.ask("Emulation.clearDeviceMetricsOverride")


def _light(colour: str) -> float:
    """0 for black to 1 for white, of ``rgb(r, g, b)``."""
    return sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) / 765
