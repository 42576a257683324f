"""Open Inference Protocol v2 over the same predictors: columns of keys go in as tensors, scores come out as tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from zoo.errors import UsageError, choices
from zoo.features import Features
from zoo.predictor import Predictor
from zoo.service.access import OPEN, READ, needs
from zoo.service.batches import Batches
from zoo.service.guard import in_time
from zoo.service.messages import DEADLINE, MAX_ROWS, example, read_instant
from zoo.service.metrics import Metrics
from zoo.service.problems import Json, seen
from zoo.service.readiness import Readiness
from zoo.service.shadow import Shadows
from zoo.service.versions import Versions

EXTENSIONS: list[str] = []
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]  # fmt: skip
KINDS = {"FP": float, "INT": int, "UINT": int, "BOOL": bool, "BYTES": str}
"""The protocol's names, less their bits -> what JSON holds them as."""
EXACT = 2**53
"""Whole numbers that a float tells from their neighbours are at most so large."""


class Tensor(BaseModel):
    """One column. shape: [n] or [n, 1]."""

    name: StrictStr
    shape: list[StrictInt] = Field(min_length=1, max_length=2)
    datatype: Datatype
    data: list[StrictInt | StrictFloat | StrictBool | StrictStr] = Field(
        max_length=MAX_ROWS, description="Of shape [n, 1] nested, as in [[1], [42]], or flat."
    )

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(data, list) or not any(isinstance(each, list) for each in data):
            return value
        if value.get("shape") != [len(data), 1] or any(not isinstance(each, list) or len(each) != 1 for each in data):
            raise ValueError(
                f"data is nested otherwise than the shape {seen(value.get('shape'))} says; expected one list, or lists of one value each "
                "with the shape [n, 1]"
            )
        return {**value, "data": [each for (each,) in data]}


class Wanted(BaseModel):
    name: StrictStr


class InferRequest(BaseModel):
    """A tensor for each key and context column of the model."""

    model_config = example(
        {
            "id": "r-1",
            "inputs": [{"name": "user_id", "shape": [2], "datatype": "INT64", "data": [1, 42]}],
            "outputs": [{"name": "score"}],
        }
    )

    id: StrictStr | None = Field(None, max_length=200)
    inputs: list[Tensor] = Field(min_length=1, max_length=100)
    outputs: list[Wanted] | None = Field(None, max_length=100, description="Which outputs; default: all.")
    parameters: dict[str, Any] | None = Field(None, description="at: as in /v1/predict. Others are ignored.")


class Output(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float | bool | str]


class InferResponse(BaseModel):
    """``score``, a tensor ``member:NAME`` a member, ``newest_event_age`` (seconds, -1 where there is no event), ``known`` and
    ``calibrated`` (false where that is not known), ``missing`` and ``features``; a missing member's score is -1."""

    id: str | None = None
    model_name: str
    model_version: str
    outputs: list[Output]


class Column(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[Column]
    outputs: list[Column]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class ErrorV2(BaseModel):
    error: str


def add_v2(
    api: FastAPI,
    features: Features,
    versions: Versions,
    metrics: Metrics,
    batches: Batches,
    shadows: Shadows,
    readiness: Readiness,
) -> None:
    """Add the protocol's routes, which answer with what the others do."""
    failing: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorV2, "description": "As for /v1; the body has a text only"}
        for status in (400, 404, 413, 415, 422, 500, 503, 504)
    }
    options: dict[str, Any] = {"tags": ["v2"], "responses": {**failing}}

    @api.get("/v2", response_model=ServerMetadata, openapi_extra=needs(READ), **options)
    async def server_metadata() -> Json:
        """Name and version of the server."""
        from importlib.metadata import version

        return Json({"name": "feature-zoo", "version": version("feature-zoo"), "extensions": EXTENSIONS})

    @api.get("/v2/health/live", response_model=Live, openapi_extra=needs(OPEN), **options)
    async def server_live() -> Json:
        """Whether the process answers."""
        return Json({"live": True})

    @api.get("/v2/health/ready", response_model=Ready, openapi_extra=needs(OPEN), **options)
    async def server_ready() -> Json:
        """Whether every model can answer, or has an answer by its policy."""
        await readiness.of(versions.everyone())
        return Json({"ready": True})

    @api.get("/v2/models/{name}", response_model=ModelMetadata, openapi_extra=needs(READ), **options)
    @api.get("/v2/models/{name}/versions/{version}", response_model=ModelMetadata, openapi_extra=needs(READ), **options)
    async def model_metadata(name: str, version: str | None = None) -> Json:
        """Inputs and outputs of a model."""
        predictor = versions.meant(name, None, version)
        return Json(
            {
                "name": name,
                "versions": [str(each.version.number) for each in versions.answering(name)],
                "platform": "feature-zoo",
                "inputs": [{"name": n, "datatype": kind, "shape": [-1]} for n, kind in _inputs(predictor, features).items()],
                "outputs": [
                    {"name": n, "datatype": kind, "shape": [-1, *rest]} for n, (kind, rest) in _outputs(predictor).items()
                ],
            }
        )

    @api.get("/v2/models/{name}/ready", response_model=ModelReady, openapi_extra=needs(READ), **options)
    @api.get("/v2/models/{name}/versions/{version}/ready", response_model=ModelReady, openapi_extra=needs(READ), **options)
    async def model_ready(name: str, version: str | None = None) -> Json:
        """Whether a model can answer, or has an answer by its policy."""
        await readiness.of([versions.meant(name, None, version)])
        return Json({"name": name, "ready": True})

    asks = {**needs(READ), **DEADLINE}

    @api.post("/v2/models/{name}/infer", response_model=InferResponse, openapi_extra=asks, **options)
    @api.post("/v2/models/{name}/versions/{version}/infer", response_model=InferResponse, openapi_extra=asks, **options)
    async def infer(http: Request, name: str, request: InferRequest, version: str | None = None) -> Json:
        """Predict for every row of the input tensors, in order."""
        users = next((tensor.data for tensor in request.inputs if tensor.name == "user_id"), None)
        whom = users[0] if users else None
        predictor = versions.meant(name, whom, version)
        shadow = versions.shadow(name, whom) if version is None else None

        def copy(columns: dict[str, list[Any]], rows: list[dict[str, Any]], at: int | None) -> None:
            if shadow is not None:
                shadows.copy(predictor, shadow, rows, lambda it: it.predict(columns, at=at))

        with metrics.of(predictor):
            return await _infer(batches, predictor, name, request, in_time(http), copy)


def _inputs(predictor: Predictor, features: Features) -> dict[str, str]:
    schema = features.reader.log.schema
    kinds = {**schema.extra, "user_id": schema.user_id, "item_id": schema.item_id}
    keys = {name: "BYTES" if kinds.get(name) == "string" else "INT64" for name in predictor.entities}
    return keys | {name: _datatype(np.dtype(kind)) for name, kind in dict(predictor.context).items()}


def _datatype(dtype: Any) -> str:
    return {"f": "FP64", "i": "INT64", "u": "INT64", "b": "BOOL"}.get(dtype.kind, "BYTES")


def _outputs(predictor: Predictor) -> dict[str, tuple[str, list[int]]]:
    width = [len(predictor.outputs)] if predictor.outputs else []
    members = {f"member:{name}": ("FP32", width) for name in predictor.members}
    more: dict[str, tuple[str, list[int]]] = {"missing": ("BYTES", []), "features": ("BYTES", [])}
    return {
        "score": ("FP32", width),
        **members,
        "newest_event_age": ("FP64", []),
        "known": ("BOOL", []),
        "calibrated": ("BOOL", []),
        **more,
    }


async def _infer(
    batches: Batches,
    predictor: Predictor,
    name: str,
    request: InferRequest,
    deadline: float | None,
    answered: Callable[[dict[str, list[Any]], list[dict[str, Any]], int | None], None],
) -> Json:
    """answered: told the columns that were asked, the rows of the answer, and their time."""
    columns = {tensor.name: _column(tensor) for tensor in request.inputs}
    if len(columns) < len(request.inputs):
        raise UsageError("two inputs have one name; expected a tensor a column")
    for column in columns:
        if column not in (*predictor.entities, *predictor.context):
            raise UsageError(choices("input", column, (*predictor.entities, *predictor.context)))
    sizes = {len(values) for values in columns.values()}
    if len(sizes) > 1:
        raise UsageError(f"inputs have {', '.join(map(str, sorted(sizes)))} rows; expected as many in each")
    offered = _outputs(predictor)
    wanted = [each.name for each in request.outputs] if request.outputs else list(offered)
    for each in wanted:
        if each not in offered:
            raise UsageError(choices("output", each, offered))
    at = (request.parameters or {}).get("at")
    if at is not None and not isinstance(at, str):
        raise UsageError(f"parameter at is {type(at).__name__}; expected ISO 8601 text with an offset")
    try:
        instant = read_instant(at)
    except ValueError as error:
        raise UsageError(str(error)) from None

    def answer(rows: list[dict[str, Any]], at: int | None) -> Json:
        answered(columns, rows, at)
        outputs = [
            {"name": n, "datatype": offered[n][0], "shape": [len(rows), *offered[n][1]], "data": _data(predictor, rows, n)}
            for n in wanted
        ]
        told = {"model_name": name, "model_version": str(predictor.version.number), "outputs": outputs}
        return Json(told if request.id is None else {"id": request.id, **told})

    return await batches.predict(predictor, columns, answer, at=instant, deadline=deadline)


def _column(tensor: Tensor) -> list[Any]:
    if tensor.shape[0] != len(tensor.data) or tensor.shape[1:] not in ([], [1]):
        raise UsageError(
            f"input {tensor.name!r} has shape {tensor.shape} and {len(tensor.data)} values; expected [n] or [n, 1] and n values"
        )
    kind = KINDS[tensor.datatype.rstrip("0123456789")]
    range = np.iinfo(tensor.datatype.lower()) if kind is int else None
    found: list[Any] = []
    for value in tensor.data:
        if kind is int and type(value) is float and value.is_integer() and abs(value) <= EXACT:
            value = int(value)  # JSON has one kind of number, and some clients write 1 as 1.0
        right = type(value) is kind or (kind is float and type(value) is int)
        if not right or (range is not None and not range.min <= int(value) <= range.max):
            raise UsageError(f"input {tensor.name!r} of {tensor.datatype} holds {seen(value)}")
        found.append(value)
    return found


def _data(predictor: Predictor, rows: list[dict[str, Any]], name: str) -> list[Any]:
    if name in ("known", "calibrated"):
        return [row[name] is True for row in rows]
    if name == "newest_event_age":
        return [-1.0 if row["newest_event_age"] is None else row["newest_event_age"] for row in rows]
    if name == "missing":
        return [",".join(row["missing"]) for row in rows]
    if name == "features":
        return [row["features"] for row in rows]
    own = name.removeprefix("member:")
    columns = [f"{own}:{output}" for output in predictor.outputs] or [own]
    return [-1.0 if row[column] is None else row[column] for row in rows for column in columns]
