"""A report in a browser: headless Chromium finds its plots and nothing to complain of, in light and in dark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_run import EVERY, record, rows, trial

from zoo.report import Run, render

NAMES = ("chromium", "chromium-browser", "google-chrome")
PLOTS = """[...document.querySelectorAll('svg[data-plot]')].map(svg => {
  const box = svg.getBoundingClientRect(), marks = [...svg.querySelectorAll('circle,polyline,rect')];
  const inside = marks.every(m => { const b = m.getBoundingClientRect(); return b.right <= box.right + 1 && b.left >= box.left - 1; });
  const mark = marks.find(m => !m.classList.contains('rule')), style = getComputedStyle(mark);
  return {name: svg.dataset.plot, width: box.width, height: box.height, inside,
          colour: mark.tagName === 'polyline' ? style.stroke : style.fill};
})"""


class Browser:
    """Chromium's DevTools protocol over a pipe: JSON messages that end with a zero byte."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self.write = os.pipe()
        self.read, answers = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        script = f'exec "$@" 3<&{commands} 4>&{answers}'  # Chromium reads descriptor 3 and writes 4
        self.process = subprocess.Popen(
            ["bash", "-c", script, "browser", program, *options, "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.number, self.events, self.rest, self.session = 0, [], b"", ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            chunk = os.read(self.read, 1 << 16)
            assert chunk, f"the browser ended with {self.process.wait()}"
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, path: Path) -> None:
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def of(self, *methods: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") in methods]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self.write)
        os.close(self.read)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program is not None, "no Chromium on PATH; install it, as .ci/run does: apt-get install chromium"
    with tempfile.TemporaryDirectory() as profile:
        opened = Browser(program, Path(profile))
        yield opened
        opened.close()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render(Run("churn@3", {**record(), **trial()}, {"log": {"events": 7}}, rows())), encoding="utf-8")
    return path


def test_every_plot_is_there_and_the_console_is_silent(browser: Browser, page: Path) -> None:
    browser.open(page)
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
    browser.open(page)
    assert len(browser.of("Log.entryAdded", "Runtime.consoleAPICalled")) >= 2  # the page's own policy refuses both


def test_it_is_dark_where_the_reader_is(browser: Browser, page: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(page)
        ground, text = browser.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        seen[scheme] = (_light(ground), _light(text), {plot["colour"] for plot in browser.evaluate(PLOTS)})
    assert seen["light"][0] > 0.9 > 0.3 > seen["light"][1]
    assert seen["dark"][0] < 0.15 < 0.8 < seen["dark"][1]
    assert not seen["light"][2] & seen["dark"][2]


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, page: Path) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
    browser.open(page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.ask("Emulation.clearDeviceMetricsOverride")


def _light(colour: str) -> float:
    """0 for black to 1 for white, of ``rgb(r, g, b)``."""
    return sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) / 765
