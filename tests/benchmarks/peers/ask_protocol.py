"""Asks a server by the Open Inference Protocol what its text promises, with clients that others wrote; prints a line a check as JSON.

open-inference-openapi was generated from the protocol's own OpenAPI document and parses every answer by it; tritonclient is Triton's.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import tritonclient.http as triton
from open_inference.openapi import InferenceRequest, NotFoundError, RequestInput, RequestOutput, TensorData
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core import ApiError
from tritonclient.utils import InferenceServerException

URL, MODEL, VERSION, KEY = sys.argv[1:5]
"""Of a model whose one input KEY is of whole numbers, 1 and 2 among them."""
INTEGERS = [f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
OTHERS = {"BOOL": [True, False], "FP32": [1.5, 2.5], "FP64": [1.5, 2.5], "BYTES": ["1", "2"]}

oip = OpenInferenceClient(base_url=URL)
tritons = triton.InferenceServerClient(URL.removeprefix("http://"))
raw = httpx.Client(base_url=URL)
told: list[dict[str, Any]] = []


def check(name: str, work: Callable[[], Any]) -> None:
    """work: returns whether it holds, or what was seen in its place."""
    try:
        seen = work()
    except Exception as error:
        seen = repr(error)
    told.append({"check": name, "failed": None if seen is True else str(seen)[:300]})


def tensor(data: Any = (1, 2), shape: Any = None, datatype: str = "INT64", **more: Any) -> dict[str, Any]:
    return {"name": KEY, "shape": shape or [len(data)], "datatype": datatype, "data": data, **more}


def body(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs or [tensor([1, 2])]), **more}


def infer(content: dict[str, Any]) -> Any:
    """By the generated client: what is sent and what comes are of the protocol's types."""
    inputs = [RequestInput(**{**each, "data": TensorData.parse_obj(each["data"])}) for each in content["inputs"]]
    outputs = [RequestOutput(**each) for each in content["outputs"]] if "outputs" in content else None
    rest = {name: value for name, value in content.items() if name not in ("inputs", "outputs")}
    return oip.model_infer(MODEL, request=InferenceRequest(inputs=inputs, outputs=outputs, **rest))


def found(answer: Any) -> dict[str, Any]:
    return {each.name: (each.datatype, list(each.shape), each.data.__root__) for each in answer.outputs}


def refused(asked: Any, path: str = f"/v2/models/{MODEL}/infer", **options: Any) -> Any:
    """Whether it is answered with an error status and an object of one text."""
    answer = raw.post(path, **options) if options else raw.post(path, json=asked)
    told = answer.json()
    right = 400 <= answer.status_code < 500 and list(told) == ["error"] and isinstance(told["error"], str) and told["error"]
    return bool(right) or f"{answer.status_code} {answer.text}"


def raises(kind: type[Exception], work: Callable[[], Any]) -> Any:
    try:
        return f"answered {work()!r}"
    except kind as error:
        return bool(str(error))


usual = found(infer(body()))
score = usual["score"]

check("server live", lambda: oip.check_server_liveness() is None)
check("server live, Triton", tritons.is_server_live)
check("server ready", lambda: oip.check_server_readiness() is None)
check("server ready, Triton", tritons.is_server_ready)
check("server metadata", lambda: bool(oip.read_server_metadata().name and oip.read_server_metadata().version))
check("server metadata, Triton", lambda: set(tritons.get_server_metadata()) == {"name", "version", "extensions"})
check("model ready", lambda: oip.check_model_readiness(MODEL) is None)
check("model ready by version", lambda: oip.check_model_version_readiness(MODEL, VERSION) is None)
check("model ready, Triton", lambda: tritons.is_model_ready(MODEL) and tritons.is_model_ready(MODEL, VERSION))
check("an unknown model is not ready", lambda: raises(NotFoundError, lambda: oip.check_model_readiness("nobody")))
check("an unknown version is not ready", lambda: raises(NotFoundError, lambda: oip.check_model_version_readiness(MODEL, "99")))
check("an unknown model is not ready, Triton", lambda: tritons.is_model_ready("nobody") is False)
metadata = oip.read_model_metadata(MODEL)
check("model metadata", lambda: (metadata.name, [each.name for each in metadata.inputs]) == (MODEL, [KEY]))
check("model metadata by version", lambda: oip.read_model_version_metadata(MODEL, VERSION).name == MODEL)
check("model metadata, Triton", lambda: tritons.get_model_metadata(MODEL, VERSION)["versions"] == [VERSION])
check("metadata of an unknown model", lambda: raises(ApiError, lambda: oip.read_model_metadata("nobody")))
described = {each.name: (each.datatype, list(each.shape)) for each in metadata.outputs}
check("all outputs come, as described", lambda: {n: (kind, len(shape)) for n, (kind, shape, _) in usual.items()}
      == {n: (kind, len(shape)) for n, (kind, shape) in described.items()})  # fmt: skip
check("as many values as the shape says", lambda: all(len(data) == np.prod(shape) for _, shape, data in usual.values()))
check("names of model and version", lambda: [infer(body()).model_name, infer(body()).model_version] == [MODEL, VERSION])
check("an id is returned", lambda: infer(body(id="42")).id == "42")
check("no id, none is returned", lambda: infer(body()).id is None)
check("outputs that are asked for, in that order", lambda: [*found(infer(body(outputs=[{"name": "known"}, {"name": "score"}])))]
      == ["known", "score"])  # fmt: skip
for datatype, (name, shape, data) in itertools.product(
    INTEGERS, [("[n]", [2], [1, 2]), ("[n, 1]", [2, 1], [1, 2]), ("[n, 1], nested", [2, 1], [[1], [2]])]
):
    whole = tensor(data, shape, datatype)
    check(f"{datatype} of shape {name}", lambda t=whole: found(infer(body(t)))["score"] == score)
for datatype in INTEGERS:
    dtype = np.dtype(datatype.lower())
    array = np.array([1, 2], dtype)
    given = triton.InferInput(KEY, [2], datatype)
    given.set_data_from_numpy(array, binary_data=False)
    wanted = triton.InferRequestedOutput("score", binary_data=False)
    check(f"{datatype}, Triton", lambda g=given, w=wanted: tritons.infer(MODEL, [g], outputs=[w]).as_numpy("score").tolist()
          == np.array(score[2], np.float32).tolist())  # fmt: skip
    above = int(np.iinfo(dtype).max) + 1
    wrong = tensor([1, above], None, datatype)
    check(f"{datatype} of a value that it has not", lambda t=wrong: refused(body(t)))
for datatype, values in OTHERS.items():
    wrong = tensor(values, None, datatype)
    check(f"{datatype} for whole numbers", lambda t=wrong: refused(body(t)))
for name, wrong in {
    "more values than the shape": tensor([1, 2, 3], [2]),
    "fewer values than the shape": tensor([1], [2]),
    "a shape of another rank": tensor([1, 2], [1, 2]),
    "a shape of no rank": {**tensor([1]), "shape": []},
    "a negative dimension": tensor([1], [-1]),
    "nested otherwise than the shape": tensor([[1, 2]], [2, 1]),
    "nested unevenly": tensor([[1], [2, 1]], [2, 1]),
    "nested, with a flat shape": tensor([[1], [2]], [2]),
    "nested too deep": tensor([[[1]], [[2]]], [2, 1]),
    "nested in part": tensor([[1], 2], [2, 1]),
    "an unknown datatype": tensor([1], None, "INT128"),
    "values of another type than the datatype": tensor(["1"]),
    "a truth for a number": tensor([True]),
    "a fraction for a whole number": tensor([1.5]),
    "null": tensor([None]),
    "an unknown input": {**tensor([1]), "name": "nobody"},
    "no datatype": {"name": KEY, "shape": [1], "data": [1]},
    "no shape": {"name": KEY, "datatype": "INT64", "data": [1]},
    "no data": {"name": KEY, "shape": [1], "datatype": "INT64"},
    "no name": {"shape": [1], "datatype": "INT64", "data": [1]},
}.items():
    check(f"refused: {name}", lambda t=wrong: refused(body(t)))
check("refused: one input twice", lambda: refused(body(tensor(), tensor())))
check("refused: no inputs", lambda: refused({}))
check("refused: an unknown output", lambda: refused(body(outputs=[{"name": "nobody"}])))
check("refused: an id that is no text", lambda: refused(body(id=42)))
check("refused: an unknown model", lambda: refused(body(), "/v2/models/nobody/infer"))
check("refused: an unknown version", lambda: refused(body(), f"/v2/models/{MODEL}/versions/99/infer"))
check("refused: no JSON", lambda: refused(None, content=b"{", headers={"Content-Type": "application/json"}))
check("refused: no object", lambda: refused([]))
check("refused: another method", lambda: 400 <= raw.get(f"/v2/models/{MODEL}/infer").status_code < 500)
extra = {"priority": 1, "note": "x", "flag": True}
check("parameters of the request, unknown ones", lambda: found(infer(body(parameters=extra))) == usual)
check("parameters of an input", lambda: found(infer(body(tensor([1, 2], parameters=extra))))["score"] == score)
check("parameters of an output", lambda: found(infer(body(outputs=[{"name": "score", "parameters": extra}])))["score"] == score)
binary = triton.InferInput(KEY, [2], "INT64")
binary.set_data_from_numpy(np.array([1, 2], np.int64), binary_data=True)
check("no binary data among the extensions", lambda: not [e for e in oip.read_server_metadata().extensions if "binary" in e])
check("binary data of an input is refused", lambda: raises(InferenceServerException, lambda: tritons.infer(MODEL, [binary])))
plain = triton.InferInput(KEY, [2], "INT64")
plain.set_data_from_numpy(np.array([1, 2], np.int64), binary_data=False)
check("binary data of an output, asked for, is JSON", lambda: tritons.infer(
    MODEL, [plain], outputs=[triton.InferRequestedOutput("score", binary_data=True)]).as_numpy("score").shape == (2,))  # fmt: skip
check("an id, Triton", lambda: tritons.infer(MODEL, [plain], request_id="7").get_response()["id"] == "7")
check("by version, Triton", lambda: tritons.infer(MODEL, [plain], VERSION).get_response()["model_version"] == VERSION)
check("an unknown model, Triton", lambda: raises(InferenceServerException, lambda: tritons.infer("nobody", [plain])))
check("the server goes on", lambda: found(infer(body())) == usual or "another answer than at the beginning")
print(json.dumps(told))
