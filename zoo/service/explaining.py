"""Explanations, and pages that show one: worked on in threads of their own, few at once, so that nothing else waits for them."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from zoo.deadline import Threads
from zoo.service.admission import OVERLOADED
from zoo.service.metrics import Metrics

AT_ONCE = 2
"""Requests that are worked on at once, in threads of their own: pushes, lists and predictions must not wait for those."""
PLACES = 16
"""Those that are worked on or wait, beyond which further ones are refused: they must not take the places of all others."""


class Explaining:
    """Used in one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._threads, self._taken = metrics, Threads(AT_ONCE), 0

    async def answered(self, http: Request, work: Callable[[], Response]) -> Response:
        """What ``work`` makes in a thread, or the refusal of a request too many."""
        if self._taken >= PLACES:
            self._metrics.refused(OVERLOADED.kind).inc()
            return OVERLOADED.answer(http.url.path)
        self._taken += 1
        try:
            return await self._threads.answer(work)
        finally:
            self._taken -= 1
