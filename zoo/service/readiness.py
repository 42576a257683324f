"""Whether models can answer at this moment: one check of each at a time, whose outcome stands for a while, however many ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from zoo.deadline import Threads
from zoo.errors import LateError, ZooError
from zoo.predictor import Predictor, State

KEPT = 1.0
"""Seconds for which the outcome of a check stands: anyone may ask, and each check is a prediction by every member."""
WITHIN = 2.0
"""Seconds that a check may take, of which the store has half where the policy has an answer without it."""
CHECKED = 4
"""Models that are checked at once, in threads of their own."""


class Readiness:
    """Checks predictors for one application. Used by one event loop; not thread-safe."""

    def __init__(self) -> None:
        self._threads = Threads(CHECKED)
        self._checks: dict[int, tuple[Predictor, asyncio.Future[State]]] = {}

    async def of(self, predictors: Iterable[Predictor]) -> dict[str, State]:
        """How each of them answers, by version. Raises what keeps one of them from answering: as ``Predictor.predict``, ZooError where it
        is late."""
        asked = [*predictors]
        states = await asyncio.gather(*map(self._of, asked))
        return {each.version.reference: state for each, state in zip(asked, states, strict=True)}

    async def _of(self, predictor: Predictor) -> State:
        number = id(predictor)  # its own for as long as it is kept here
        if number not in self._checks:
            check = asyncio.wrap_future(self._threads.submit(lambda: _checked(predictor)))
            self._checks[number] = predictor, check
            check.add_done_callback(lambda _: self._keep(number))
        return await asyncio.shield(self._checks[number][1])

    def _keep(self, number: int) -> None:
        self._checks[number][1].exception()  # heard, though whoever asked may be gone
        asyncio.get_running_loop().call_later(KEPT, self._checks.pop, number)


def _checked(predictor: Predictor) -> State:
    try:
        return predictor.warm(WITHIN)
    except LateError as error:  # who asks set no deadline
        raise ZooError(f"{predictor.version.reference} did not answer nobody within {WITHIN:g} seconds: {error}") from error
