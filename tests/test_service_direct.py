"""The short way to a handler answers as FastAPI's own does."""

from __future__ import annotations

import asyncio
from typing import Any

import fastapi.routing
import httpx2 as httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from zoo.service.direct import Direct
from zoo.service.problems import Json, handle

JSON = {"content-type": "application/json"}


class Asked(BaseModel):
    users: list[int] = Field(max_length=3)
    note: str | None = None


def application(kind: type[fastapi.routing.APIRoute]) -> FastAPI:
    api = FastAPI()
    api.router.route_class = kind
    handle(api)

    @api.post("/ask")
    async def ask(http: Request, request: Asked) -> Json:
        return Json({"asked": request.model_dump(), "path": http.url.path})

    @api.post("/blocking")
    def blocking(http: Request, request: Asked) -> Json:
        return Json({"blocking": request.model_dump()})

    @api.get("/named/{name}")
    async def named(name: str) -> Json:
        return Json({"name": name})

    return api


def asked(api: FastAPI, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async def ask() -> tuple[int, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://localhost") as client:
            answer = await client.request(method, path, **more)
            return answer.status_code, answer.json()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"users": [1, 2]}', JSON),
        (b'{"users": ["7"], "note": "\xc3\xa9"}', JSON),
        (b'{"users": [1]}', {"content-type": "application/json; charset=utf-8"}),
        (b'{"users": [1]}', {"content-type": "text/plain"}),
        (b'{"users": [1]}', {}),
        (b'{"users": [1, 2, 3, 4], "note": 5}', JSON),
        (b'{"users": ', JSON),
        (b"\xff\xfe", JSON),
        (b"[" * 100_000, JSON),
    ],
)
def test_every_body_is_answered_as_fastapi_answers_it(content: bytes, headers: dict[str, str]) -> None:
    direct, usual = (
        asked(application(kind), "POST", "/ask", content=content, headers=headers) for kind in (Direct, fastapi.routing.APIRoute)
    )
    assert direct == usual


@pytest.mark.parametrize("path", ["/ask", "/blocking"])
def test_a_body_is_an_object_that_names_each_field_once(path: str) -> None:
    said = {
        b"": (400, "the body is empty; expected one object with its fields, see GET /openapi.json"),
        b"null": (422, "the body: it is a JSON null; expected one object with its fields, see GET /openapi.json"),
        b"[1]": (422, "the body: it is a JSON list; expected one object with its fields, see GET /openapi.json"),
        b'{"users": [1], "users": [2]}': (422, 'the body: an object has the field "users" 2 times; expected it once'),
        b'{"users": [{"\xc3\xa9": 1, "\\u00e9": 1}]}': (
            422,
            'the body: an object has the field "\\u00e9" 2 times; expected it once',
        ),
    }
    for content, (status, message) in said.items():
        for headers in ({"content-type": "application/json; charset=utf-8"}, JSON):
            answer = asked(application(Direct), "POST", path, content=content, headers=headers)
            assert (answer[0], answer[1]["error"]["message"]) == (status, message)


def test_it_goes_past_what_fastapi_does_for_routes_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(**_: Any) -> None:
        raise AssertionError

    api = application(Direct)
    assert asked(api, "POST", "/blocking", json={"users": [1]}) == (200, {"blocking": {"users": [1], "note": None}})
    assert asked(api, "GET", "/named/x") == (200, {"name": "x"})
    monkeypatch.setattr(fastapi.routing, "solve_dependencies", never)
    assert asked(api, "POST", "/ask", json={"users": [1]}) == (200, {"asked": {"users": [1], "note": None}, "path": "/ask"})
    with pytest.raises(AssertionError):
        asked(api, "GET", "/named/x")


def test_the_document_names_the_body() -> None:
    document = application(Direct).openapi()
    body = document["paths"]["/ask"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Asked"}
