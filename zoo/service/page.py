"""The page at ``/``: what answers, how fresh it is, and one user's events, score and explanation, for people. It loads and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, Response

from zoo.deadline import Threads
from zoo.errors import UnknownIdError, UsageError, ZooError, choices
from zoo.features import Features
from zoo.plugin import PADDING, UNKNOWN
from zoo.predictor import Predictor
from zoo.recommender import Recommender
from zoo.report.markup import STYLE, Markup, page, table, tag
from zoo.service.access import READ, needs
from zoo.service.explaining import Explaining
from zoo.service.versions import Versions

EVENTS = 50
"""Newest events of a user that are listed."""
MOVED = 5
"""Columns of each member whose move is listed."""
LONGEST = 200
"""Characters of an identifier."""
_log = logging.getLogger(__name__)
_STYLE = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE}'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page(
    api: FastAPI, versions: Versions, features: Features, explaining: Explaining, threads: Threads, health: Any, compared: Any
) -> None:
    """The route ``GET /``. health: says what ``/health`` does. compared: says what ``/v1/shadows`` does."""

    @api.get("/", openapi_extra=needs(READ), response_class=HTMLResponse, include_in_schema=False)
    async def home(http: Request, user: str = "", model: str = "") -> Response:
        """State of the service, and with ``?user=ID`` what is known and said of a user."""
        user, status, told = user.strip(), health(), compared()

        def work() -> HTMLResponse:
            return _shown(versions, features, user, model, tag("h1", "feature-zoo"), *_state(versions, features, status, told))

        return await (explaining.answered(http, work) if user else threads.answer(work))


def _shown(versions: Versions, features: Features, user: str, model: str, *state: Markup) -> HTMLResponse:
    status, parts = 200, [*state]
    try:
        parts += [_form(versions, user, model), *(_user(versions, features, user, model) if user else ())]
    except (UsageError, UnknownIdError) as error:
        status, parts = 422, [*parts, tag("p", f"That cannot be asked: {error}", role="alert")]
    except ZooError as error:
        status, parts = 503, [*parts, _unanswered(error, "That cannot be answered now")]
    return HTMLResponse(page("feature-zoo", *parts), status, HEADERS)


def _unanswered(error: ZooError, what: str) -> Markup:
    """Messages of failures name paths, so the log has them, as for the routes of JSON."""
    _log.error("the page cannot answer", exc_info=error)
    return tag("p", f"{what}; the server's log says why.", role="alert")


def _state(
    versions: Versions, features: Features, health: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]
) -> Iterator[Markup]:
    rows = []
    for name, predictor in versions.items():
        said, version = health["models"][name], predictor.version
        troubles = [f"{said['candidate']} could not be loaded: {said['trouble']}"] if said["candidate"] else []
        for aside in ("canary", "shadow"):
            troubles += [f"its {aside} could not be loaded: {trouble}"] if (trouble := said[f"{aside}_trouble"]) else []
        rows.append(
            (
                name,
                version.reference,
                ", ".join(versions.aliases(name)),
                f"{version.created:%Y-%m-%d %H:%M}",
                ", ".join(predictor.members),
                "; ".join(troubles) or None,
            )
        )
    yield tag(
        "p",
        "Status: ",
        tag("strong", health["status"]),
        ". The registry ",
        "answers." if health["registry"] else "does not answer.",
    )
    yield tag("h2", "Models that answer")
    yield table(
        ["model", "version", "aliases", "created (UTC)", "members", "trouble"], rows, [i for i, row in enumerate(rows) if row[-1]]
    )
    if compared:
        yield tag("h2", "Shadows")
        yield table(list(compared[0]), [list(line.values()) for line in compared])
    yield tag("h2", "Freshness")
    try:
        view = features.reader.view()
        now, newest = features.reader.now(view), view.end
        age = None if newest is None else _duration((now - newest) / 1e6)
        yield table(
            ["events in the log", "newest event (UTC)", "now (UTC)", "age"], [(view.count, _time(newest), _time(now), age)]
        )
    except ZooError as error:
        yield _unanswered(error, "The log cannot be read now")


def _form(versions: Versions, user: str, model: str) -> Markup:
    options = [tag("option", name, value=name, selected="" if name == model else None) for name in versions]
    return tag(
        "form",
        tag("h2", "A user"),
        tag(
            "label", "User ", Markup(tag("input", name="user", value=user[:LONGEST], maxlength=LONGEST).removesuffix("</input>"))
        ),
        tag("label", " Model ", tag("select", *options, name="model")),
        tag("button", "Show", type="submit"),
        method="get",
        action="/",
    )


def _user(versions: Versions, features: Features, text: str, model: str) -> Iterator[Markup]:
    name = model or next(iter(versions), "")
    if name not in versions:
        raise UsageError(choices("model", name[:LONGEST], versions))
    if len(text) > LONGEST:
        raise UsageError(f"an identifier of {len(text)} characters; expected at most {LONGEST}")
    user = _identifier(features, text)
    predictor = versions.of(name, user)
    yield tag("h2", f"User {text}: {name}")
    yield from _answer(predictor, user)
    yield tag("h2", f"Newest events, {EVENTS} at most")
    yield table(["time (UTC)", "event", "item"], timeline(features, user))


def _answer(predictor: Predictor, user: Any) -> Iterator[Markup]:
    """The score or the list, then what moved the score."""
    if isinstance(predictor.ensemble, Recommender):
        found = predictor.recommend([user])
        yield table(found.column_names, [[_cell(*each) for each in row.items()] for row in found.to_pylist()])
        return
    if predictor.entities != ("user_id",) or predictor.context:
        keys = ", ".join((*predictor.entities, *predictor.context))
        yield tag("p", f"{predictor.version.reference} is asked with {keys}; see POST /v1/predict.")
        return
    (row,) = predictor.predict(users=[user]).to_pylist()
    yield table(["what", "says"], [(name, _cell(name, value)) for name, value in row.items()])
    try:
        (found,) = predictor.explain(users=[user], top=MOVED, events=0)
    except ZooError as error:
        yield _unanswered(error, "What moved the score cannot be said now")
        return
    output = f" of {found.output}" if found.output else ""
    yield tag("h3", f"What moved the score{output}")
    if found.known is False:
        yield tag("p", "No event of this user before this time: this explains the answer to somebody new.")
    if found.source != "fresh":
        yield tag("p", f"The online store did not answer: this explains an answer of {found.source.replace('_', ' ')} features.")
    members = [("every member at the base rate", found.base), *found.members.items(), ("the score, raw", found.raw)]
    yield table(["member", "moved by"], members)
    for name, columns in found.features.items():
        yield tag("h3", f"Columns of {name}, by {found.how[name]}")
        yield table(["column", "moved by"], columns)


def timeline(features: Features, user: Any, count: int = EVENTS) -> list[tuple[str | None, str, str | None]]:
    """(time, type of event, item) of a user's newest events before now, the newest first. Raises UnknownIdError."""
    view = features.reader.view()
    codes, times = np.array([view.code("user_id", user)], np.int32), np.array([features.reader.now(view)])
    if codes[0] <= UNKNOWN:
        return []
    partitions = view.partitions("user_id")
    (piece,) = partitions.route(codes)
    events = partitions.evaluator(piece.number).index.events(piece.codes, times)
    newest = np.arange(len(events))[::-1][:count]
    kinds, items = view.names("event_type"), view.names("item_id")
    kind, item = events.column("event_type")[newest], events.column("item_id")[newest]
    return [
        (_time(int(time)), str(kinds[k]), None if i == PADDING else str(items[i]))
        for time, k, i in zip(events.time[newest].tolist(), kind.tolist(), item.tolist(), strict=True)
    ]


def _identifier(features: Features, text: str) -> Any:
    """The text in the type of the log's user identifiers. Raises UnknownIdError."""
    if features.reader.log.schema.user_id == "string":
        return text
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 19:
        raise UnknownIdError(f"user {text!r} is no whole number; this log's user identifiers are int, as in 42")
    return int(text)


def _cell(name: str, value: Any) -> Any:
    """What a table shows of an answer's column: an age in words, a list's values, an identifier without thousands' commas."""
    if value is None or isinstance(value, bool):
        return value
    if name == "newest_event_age":
        return _duration(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    return value if isinstance(value, float) else str(value)


def _time(micros: int | None) -> str | None:
    return None if micros is None else f"{datetime.fromtimestamp(micros // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
