"""Row P17: networks of sequence members for one row, as they answer, compiled by torch, and in ONNX Runtime where that is installed.

Each is fitted for a moment on toy rows, for its layout (weights cost the same whatever they are), and asked about one sequence as long as
the demo has them. All have one thread. Shapes stay the same from call to call, which suits a compiler best.
"""

from __future__ import annotations

import copy
import io
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from figures import QUICK, Figure
from predict_speed import quantile

STEPS = {"rnn": 30, "gru": 30, "gpt": 50}
"""Events of the sequence: the demo's ``max_length`` for churn, and a history of a recommendation."""
AGREE = 1e-5


def p17() -> list[Figure]:
    """One row through the networks of rnn and gru (churn) and gpt (lists)."""
    import torch

    torch.set_num_threads(1)
    rounds = 200 if QUICK else 5_000
    figures = []
    for name, steps in STEPS.items():
        ways = _gpt(steps) if name == "gpt" else _recurrent(name, steps)
        expected = ways["today"]()
        figures += _figures(
            name, steps, {way: call for way, call in ways.items() if way != "today"}, ways["today"], expected, rounds
        )
    return figures


def _figures(
    name: str, steps: int, others: dict[str, Callable[[], Any]], today: Callable[[], Any], expected: Any, rounds: int
) -> list[Figure]:
    times: dict[str, list[float]] = {way: [] for way in ("today", *others)}
    for n in range(rounds + rounds // 10):
        for way, call in {"today": today, **others}.items():
            began = time.perf_counter()
            call()
            if n >= rounds // 10:
                times[way].append(time.perf_counter() - began)
    figures = []
    for way, call in others.items():
        away = float(np.abs(np.asarray(call()) - np.asarray(expected)).max())
        ours, peer = quantile(times["today"], 0.5) * 1e6, quantile(times[way], 0.5) * 1e6
        told = f"differs by {away:.1e} at most, {'within' if away <= AGREE else 'beyond'} {AGREE:g}"
        figures.append(
            Figure(
                id=f"P17 {name}",
                what=f"network of {name}, one sequence of {steps} steps, one thread, p50 of {rounds} in turns; {way} {told}",
                ours=ours,
                unit="us",
                peer=peer,
                peer_name=way,
                beside={"p99": quantile(times["today"], 0.99) * 1e6, "p99 of the peer": quantile(times[way], 0.99) * 1e6},
            )
        )
    return figures


def _recurrent(name: str, steps: int) -> dict[str, Callable[[], Any]]:
    import torch
    import zoo_recurrent
    from zoo_recurrent.network import Sequences, Tensors

    from zoo.testing.toy import toy

    plugin: Any = next(model for model in zoo_recurrent.zoo_models() if model.spec.name == name)
    params = type(plugin.tiny())(streams=("visit_*",), max_length=steps, epochs=1)
    data = toy(400)
    fitted = plugin.fit(data, params=params, seed=0, progress=lambda done, text: None)
    network = fitted.networks[0]
    rng = np.random.default_rng(0)
    streams = []
    for columns in fitted.layout.streams:
        drawn = [rng.integers(0, each.rows, steps + 1) for each in columns.codes]
        codes = np.stack(drawn, axis=1) if drawn else np.zeros((steps + 1, 0), np.int64)
        numbers = rng.normal(size=(steps + 1, columns.width)).astype(np.float32)
        numbers[-1], codes[-1] = 0, 0
        first = torch.zeros(1, dtype=torch.int64)
        streams.append(Sequences(torch.from_numpy(numbers), torch.from_numpy(codes), first, first + steps, first))
    scalars = fitted.layout.read(data.batch.take(np.array([0])))
    inputs = Tensors(tuple(streams), torch.from_numpy(scalars.numbers), torch.from_numpy(scalars.codes))
    given = [stream.padded(torch.zeros(1, dtype=torch.int64)) for stream in inputs.streams]

    def of(encoders: list[Any], head: Any) -> Callable[[], Any]:
        other = copy.copy(network)
        other._modules = {**network._modules}
        del other._modules["encoders"]
        other.__dict__["encoders"], other.__dict__["head"] = encoders, head
        return lambda: other.predict(inputs).numpy()

    class Encoder:
        """What stands in an encoder's place. call: of numbers, codes and length."""

        def __init__(self, width: int, call: Callable[..., Any]) -> None:
            self.width, self._call = width, call

        def __call__(self, numbers: Any, codes: Any, length: Any, _: Any) -> Any:
            return self._call(numbers, codes, length)

    ways: dict[str, Callable[[], Any]] = {"today": lambda: network.predict(inputs).numpy()}
    whole: Any = torch.compile(lambda encoder, *of: encoder(*of, None), dynamic=False)
    compiled = [Encoder(each.width, partial(whole, each)) for each in network.encoders]
    ways["torch.compile"] = of(compiled, torch.compile(network.head, dynamic=False))
    if _has_onnx():
        asked = zip(network.encoders, given, strict=True)
        sessions = [Encoder(e.width, _onnx(e, lambda inner, *of: inner(*of, None), part)) for e, part in asked]
        ways["ONNX Runtime"] = of(sessions, network.head)
    return ways


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
