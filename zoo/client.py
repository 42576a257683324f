"""A thin typed client of the service, sync and async, over httpx (the extra ``client``). It imports nothing of zoo but its errors.

Long because the sync and the async client stand beside each other, method by method, under the types of their answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import TracebackType
from typing import Any, Self, TypeVar

from zoo.errors import UsageError, ZooError

try:
    import httpx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "zoo.client needs httpx; install it with: pip install 'feature-zoo[client]'", name="httpx"
    ) from error

Id = int | str
Score = float | Mapping[str, float]
T = TypeVar("T")
SLACK = 0.5
"""Seconds past its deadline that a request waits for the service's own word about it."""


class ServiceError(ZooError):
    """The service refused or could not answer. status: of HTTP; kind: as docs/reference/http.md lists them."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class RequestError(ServiceError):
    """The request cannot be meant as it is (400 to 422); sending it again does not help."""


class AccessError(ServiceError):
    """No valid credential (401), or one without the role that is needed (403)."""


class UnavailableError(ServiceError):
    """Another try may be answered. retry_after: seconds that the service asks to wait first, None where it does not say."""

    def __init__(self, status: int, kind: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(status, kind, message)
        self.retry_after = retry_after


class AnswerError(ServiceError):
    """A success that is no answer of the service: something between spoke in its place, or it is of another version. A push may be durable
    all the same: send it again with the same ids."""


class DeadlineError(UnavailableError):
    """No answer within the deadline. A push may be durable all the same: send it again with the same ids."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one row. newest_event_age: seconds, None where there is no event. known: False for a user without events, None
    where the store did not say. missing: members that failed or were late, whose scores are None. features: fresh, last_known or cold.
    id: for ``zoo trace``. calibrated: whether answers that lack these members were off by no more than the task's bound on held-out rows,
    None where that is not known."""

    keys: Mapping[str, Id]
    score: Score
    members: Mapping[str, Score | None]
    newest_event_age: float | None
    known: bool | None
    version: str
    missing: Sequence[str]
    features: str
    id: str
    calibrated: bool | None = None


@dataclass(frozen=True)
class Item:
    """One item of a list. ranks: each member's own rank of it."""

    item_id: Id
    title: str
    score: float
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class Recommendation:
    """One user's list, most likely first. cold: nothing is known of the user, so this is what is popular."""

    user_id: Id
    items: tuple[Item, ...]
    cold: bool | None
    newest_event_age: float | None
    version: str
    features: str | None
    id: str | None


@dataclass(frozen=True)
class Explanation:
    """What moved the score of one row, of one output: ``members`` sum to ``raw - base``. units: of all amounts, ``log-odds`` or ``value``.

    features: member -> (column, how much it moved that member), the strongest first. how: member -> how its columns were weighed. events:
    the newest first within a sequence, each with what ``moved`` without it. source: ``features`` of the answer that is explained. id: for
    ``zoo trace``.
    """

    keys: Mapping[str, Id]
    version: str
    units: str
    output: str | None
    score: float
    raw: float
    base: float
    members: Mapping[str, float]
    features: Mapping[str, Sequence[tuple[str, float]]]
    how: Mapping[str, str]
    events: Sequence[Mapping[str, Any]]
    source: str
    known: bool | None
    id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Pushed:
    """What became of pushed events: ``rows`` is the sum of ``added``, ``repeated`` and all ``quarantined``."""

    rows: int
    added: int
    repeated: int
    quarantined: Mapping[str, int]
    ignored: Sequence[str]
    version: int
    warnings: Sequence[str]


@dataclass(frozen=True)
class Model:
    """A model that the service answers for. policy: what its answers may lack. declared: what zoo.toml says of that in another way; it
    counts from the next training."""

    model: str
    version: str
    aliases: Sequence[str]
    entities: Sequence[str]
    context: Mapping[str, str]
    members: Sequence[str]
    outputs: Sequence[str]
    created: str
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]
    policy: Mapping[str, Any] | None = None
    declared: Mapping[str, Any] | None = None


def _made(kind: type[T], value: Mapping[str, Any]) -> T:
    """Fields that a newer service adds are left out; those that an older one lacks have their default."""
    named = [each.name for each in fields(kind) if each.name in value or each.default is MISSING]  # type: ignore[arg-type]
    return kind(**{name: value[name] for name in named})


def _predictions(body: Any) -> list[Prediction]:
    return [_made(Prediction, each) for each in body["answers"]]


def _recommendations(body: Any) -> list[Recommendation]:
    answers = ({**each, "items": tuple(_made(Item, item) for item in each["items"])} for each in body["answers"])
    return [_made(Recommendation, each) for each in answers]


def _explanations(body: Any) -> list[Explanation]:
    def columns(answer: Any) -> dict[str, list[tuple[str, float]]]:
        return {name: [(each["column"], each["moved"]) for each in listed] for name, listed in answer["features"].items()}

    return [_made(Explanation, {**each, "features": columns(each)}) for each in body["answers"]]


def _models(body: Any) -> list[Model]:
    return [_made(Model, each) for each in body["models"]]


def _pushed(body: Any) -> Pushed:
    return _made(Pushed, body)


def _options(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _within(deadline: float | None) -> dict[str, Any]:
    """What httpx is told of a deadline: the service's header, and how long it waits itself; without one, its client's own timeout."""
    if deadline is None:
        return {}
    if not math.isfinite(deadline):
        raise UsageError(f"deadline is {deadline!r}; expected seconds from now, at most 600; None for the client's own timeout")
    return {"headers": {"X-Deadline-Ms": str(max(1, round(deadline * 1e3)))}, "timeout": max(deadline, 0.0) + SLACK}


def _plain(values: Any) -> list[Any]:
    """Identifiers, rows or events as JSON has them: of arrays, series and their scalars (numpy, pandas, Arrow) the values."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise UsageError(f"{values!r} is a {type(values).__name__}; expected a list, as in [{values!r}]")
    return [
        {name: _scalar(value) for name, value in each.items()} if isinstance(each, Mapping) else _scalar(each) for each in values
    ]


def _scalar(value: Any) -> Any:
    for convert in ("as_py", "item"):  # of Arrow, of numpy
        if hasattr(value, convert):
            return getattr(value, convert)()
    return value


def _predict(model: str, rows: Any, users: Any, at: str | None) -> dict[str, Any]:
    return {"model": model, **({"users": _plain(users)} if rows is None else {"rows": _plain(rows)}), "at": at}


def _explain(model: str, rows: Any, users: Any, at: str | None, output: str | None, top: int, events: int) -> dict[str, Any]:
    return {**_predict(model, rows, users, at), "output": output, "top": top, "events": events}


def _recommend(model: str, users: Any, k: int, exclude_seen: bool | None, where: Any, at: str | None) -> dict[str, Any]:
    return {"model": model, "users": _plain(users), "k": k, "exclude_seen": exclude_seen, "where": where, "at": at}


def _checked(response: httpx.Response, make: Callable[[Any], T]) -> T:
    """What ``make`` makes of an answer's body; else the error that it is."""
    status = response.status_code
    if response.is_success:
        try:
            return make(response.json())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            kind = response.headers.get("content-type", "(none)")
            raise AnswerError(
                status,
                "answer",
                f"{response.request.url} answered {status} with {len(response.content)} bytes of {kind}, no answer of the service "
                f"({type(error).__name__}: {error}); see that the address is the service's, and that it is not older than this client",
            ) from error
    try:
        told = response.json()["error"]
        kind, message = str(told["type"]), str(told["message"])
    except (ValueError, KeyError, TypeError):  # not of our service: something between
        kind, message = "http", f"{response.request.url} answered {status} without a message of the service's"
    if status == 504:
        raise DeadlineError(status, kind, message)
    if status >= 500 or status == 429:
        after = response.headers.get("retry-after", "")
        raise UnavailableError(status, kind, message, float(after) if after.isdecimal() else None)
    raise (AccessError if status in (401, 403) else RequestError)(status, kind, message)


def _failed(error: httpx.HTTPError) -> UnavailableError:
    kind = DeadlineError if isinstance(error, httpx.TimeoutException) else UnavailableError
    return kind(0, "transport", f"the service was not reached, or did not answer: {type(error).__name__}: {error}")


class Client:
    """Asks one service, over connections that are kept. Thread-safe; close it, or use it in a ``with`` block.

    url: as ``http://127.0.0.1:8000``. token: an API key or a JWT. timeout: seconds for an answer without a deadline of its own.
    deadlines (seconds) travel to the service, which answers within them; where it does not, connecting, sending and the answer are each
    given up ``SLACK`` seconds after that long, in the place of ``timeout``.
    Every method raises AccessError, RequestError, DeadlineError, UnavailableError and AnswerError.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 30.0, **httpx_options: Any) -> None:
        self._http = httpx.Client(base_url=url, headers=_options(token), timeout=timeout, **httpx_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _ask(self, make: Callable[[Any], T], method: str, path: str, body: Any = None, deadline: float | None = None) -> T:
        try:
            return _checked(self._http.request(method, path, json=body, **_within(deadline)), make)
        except httpx.HTTPError as error:
            raise _failed(error) from error

    def predict(
        self,
        model: str,
        rows: Sequence[Mapping[str, Any]] | None = None,
        *,
        users: Sequence[Id] = (),
        at: str | None = None,
        deadline: float | None = None,
    ) -> list[Prediction]:
        """One prediction a row (keys and context by column) or user, in order. at: ISO 8601 with an offset."""
        return self._ask(_predictions, "POST", "/v1/predict", _predict(model, rows, users, at), deadline)

    def recommend(
        self,
        model: str,
        users: Sequence[Id],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        where: Mapping[str, Any] | None = None,
        at: str | None = None,
        deadline: float | None = None,
    ) -> list[Recommendation]:
        """One list a user, in order."""
        body = _recommend(model, users, k, exclude_seen, where, at)
        return self._ask(_recommendations, "POST", "/v1/recommend", body, deadline)

    def explain(
        self,
        model: str,
        rows: Sequence[Mapping[str, Any]] | None = None,
        *,
        users: Sequence[Id] = (),
        at: str | None = None,
        output: str | None = None,
        top: int = 10,
        events: int = 10,
        deadline: float | None = None,
    ) -> list[Explanation]:
        """What moved the score of each row or user, in order. output: the class; default: each row's likeliest. top: columns of each
        member. events: newest ones of each sequence."""
        body = _explain(model, rows, users, at, output, top, events)
        return self._ask(_explanations, "POST", "/v1/explain", body, deadline)

    def push(
        self, events: Sequence[Mapping[str, Any]], idempotency_key: str | None = None, deadline: float | None = None
    ) -> Pushed:
        """Events for the log: durable when this returns. Each has an ``event_id``, or the push an idempotency key."""
        body = {"events": _plain(events), "idempotency_key": idempotency_key}
        return self._ask(_pushed, "POST", "/v1/events", body, deadline)

    def models(self) -> list[Model]:
        """What the service answers for."""
        return self._ask(_models, "GET", "/v1/models")


class AsyncClient:
    """``Client`` for asyncio; use it in an ``async with`` block."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 30.0, **httpx_options: Any) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_options(token), timeout=timeout, **httpx_options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _ask(self, make: Callable[[Any], T], method: str, path: str, body: Any = None, deadline: float | None = None) -> T:
        try:
            return _checked(await self._http.request(method, path, json=body, **_within(deadline)), make)
        except httpx.HTTPError as error:
            raise _failed(error) from error

    async def predict(
        self,
        model: str,
        rows: Sequence[Mapping[str, Any]] | None = None,
        *,
        users: Sequence[Id] = (),
        at: str | None = None,
        deadline: float | None = None,
    ) -> list[Prediction]:
        """As ``Client.predict``."""
        return await self._ask(_predictions, "POST", "/v1/predict", _predict(model, rows, users, at), deadline)

    async def recommend(
        self,
        model: str,
        users: Sequence[Id],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        where: Mapping[str, Any] | None = None,
        at: str | None = None,
        deadline: float | None = None,
    ) -> list[Recommendation]:
        """As ``Client.recommend``."""
        body = _recommend(model, users, k, exclude_seen, where, at)
        return await self._ask(_recommendations, "POST", "/v1/recommend", body, deadline)

    async def explain(
        self,
        model: str,
        rows: Sequence[Mapping[str, Any]] | None = None,
        *,
        users: Sequence[Id] = (),
        at: str | None = None,
        output: str | None = None,
        top: int = 10,
        events: int = 10,
        deadline: float | None = None,
    ) -> list[Explanation]:
        """As ``Client.explain``."""
        body = _explain(model, rows, users, at, output, top, events)
        return await self._ask(_explanations, "POST", "/v1/explain", body, deadline)

    async def push(
        self, events: Sequence[Mapping[str, Any]], idempotency_key: str | None = None, deadline: float | None = None
    ) -> Pushed:
        """As ``Client.push``."""
        body = {"events": _plain(events), "idempotency_key": idempotency_key}
        return await self._ask(_pushed, "POST", "/v1/events", body, deadline)

    async def models(self) -> list[Model]:
        """As ``Client.models``."""
        return await self._ask(_models, "GET", "/v1/models")
