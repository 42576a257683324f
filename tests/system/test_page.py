"""The page at ``/`` in a browser: headless Chromium shows a user's events, score and explanation, and finds nothing to complain of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser
from shop import Shop
from test_service import opened, running

from zoo.service import app
from zoo.service.page import timeline

SHOWN = """[...document.querySelectorAll('h1,h2,h3,table')].filter(each => {
  const box = each.getBoundingClientRect(), style = getComputedStyle(each);
  return box.width > 0 && box.height > 0 && style.visibility === 'visible' && style.display !== 'none';
}).map(each => each.innerText)"""
"""Texts of headings and tables that can be seen."""
COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@pytest.fixture(scope="module")
def served(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str], float]]:
    """The service's address; of user 5 the times of the newest events, as the page says them, and the score."""
    predictors, features = opened(trained_shop.copy(tmp_path_factory.mktemp("page") / "shop"))
    with running(app(predictors, features)) as client:
        score = predictors["churn"].predict(users=[5])["score"][0].as_py()
        yield str(client.base_url), [str(time) for time, _, _ in timeline(features, 5)], score


def quiet(browser: Browser, url: str) -> None:
    """The page said nothing to the console, and asked for itself alone."""
    assert browser.of(*COMPLAINTS) == []
    asked = [event["params"]["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    assert asked
    assert all(each.startswith((f"{url}/", "data:")) for each in asked)


def test_a_user_is_asked_for_in_the_form_and_shown(browser: Browser, served: tuple[str, list[str], float]) -> None:
    url, times, score = served
    browser.open(f"{url}/")
    shown = browser.evaluate(SHOWN)
    for expected in ("feature-zoo", "Models that answer", "Freshness"):
        assert expected in shown, shown
    assert any("churn@1" in each for each in shown)
    quiet(browser, url)
    browser.events.clear()
    browser.evaluate("document.querySelector('input[name=user]').value = '5'; document.querySelector('button').click()")
    browser.loaded()
    assert browser.evaluate("location.search").startswith("?user=5&model=churn")
    shown = browser.evaluate(SHOWN)
    headings = [each for each in shown if "\n" not in each]
    for expected in ("User 5: churn", "What moved the score", "Newest events, 50 at most"):
        assert expected in headings, headings
    assert any(each.startswith("Columns of gbdt") for each in headings)
    tables = [each for each in shown if "\n" in each]
    assert any(f"{score:.4f}" in each and "newest_event_age" in each for each in tables), tables  # the prediction
    assert any("every member at the base rate" in each for each in tables)  # its explanation
    assert any(all(time in each for time in times) for each in tables)  # the timeline
    quiet(browser, url)


def test_it_fits_a_phone(browser: Browser, served: tuple[str, list[str], float]) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
    try:
        browser.open(f"{served[0]}/?user=5&model=churn")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    finally:
        browser.ask("Emulation.clearDeviceMetricsOverride")


def test_a_script_in_the_page_would_be_refused_and_heard(browser: Browser, served: tuple[str, list[str], float]) -> None:
    browser.open(f"{served[0]}/")
    script = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}))"
    browser.evaluate(script)
    assert browser.evaluate("window.ran === undefined")
    assert any("Content Security Policy" in str(event) for event in browser.of("Log.entryAdded"))
