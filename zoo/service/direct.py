"""From a request's body to its handler: one JSON object that names each field once, and a shorter way than FastAPI's for most of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from inspect import iscoroutinefunction
from typing import Any, get_type_hints

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from zoo.service.problems import BodyError, seen

KIND = "application/json"
BINARY = "inference-header-content-length"
"""Header of Triton's extension of the Open Inference Protocol."""
_KINDS = {list: "list", str: "text", bool: "boolean", int: "number", float: "number"}


class Body(Request):
    """A request that is to hold an object of this model.

    BodyError, which both methods raise, is an HTTPException, which FastAPI lets through.
    """

    def __init__(self, http: Request, model: type[BaseModel]) -> None:
        super().__init__(http.scope, http.receive)
        self._model = model

    async def body(self) -> bytes:
        """Raises BodyError where it is empty."""
        content = await super().body()
        if not content:
            raise BodyError(400, "malformed_json", f"the body is empty; expected one object with its fields, {self._example()}")
        return content

    async def json(self) -> Any:
        """Raises BodyError for a body that is no object, or names a field of one twice: readers differ in which of them they take."""
        content = await self.body()
        found = _DECODER.decode(content.decode(json.detect_encoding(content), "surrogatepass"))  # as json.loads does
        if not isinstance(found, dict):
            told = f"the body: it is a JSON {_KINDS.get(type(found), 'null')}; expected one object with its fields, {self._example()}"
            raise BodyError(422, "invalid_request", told)
        return found

    def _example(self) -> str:
        more = self._model.model_config.get("json_schema_extra")
        return f"as in {json.dumps(more['examples'][0])}" if isinstance(more, dict) else "see GET /openapi.json"  # type: ignore[index]


class Direct(APIRoute):
    """For handlers of ``request``, a model. Coroutines of ``(http: Request, request)`` that return a response are called directly; other
    handlers FastAPI's way.

    What does not go smoothly (another content type, no JSON, a body that does not fit) takes FastAPI's way, too, which says what is wrong.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        usual, handler = super().get_route_handler(), self.endpoint
        hints = get_type_hints(handler)
        hints.pop("return", None)
        model: Any = hints.get("request")
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return usual
        short = iscoroutinefunction(handler) and [*hints] == ["http", "request"]

        async def direct(http: Request) -> Response:
            body, asked = Body(_of_tensors(http) if self.path.startswith("/v2") else http, model), None
            if short and body.headers.get("content-type") == KIND:
                try:
                    asked = model.model_validate(await body.json())
                except HTTPException:  # of reading the body: nothing of it is left for another try
                    raise
                except Exception:  # noqa: BLE001 - told below, where the body, if it came, is looked at once more
                    asked = None
            if asked is None:
                return await usual(body)
            answer: Response = await handler(body, asked)
            return answer

        return direct


def _of_tensors(http: Request) -> Request:
    """A request by the Open Inference Protocol, whose clients do not all announce their JSON; nothing is changed by one, so that a page
    elsewhere, which can leave the header out as well, gains nothing. Raises BodyError for Triton's binary data."""
    if BINARY in http.headers:
        raise BodyError(
            415,
            "unsupported_media_type",
            f"the body has binary data behind its JSON ({BINARY}), an extension that this server does not have; expected JSON alone, the "
            "values of each input in its data (Triton's client: binary_data=False)",
        )
    if "content-type" in http.headers:
        return http
    return Request({**http.scope, "headers": [*http.scope["headers"], (b"content-type", KIND.encode())]}, http.receive)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, times),) = Counter(name for name, _ in pairs).most_common(1)
        raise BodyError(422, "invalid_request", f"the body: an object has the field {seen(name)} {times} times; expected it once")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)  # to make one takes as long as to read a short body
