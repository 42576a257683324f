"""Row P17: networks of sequence members for one row, as they answer, by torch, compiled by torch, and in ONNX Runtime; and a whole answer.

Each is fitted for a moment on toy rows, for its layout (weights cost the same whatever they are), and asked about one sequence as long as
the demo has them. All have one thread. Shapes stay the same from call to call, which suits a compiler best. The whole answer is of the
demo's champion of churn, its recurrent members with and without ONNX Runtime.
"""

from __future__ import annotations

import copy
import io
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
from figures import QUICK, Figure
from predict_service import USERS, project, quantile

STEPS = {"rnn": 30, "gru": 30, "gpt": 50}
"""Events of the sequence: the demo's ``max_length`` for churn, and a history of a recommendation."""
AGREE = 1e-5


def p17() -> list[Figure]:
    """One row through the networks of rnn and gru (churn) and gpt (lists), and one user through the champion of churn."""
    import torch

    torch.set_num_threads(1)
    rounds = 200 if QUICK else 2_000
    figures = _answer(rounds // 2)
    for name, steps in STEPS.items():
        ways = _gpt(steps) if name == "gpt" else _recurrent(name, steps)
        times = _in_turn(ways, rounds)
        expected, apart = ways["today"](), {}
        for way, call in ways.items():
            apart[way] = float(np.abs(np.asarray(call()) - np.asarray(expected)).max())
        what = f"network of {name}, one sequence of {steps} steps, one thread, p50 of {rounds} in turns"
        figures += _figures(f"P17 {name}", what, times, apart, "us")
    return figures


def _answer(rounds: int) -> list[Figure]:
    """One user, embedded: the version loaded with ONNX Runtime, and as where it is not installed."""
    from zoo.predictor import Predictor

    with project() as root:
        today = Predictor.load("churn", root)
        today.warm()
        with mock.patch.dict(sys.modules, {"onnxruntime": None}):
            without = Predictor.load("churn", root)
            without.warm()
        turns = {name: iter(USERS * (rounds // len(USERS) + 2)) for name in ("today", "torch")}
        ways = {
            "today": lambda: today.predict(users=[next(turns["today"])]),
            "torch": lambda: without.predict(users=[next(turns["torch"])]),
        }
        times = _in_turn(ways, rounds)
        users = USERS[:200]
        found = [
            np.array([p.predict(users=[user])["score"].to_numpy()[0] for user in users], np.float64) for p in (today, without)
        ]
    what = f"predict one user, embedded, {', '.join(today.members)}, p50 of {rounds} in turns"
    return _figures("P17 answer", what, times, {"torch": float(np.abs(found[0] - found[1]).max())}, "ms")


def _in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in turn; the first tenth does not count."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for n in range(rounds + rounds // 10):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            if n >= rounds // 10:
                times[way].append(time.perf_counter() - began)
    return times


def _figures(id: str, what: str, times: dict[str, list[float]], apart: dict[str, float], unit: str) -> list[Figure]:
    """Today's way beside each other; apart: how far that is from it, at most."""
    scale = {"us": 1e6, "ms": 1e3}[unit]
    p50, p99 = ({way: quantile(seen, q) * scale for way, seen in times.items()} for q in (0.5, 0.99))
    figures = []
    for way in [each for each in times if each != "today"]:
        told = f"differs by {apart[way]:.1e} at most, {'within' if apart[way] <= AGREE else 'beyond'} {AGREE:g}"
        figures.append(
            Figure(
                id=id,
                what=f"{what}; {way} {told}",
                ours=p50["today"],
                unit=unit,
                peer=p50[way],
                peer_name=way,
                beside={"p99": p99["today"], "p99 of the peer": p99[way]},
            )
        )
    return figures


def _recurrent(name: str, steps: int) -> dict[str, Callable[[], Any]]:
    import torch
    import zoo_recurrent
    from zoo_recurrent.inputs import Inputs, Stream
    from zoo_recurrent.network import Tensors, scores_of
    from zoo_recurrent.single import SingleRow

    from zoo.testing.toy import toy

    plugin: Any = next(model for model in zoo_recurrent.zoo_models() if model.spec.name == name)
    params = type(plugin.tiny())(streams=("visit_*",), max_length=steps, epochs=1)
    data = toy(400)
    fitted = plugin.fit(data, params=params, seed=0, progress=lambda done, text: None)
    network, single = fitted.networks[0], SingleRow(fitted.networks, "value")
    rng = np.random.default_rng(0)
    streams = []
    for columns in fitted.layout.streams:
        drawn = [rng.integers(0, each.rows, steps) for each in columns.codes]
        codes = np.stack(drawn, axis=1) if drawn else np.zeros((steps, 0))
        numbers = rng.normal(size=(steps, columns.width)).astype(np.float32)
        first = np.zeros(1, np.int64)
        streams.append(Stream(numbers, codes.astype(np.int32), first, first + steps, first))
    scalars = fitted.layout.read(data.batch.take(np.array([0])))
    inputs = Inputs(tuple(streams), scalars.numbers, scalars.codes)

    class Compiled:
        """What stands in an encoder's place."""

        def __init__(self, encoder: Any) -> None:
            self.width, self._encoder = encoder.width, encoder

        def __call__(self, *given: Any) -> Any:
            return whole(self._encoder, *given)

    whole: Any = torch.compile(lambda encoder, *given: encoder(*given), dynamic=False)
    compiled = copy.copy(network)
    compiled._modules = {**network._modules}
    del compiled._modules["encoders"]
    compiled.__dict__["encoders"] = [Compiled(each) for each in network.encoders]
    compiled.__dict__["head"] = torch.compile(network.head, dynamic=False)
    return {
        "today": lambda: single(inputs),
        "torch": lambda: scores_of(fitted.networks, inputs, "value"),
        "torch.compile": lambda: compiled.predict(Tensors.of(inputs)).numpy()[None],
    }


def _gpt(steps: int) -> dict[str, Callable[[], Any]]:
    import torch
    from zoo_gpt.network import GPTNetwork
    from zoo_gpt.params import GPTParams

    torch.manual_seed(0)
    network = GPTNetwork(GPTParams(), 10_000, 4).eval()
    vectors, length = torch.randn(1, steps, GPTParams().width), torch.tensor([steps])

    def of(states: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.inference_mode():
                return states(vectors, length)[:, -1].numpy()

        return call

    ways = {"today": of(network.states), "torch.compile": of(torch.compile(network.states, dynamic=False))}
    if _has_onnx():
        ways["ONNX Runtime"] = of(_onnx(network, lambda inner, *of: inner.states(*of), (vectors, length)))
    return ways


def _has_onnx() -> bool:
    found = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
    if not found:
        print("onnxruntime, onnx and onnxscript are not installed here, so ONNX Runtime is not measured", file=sys.stderr)
    return found


def _onnx(network: Any, call: Callable[..., Any], given: tuple[Any, ...]) -> Callable[..., Any]:
    """A call of a network on tensors as an ONNX graph of these shapes, in one thread."""
    import onnxruntime
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, *tensors: Any) -> Any:
            return call(self.inner, *tensors)

    file, names = io.BytesIO(), [f"i{n}" for n in range(len(given))]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(Module().eval(), given, file, input_names=names, output_names=["o"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    read = {each.name for each in session.get_inputs()}

    def run(*tensors: Any) -> Any:
        asked = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True) if name in read}
        return torch.from_numpy(session.run(["o"], asked)[0])

    return run
