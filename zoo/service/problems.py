"""From an exception to a status and a body ``{"error": {"type", "message"}}``.

A caller's mistake is told in full; a failure of ours is logged with its cause and answered without it, for messages name paths.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from zoo.errors import FeatureError, LateError, PluginError, ReusedKeyError, SchemaError, UnknownIdError, UsageError, ZooError

MISTAKES: dict[type[ZooError], str] = {
    ReusedKeyError: "reused_key",
    UsageError: "usage",
    SchemaError: "schema",
    UnknownIdError: "identifier",
}
"""Errors that the caller can mend (422), and the type they are told as. The first that fits counts."""
FAILURES: dict[type[ZooError], str] = {FeatureError: "features", ZooError: "unavailable"}
"""Errors that another try may not meet (503). The first that fits counts."""
STATUS_TYPES = {404: "not_found", 405: "method_not_allowed", 408: "too_slow"}
MAX_BODY = 4 * 1024 * 1024
"""Bytes of one request's body."""
READ_TIMEOUT = 20.0
"""Seconds that a caller may take to send a head, and as many for its body."""
SHOWN = 5
"""Mistakes in one body that are told."""
SEEN = 40
"""Characters of a value that are quoted."""
LONGEST = 1_000
"""Characters of a message: a mistake may be as long as the body."""

_BRANCHES = {"int", "float", "str", "bool"}
"""What pydantic names the types of a union that a value may be of; it tells each that it is not, at a place below the value's own."""
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}
_log = logging.getLogger(__name__)


class UnknownModelError(UsageError):
    """This server answers for no model of that name."""


class BodyError(StarletteHTTPException):
    """A body that is no request. kind: the type that it is told as."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(status, message)
        self.kind = kind


class Json(Response):
    """JSON in ASCII: messages may quote text that UTF-8 cannot hold (half of a surrogate pair)."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def problem(status: int, kind: str, message: str, headers: Any = None, path: str = "") -> Json:
    """path: of the request; the Open Inference Protocol's errors are a text."""
    shown = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
    if path.startswith("/v2"):
        return Json({"error": shown}, status, headers)
    return Json({"error": {"type": kind, "message": shown}}, status, headers)


@dataclass(frozen=True)
class Refusal:
    """Why a request may not be answered. headers: of what it gets instead."""

    status: int
    kind: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()

    def answer(self, path: str) -> Json:
        return problem(self.status, self.kind, self.message, dict(self.headers), path)


def too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"the body is larger than {limit} bytes; send fewer rows in one request")


def too_slow(seconds: float) -> Refusal:
    return Refusal(
        408, "too_slow", f"the request did not come whole within {seconds:g} seconds; send its head and its body at once"
    )


def handle(app: FastAPI) -> None:
    """Give every error that a route may raise the one form of body; ``Guard`` does it for all others."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(BodyError, _body)
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(ZooError, _zoo)


async def _invalid(request: Request, error: Exception) -> Json:
    path = request.url.path
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        return problem(
            400,
            "malformed_json",
            f"the body is not JSON: {found[0]['ctx']['error']} at character {found[0]['loc'][-1]}",
            path=path,
        )
    kind = request.headers.get("content-type", "")
    if isinstance(error.body, bytes):  # a body that FastAPI did not take for JSON
        return problem(
            415, "unsupported_media_type", f"the body has Content-Type {kind or '(none)'!r}; expected application/json", path=path
        )
    values: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for each in found:
        place = each["loc"][1:]
        values.setdefault(place[:-1] if place and place[-1] in _BRANCHES else place, []).append(each)
    told = [_told(*each) for each in [*values.items()][:SHOWN]]
    more = [f"{len(values) - SHOWN} more"] if len(values) > SHOWN else []
    return problem(422, "invalid_request", "; ".join([*told, *more]), path=path)


def _told(place: tuple[Any, ...], errors: Sequence[dict[str, Any]]) -> str:
    """errors: of one value, each says what it might have been."""
    where = ".".join(map(str, place)) or "the body"
    first = errors[0]
    if all(each["type"] in _EXPECTED for each in errors):
        *others, last = [_EXPECTED[each["type"]] for each in errors]
        expected = f"{', '.join(others)} or {last}" if others else last
        return f"{where}: seen {seen(first['input'])}; expected {expected}"
    message = first["msg"].removeprefix("Value error, ")
    tells = first["type"] in ("missing", "value_error") or isinstance(first["input"], (dict, list))
    return f"{where}: {message}" if tells else f"{where}: {message}; seen {seen(first['input'])}"


def seen(value: Any) -> str:
    """A value of a body, in short."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, default=repr)
    return text if len(text) <= SEEN else f"{text[:SEEN]}..."


async def _body(request: Request, error: Exception) -> Json:
    assert isinstance(error, BodyError)
    return problem(error.status_code, error.kind, str(error.detail), path=request.url.path)


async def _http(request: Request, error: Exception) -> Json:
    assert isinstance(error, StarletteHTTPException)
    status = error.status_code
    if status == 400:  # FastAPI's word for a body that made its parser fail: no UTF-8, too deep, a number too long
        return problem(
            400, "malformed_json", "the body cannot be read as JSON; expected one object in UTF-8", path=request.url.path
        )
    if status == 413:
        return too_large(MAX_BODY).answer(request.url.path)
    path = f"{request.method} {request.url.path}"
    told = {
        404: f"there is nothing at {path}; GET /openapi.json lists the routes"
        + "; leave out the / at its end" * path.endswith("/"),
        405: f"{path} is not offered; allowed: {(error.headers or {}).get('Allow', '(see GET /openapi.json)')}",
    }
    return problem(status, STATUS_TYPES.get(status, "http"), told.get(status, str(error.detail)), error.headers, request.url.path)


async def _zoo(request: Request, error: Exception) -> Json:
    path = request.url.path
    if isinstance(error, UnknownModelError):
        return problem(404, "unknown_model", str(error), path=path)
    if isinstance(error, LateError):
        return problem(504, "deadline", str(error), path=path)
    for mistake, kind in MISTAKES.items():
        if isinstance(error, mistake):
            return problem(422, kind, str(error), path=path)
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    if isinstance(error, PluginError):
        return problem(500, "model", "a model gave no usable score; the server's log names it and says why", path=path)
    kind = next(kind for failure, kind in FAILURES.items() if isinstance(error, failure))
    return problem(
        503, kind, "this cannot be answered at present; the server's log says why. Try again later, with the same ids", path=path
    )
