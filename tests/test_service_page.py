"""The page at ``/``: it shows what is, escapes all of it, loads nothing, and is refused to whoever may not read."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx2 as httpx
import pytest
from shop import Shop
from test_service import opened, purchase, running

from zoo.features import Features
from zoo.service import app
from zoo.service.page import timeline

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Tags, attributes and text; fails where an element is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.said)


@pytest.fixture(scope="module")
def served(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Features]]:
    predictors, features = opened(trained_shop.copy(tmp_path_factory.mktemp("page") / "shop"))
    with running(app(predictors, features)) as client:
        yield client, features


def test_the_page_says_what_answers_and_how_fresh_it_is(served: tuple[httpx.Client, Features]) -> None:
    client, features = served
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    text = Page(response.text).text
    for expected in ("Status: ", "ok", "churn@1", "campaign@1", "gbdt, gru", f"{features.reader.view().count:,}"):
        assert expected in text, expected


def test_a_user_has_events_a_score_and_what_moved_it(served: tuple[httpx.Client, Features]) -> None:
    client, features = served
    found = Page(client.get("/", params={"user": "5", "model": "churn"}).raise_for_status().text)
    answer = client.post("/v1/predict", json={"model": "churn", "users": [5]}).json()["answers"][0]
    assert f"{answer['score']:.4f}" in found.text
    for expected in ("User 5: churn", "What moved the score", "Columns of gbdt", "every member at the base rate"):
        assert expected in found.text
    rows = timeline(features, 5)
    assert rows == sorted(rows, key=lambda row: row[0], reverse=True)
    assert all(time in found.text and kind in found.text for time, kind, _ in rows)
    client.post("/v1/events", json={"events": [purchase(5, "page-1", timestamp="2024-05-30T00:00:00Z")]}).raise_for_status()
    assert "page-1" not in Page(client.get("/?user=5").text).text
    assert Page(client.get("/?user=999999").raise_for_status().text).text.count("User 999999") == 1


@pytest.mark.parametrize(
    "given", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' or 1=1 --", "{{7*7}}", "\u202e&lt;"]
)
def test_what_is_asked_is_shown_as_text_only(served: tuple[httpx.Client, Features], given: str) -> None:
    client, _ = served
    for params in ({"user": given}, {"user": "5", "model": given}):
        response = client.get("/", params=params)
        assert response.status_code == 422
        found = Page(response.text)
        assert given in found.text or repr(given) in found.text
        assert not {"script", "img", "iframe", "object"} & {name for name, _ in found.tags}
        assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_it_loads_nothing_and_its_policy_allows_its_own_style_only(served: tuple[httpx.Client, Features]) -> None:
    client, _ = served
    response = client.get("/?user=5")
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    style = re.search(r"<style>(.*)</style>", response.text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'", "style-src": f"'sha256-{digest}'", "img-src": "data:", "form-action": "'self'", "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }  # fmt: skip
    tags = Page(response.text).tags
    assert not [
        a for _, attributes in tags for n, a in attributes.items() if n in ("src", "href", "action") and a not in ("data:,", "/")
    ]
    assert not [attributes for _, attributes in tags if "style" in attributes], "which the policy forbids"
    assert response.headers["cache-control"] == "no-store"


def test_an_identifier_that_is_too_long_is_refused(served: tuple[httpx.Client, Features]) -> None:
    client, _ = served
    for user in ("9" * 300, "9" * 20, "x" * 20_000):
        response = client.get("/", params={"user": user})
        assert response.status_code == 422
        assert len(response.text) < 20_000
