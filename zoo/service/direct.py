"""The short way from a request's body to its handler, without what FastAPI does in between for routes of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from inspect import iscoroutinefunction
from typing import Any, get_type_hints

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

KIND = "application/json"


class Direct(APIRoute):
    """For coroutines of ``(http: Request, request: a model)`` that return a response; other routes are FastAPI's.

    What does not go smoothly (another content type, no JSON, a body that does not fit) takes FastAPI's way, which says what is wrong.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        usual, handler = super().get_route_handler(), self.endpoint
        hints = get_type_hints(handler)
        hints.pop("return", None)
        model: Any = hints.get("request")
        if not iscoroutinefunction(handler) or [*hints] != ["http", "request"] or not issubclass(model, BaseModel):
            return usual

        async def direct(http: Request) -> Response:
            asked: Any = None
            if http.headers.get("content-type") == KIND:
                try:
                    asked = model.model_validate(json.loads(await http.body()))
                except HTTPException:  # of reading the body: nothing of it is left for another try
                    raise
                except Exception:  # noqa: BLE001 - told below, where the body, if it came, is looked at once more
                    asked = None
            if asked is None:
                return await usual(http)
            answer: Response = await handler(http, asked)
            return answer

        return direct
