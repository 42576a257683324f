"""The HTTP application: its routes, each a few lines over a Predictor or the event log."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from zoo.deadline import Threads
from zoo.errors import UsageError, choices
from zoo.features import Features
from zoo.predictor import Predictor
from zoo.registry import CANARY, SHADOW
from zoo.service.access import ADMIN, OPEN, PUSH, READ, Access, Rules, needs, rules_of
from zoo.service.admission import Admission
from zoo.service.batches import Batches
from zoo.service.direct import Direct
from zoo.service.explaining import Explaining
from zoo.service.guard import Guard, in_time
from zoo.service.load import Limiter
from zoo.service.messages import (
    DEADLINE,
    Comparisons,
    ErrorBody,
    EventsRequest,
    ExplainRequest,
    Explanations,
    Health,
    ModelCard,
    Models,
    Predictions,
    PredictRequest,
    ReadyStatus,
    Recommendations,
    RecommendRequest,
    Report,
    Status,
    Swapped,
)
from zoo.service.metrics import CONTENT_TYPE, Metrics
from zoo.service.page import add_page
from zoo.service.problems import READ_TIMEOUT, Json, handle
from zoo.service.readiness import Readiness
from zoo.service.shadow import Shadows
from zoo.service.v2 import add_v2
from zoo.service.versions import Versions

GUARDED: Mapping[int, str] = {
    401: "No valid credential came with the request, where the server asks for one",
    403: "The credential has not the role that this needs",
    408: "The request was not sent whole in time",
    421: "The server is not called by that name",
    431: "Target and headers are too large",
    500: "A fault of the server's or of a model's; its log says which",
}
"""What any route may answer, before or after it is asked."""
THREADS = (os.cpu_count() or 1) + 2
"""For pushes, lists, long requests, reloads. More than there are processors for only take turns, and keep refusals waiting for theirs.
None of them keeps a process that was told to stop."""
LINEAGE = ("log", "service_hash", "plugins", "seed", "git")
MISTAKES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The body is not JSON"},
    413: {"model": ErrorBody, "description": "The body is too large"},
    415: {"model": ErrorBody, "description": "The body is not announced as JSON"},
    422: {"model": ErrorBody, "description": "The request cannot be meant; the message says what was expected"},
    503: {"model": ErrorBody, "description": "Features or log cannot be used at present, or there is too much work: Retry-After"},
    504: {"model": ErrorBody, "description": "No answer within X-Deadline-Ms"},
}


def app(
    predictors: Mapping[str, Predictor],
    features: Features,
    *,
    hosts: Collection[str] | None = None,
    access: Access | None = None,
    limiter: Limiter | None = None,
    read_timeout: float = READ_TIMEOUT,
) -> FastAPI:
    """The application that answers for these predictors, by model name, and takes events for the log behind ``features``.

    Predictions asked for at once are computed together (``Batches``), explanations and pages in threads of their own, other work
    in ``THREADS`` threads, so predictors must be thread-safe (they are). hosts: names that requests may call the server by, without
    port; None for any. access: who may ask; None for anyone, see ``serve``. limiter: how many requests
    are worked on at once. read_timeout: seconds that a caller may take to send a head, and its body; 0 for any
    time. Raises UsageError where a route declares no role.
    """
    # no pages that load scripts from elsewhere: they would run in the origin that pushes events
    # FastAPI's own telemetry would send the query, in which a page's user stands, and the text of errors: see zoo.spans
    quiet: Any = {"tracing": False, "metrics": False, "logs": False}
    # no redirects: some clients lose the body of a POST on the way
    api = FastAPI(
        title="feature-zoo",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=quiet,
    )
    api.router.route_class = Direct
    versions = predictors if isinstance(predictors, Versions) else Versions(predictors)
    rules, metrics, threads, shadows, readiness = Rules(), Metrics(), Threads(THREADS), Shadows(), Readiness()
    batches = Batches(threads)
    explaining = Explaining(metrics)
    handle(api)
    api.state.admission = Admission(
        hosts=hosts,
        rules=rules,
        access=access,
        limiter=limiter or Limiter(),
        metrics=metrics,
        give_way=batches.give_way,
        read_timeout=read_timeout,
    )
    api.add_middleware(Guard, admission=api.state.admission)

    asks = {**needs(READ), **DEADLINE}

    # routes are tried in this order, and this one is asked most
    @api.post(
        "/v1/predict",
        response_model=Predictions,
        openapi_extra=asks,
        responses={404: {"model": ErrorBody}, **MISTAKES},
        tags=["models"],
    )
    async def predict(http: Request, request: PredictRequest) -> Json:
        """Predict for every row, in order."""
        whom = _first(request.users or request.rows)
        predictor = versions.meant(request.model, whom)
        if request.rows is not None:
            _only_known(predictor, request.rows)
        shadow = versions.shadow(request.model, whom)

        def answers(rows: list[dict[str, Any]], at: int | None) -> Json:
            if shadow is not None:
                shadows.copy(predictor, shadow, rows, lambda it: it.predict(request.rows, users=request.users, at=at))
            return Json({"answers": [_answer(predictor, row) for row in rows]})

        with metrics.of(predictor):
            left = in_time(http)
            return await batches.predict(
                predictor, request.rows, answers, users=request.users, at=request.instant(), deadline=left
            )

    @api.get("/health/live", openapi_extra=needs(OPEN), response_model=Status, tags=["health"])
    async def live() -> Json:
        """Whether the process answers."""
        return Json({"status": "live"})

    @api.get("/health", openapi_extra=needs(READ), response_model=Health, tags=["health"])
    async def health() -> Json:
        """Which version of each model answers, and whether what the registry names could not be loaded."""
        return Json(_health(versions))

    @api.get(
        "/health/ready",
        openapi_extra=needs(OPEN),
        response_model=ReadyStatus,
        responses={503: {"model": ErrorBody}},
        tags=["health"],
    )
    async def ready() -> Json:
        """Whether every model can answer at this moment: its features are read and its members score, or (``degraded``) its policy has an
        answer without."""
        told = {name: "ready" if state.whole else "degraded" for name, state in (await readiness.of(versions.everyone())).items()}
        return Json({"status": "degraded" if "degraded" in told.values() else "ready", "versions": told})

    @api.get("/metrics", openapi_extra=needs(READ), response_class=Response, tags=["health"], include_in_schema=False)
    async def prometheus() -> Response:
        """Counts in Prometheus's text format."""
        return Response(metrics.text(versions), media_type=CONTENT_TYPE)

    @api.get("/openapi.json", openapi_extra=needs(READ), include_in_schema=False)
    async def openapi() -> Json:
        """This document."""
        return Json(_document(api))

    @api.get("/v1/models", openapi_extra=needs(READ), response_model=Models, tags=["models"])
    async def models() -> Json:
        """The models that this server answers for, and what they were made from."""
        return Json({"models": [_card(name, predictor, versions.aliases(name)) for name, predictor in versions.items()]})

    @api.get("/v1/shadows", openapi_extra=needs(READ), response_model=Comparisons, tags=["models"])
    async def compared() -> Json:
        """What versions answered, and what their shadows would have answered to the same requests since this server began."""
        return Json({"shadows": shadows.told()})

    @api.post("/v1/reload", response_model=Swapped, openapi_extra=needs(ADMIN), responses={503: MISTAKES[503]}, tags=["models"])
    async def reload() -> Json:
        """Ask the registry now, not at the next look, and try failed candidates again; answered when what moved has taken over."""
        return Json({"swapped": await threads.answer(lambda: versions.look(retry=True))})

    @api.post(
        "/v1/recommend",
        response_model=Recommendations,
        openapi_extra=asks,
        responses={404: {"model": ErrorBody}, **MISTAKES},
        tags=["models"],
    )
    async def recommend(http: Request, request: RecommendRequest) -> Json:
        """List the items that each user takes next, most likely first."""
        predictor = versions.meant(request.model, _first(request.users))

        def work() -> Json:
            table = predictor.recommend(
                request.users,
                request.k,
                exclude_seen=request.exclude_seen,
                where=request.where or None,
                at=request.instant(),
                deadline=in_time(http),
            )
            return Json({"answers": _lists(predictor, request.users, table.to_pylist())})

        with metrics.of(predictor):
            return await threads.answer(work)

    @api.post(
        "/v1/explain",
        response_model=Explanations,
        openapi_extra=asks,
        responses={404: {"model": ErrorBody}, **MISTAKES},
        tags=["models"],
    )
    async def explain(http: Request, request: ExplainRequest) -> Response:
        """Say what moved the score of every row, in order: members, their columns and single events."""
        predictor = versions.meant(request.model, _first(request.users or request.rows))
        if request.rows is not None:
            _only_known(predictor, request.rows)

        def work() -> Json:
            found = predictor.explain(
                request.rows,
                users=request.users,
                at=request.instant(),
                output=request.output,
                top=request.top,
                events=request.events,
                deadline=in_time(http),
            )
            keys = predictor.rows(request.rows, request.users).select(predictor.entities).to_pylist()
            version = predictor.version.reference
            answers = [{"keys": key, "version": version, **each.as_dict()} for key, each in zip(keys, found, strict=True)]
            return Json({"answers": answers})

        with metrics.of(predictor):
            return await explaining.answered(http, work)

    @api.post("/v1/events", response_model=Report, openapi_extra={**needs(PUSH), **DEADLINE}, responses=MISTAKES, tags=["events"])
    async def events(http: Request, request: EventsRequest) -> Json:
        """Push events: when this is answered they are durable, and the next prediction sees them."""

        def work() -> Json:
            in_time(http)
            report = features.append(request.events, request.idempotency_key)
            facts = {name: getattr(report, name) for name in ("rows", "added", "repeated", "version", "ignored", "warnings")}
            return Json({**facts, "quarantined": dict(report.quarantined)})

        return await threads.answer(work)

    add_v2(api, features, versions, metrics, batches, shadows, readiness)
    add_page(api, versions, features, explaining, threads, lambda: _health(versions), shadows.told)
    _answer_head(api)
    rules.fill(rules_of(api))
    return api


def _answer_head(api: FastAPI) -> None:
    """Have every route of GET answer HEAD alike, under its role; the server leaves the body out."""
    for route in [*api.router.routes]:
        if isinstance(route, Direct) and "GET" in (route.methods or ()):
            api.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_class=Response,
                openapi_extra=route.openapi_extra,
                include_in_schema=False,
            )


def _document(api: FastAPI) -> dict[str, Any]:
    document = api.openapi()
    for path, routes in document["paths"].items():
        schema = {"$ref": f"#/components/schemas/{'ErrorV2' if path.startswith('/v2') else 'ErrorBody'}"}
        for route in routes.values():
            for status, words in GUARDED.items():
                if status not in (401, 403) or "security" in route:
                    route["responses"].setdefault(
                        str(status), {"description": words, "content": {"application/json": {"schema": schema}}}
                    )
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A JWT, or an API key of `zoo key`."}
    }
    return document


def _health(versions: Versions) -> dict[str, Any]:
    troubles, canaries, shadows = versions.troubles, versions.aside(CANARY), versions.aside(SHADOW)
    serving = {
        name: {
            "version": predictor.version.reference,
            "candidate": troubles[name].version if name in troubles else None,
            "trouble": troubles[name].kind if name in troubles else None,
            "canary": canaries[name].version.reference if name in canaries else None,
            "canary_trouble": troubles[aside].kind if (aside := f"{name}@{CANARY}") in troubles else None,
            "shadow": shadows[name].version.reference if name in shadows else None,
            "shadow_trouble": troubles[aside].kind if (aside := f"{name}@{SHADOW}") in troubles else None,
        }
        for name, predictor in versions.items()
    }
    well = not troubles and versions.unreachable is None
    return {"status": "ok" if well else "degraded", "registry": versions.unreachable is None, "models": serving}


def _first(asked: Sequence[Any] | None) -> Any:
    """The first user that a request is about: of rows, as they name him."""
    first = asked[0] if asked else None
    return first.get("user_id", first) if isinstance(first, Mapping) else first


def _only_known(predictor: Predictor, rows: list[dict[str, Any]]) -> None:
    """A misspelt context column must not be taken for one that was left out."""
    known = (*predictor.entities, *predictor.context)
    for number, row in enumerate(rows):
        for name in row:
            if name not in known:
                raise UsageError(f"row {number}: {choices('column', name, known)}")


def _answer(predictor: Predictor, row: Mapping[str, Any]) -> dict[str, Any]:
    missing = row["missing"]

    def score(name: str) -> Any:
        outputs = predictor.outputs if name not in missing else ()
        return {output: row[f"{name}:{output}"] for output in outputs} if outputs else row.get(name)

    return {
        "keys": {name: row[name] for name in predictor.entities},
        "score": score("score"),
        "members": {name: score(name) for name in predictor.members},
        "newest_event_age": row["newest_event_age"],
        "known": row["known"],
        "version": row["version"],
        "missing": missing,
        "calibrated": row["calibrated"],
        "features": row["features"],
        "id": row["id"],
    }


def _lists(predictor: Predictor, users: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One list a user, of rows that stand in the order of the users; one without rows is empty."""
    out, at = [], 0
    for user in users:
        begin = at
        while at < len(rows) and rows[at]["user_id"] == user and rows[at]["place"] == at - begin + 1:
            at += 1
        items = [
            {
                "item_id": row["item_id"],
                "title": row["title"],
                "score": row["score"],
                "ranks": {name: row[f"rank:{name}"] for name in predictor.members},
            }
            for row in rows[begin:at]
        ]
        first = rows[begin] if at > begin else {}
        facts = {name: first.get(name) for name in ("cold", "newest_event_age", "features", "id")}
        out.append({"user_id": user, "items": items, **facts, "version": predictor.version.reference})
    return out


def _card(name: str, predictor: Predictor, aliases: Sequence[str]) -> dict[str, Any]:
    version = predictor.version
    card = ModelCard(
        model=name,
        version=version.reference,
        aliases=list(aliases),
        entities=list(predictor.entities),
        context=dict(predictor.context),
        members=list(predictor.members),
        outputs=list(predictor.outputs),
        created=version.created,
        metrics=dict(version.metrics.get("stack") or version.metrics.get("mean") or {}),
        policy=predictor.policy.facts(),
        declared=dict(predictor.declared),
        lineage={"service": predictor.service, **{key: version.lineage.get(key) for key in LINEAGE}},
    )
    return card.model_dump(mode="json")
