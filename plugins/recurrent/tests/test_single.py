"""Single rows by ONNX Runtime: that they are what torch says, for every network, and that torch answers where they cannot be."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from zoo_recurrent import GRU, LSTM, SimpleRNN
from zoo_recurrent import single as room
from zoo_recurrent.columns import Code, Columns, Number
from zoo_recurrent.inputs import Inputs, Layout, Stream
from zoo_recurrent.models import FittedRecurrent, Recurrent
from zoo_recurrent.network import Cell, Mixer, Network, initialise, scores_of
from zoo_recurrent.params import RecurrentParams
from zoo_recurrent.single import AGREE, SingleRow

from zoo.plugin import Array, TargetKind
from zoo.testing import toy

CELLS: tuple[Cell, ...] = ("rnn", "gru", "lstm")
LOOKUP = np.arange(9, dtype=np.int32)


def columns(numbers: int, codes: int) -> Columns:
    """``numbers`` of them, the first with an indicator, and ``codes``."""
    return Columns(
        tuple(Number(f"n{i}", 0.0, 1.0, i == 0) for i in range(numbers)), tuple(Code(f"c{i}", LOOKUP) for i in range(codes))
    )


FULL = Layout((columns(2, 2), columns(0, 1), columns(3, 0)), columns(2, 1), 50)
"""A stream of numbers and codes, one of codes, one of numbers, and scalars of both."""


def made(cell: Cell = "gru", layout: Layout = FULL, count: int = 2, outputs: int = 1, **params: Any) -> list[Network]:
    """Networks of random weights, their learned vectors among them."""
    chosen = RecurrentParams.model_validate({"hidden": 7, "embedding": 3, "max_length": 50, **params})
    networks = []
    for number in range(count):
        noise = torch.Generator().manual_seed(number)
        networks.append(Network(cell, layout, chosen, outputs))
        initialise(networks[-1], torch.linspace(-1, 1, outputs), noise)
        for encoder in networks[-1].encoders:
            encoder.empty.data.normal_(generator=noise)
    return networks


def row(network: Network, steps: tuple[int, ...], seed: int = 0) -> Inputs:
    """A row whose streams have as many steps."""
    rng, none = np.random.default_rng(seed), np.zeros(1, np.int64)

    def drawn(mixer: Mixer, rows: int) -> tuple[Array, Array]:
        codes = rng.integers(0, 9, (rows, len(mixer.tables))).astype(np.int32)
        return rng.normal(size=(rows, mixer.numbers)).astype(np.float32) * 3, codes

    streams = zip(network.encoders, steps, strict=True)
    return Inputs(
        tuple(Stream(*drawn(encoder.mixer, count), none, none + count, none) for encoder, count in streams),
        *drawn(network.mixer, 1),
    )


def same(networks: list[Network], kind: TargetKind = "value") -> None:
    """Both ways agree on rows of all lengths, and the graph is the one that answers."""
    single = SingleRow(networks, kind)
    assert single._session is not None
    streams = len(networks[0].encoders)
    for seed, steps in enumerate(((0, 0, 0), (1, 1, 1), (50, 2, 0), (0, 31, 7), (3, 0, 50), (1, 0, 400))):
        inputs = row(networks[0], steps[:streams], seed)
        expected, found = scores_of(networks, inputs, kind), single(inputs)
        assert found.dtype == np.float32
        assert found.shape == expected.shape == (len(networks), 1, networks[0].output.out_features)
        np.testing.assert_allclose(found, expected, rtol=AGREE, atol=AGREE)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pooling", ["last", "mean_last", "attention"])
@pytest.mark.parametrize("layers", [1, 3])
def test_agrees_with_torch(cell: Cell, pooling: str, layers: int) -> None:
    same(made(cell, pooling=pooling, layers=layers))


@pytest.mark.parametrize(
    "layout",
    [
        Layout((), columns(3, 2), 50),
        Layout((columns(2, 1),), columns(0, 0), 50),
        Layout((columns(2, 1),), columns(0, 2), 50),
        Layout((), columns(0, 0), 50),
    ],
    ids=["no stream", "no scalar", "no number", "nothing"],
)
def test_agrees_where_networks_read_little(layout: Layout) -> None:
    same(made(layout=layout))


def test_agrees_for_one_network_and_for_classes() -> None:
    same(made("lstm", count=1), "binary")
    same(made("lstm", outputs=4), "multiclass")


@pytest.mark.parametrize("model", [SimpleRNN(), LSTM(), GRU()], ids=lambda model: model.spec.name)
@pytest.mark.parametrize("kind", ["binary", "multiclass", "value"])
def test_a_row_by_itself_is_answered_by_the_graph_as_in_a_batch(
    model: Recurrent, kind: TargetKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy(200, kind=kind)
    chosen = type(model.tiny())(epochs=1, hidden=8, seeds=2, focal=1.0 if kind == "binary" else 0.0)
    fitted: FittedRecurrent = model.fit(data, params=chosen, seed=0, progress=lambda *_: None)
    together = fitted.predict(data.batch)
    fitted.predict(data.batch.take(np.array([0])))
    monkeypatch.setattr(Network, "predict", None)
    for at in range(40):
        alone = fitted.predict(data.batch.take(np.array([at])).compact())
        assert alone.dtype == np.float32
        np.testing.assert_allclose(alone[0], together[at], rtol=1e-5, atol=1e-5)


# --- where torch answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_torch_answers_where_a_package_is_missing(
    missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "zoo_recurrent.graph", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    networks = made()
    inputs = row(networks[0], (3, 0, 8))
    with caplog.at_level(logging.INFO):
        single = SingleRow(networks, "value")
        assert np.array_equal(single(inputs), scores_of(networks, inputs, "value"))
        assert np.array_equal(single(inputs), scores_of(networks, inputs, "value"))
    (told,) = [record.getMessage() for record in caplog.records]
    assert missing in told
    assert "feature-zoo-recurrent[onnx]" in told


def test_torch_answers_where_the_graph_says_something_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    networks = made()
    others = deepcopy(networks)
    others[1].encoders[2].empty.data[0] += 1e-3
    session = room._session
    monkeypatch.setattr(room, "_session", lambda _, kind: session(others, kind))
    single, inputs = SingleRow(networks, "value"), row(networks[0], (3, 0, 8))
    assert np.array_equal(single(inputs), scores_of(networks, inputs, "value"))
    assert "more than 1e-05" in caplog.text


def test_torch_answers_where_onnx_runtime_cannot_read_the_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from zoo_recurrent import graph

    monkeypatch.setattr(graph, "IR", 10_000)
    networks = made()
    single, inputs = SingleRow(networks, "value"), row(networks[0], (3, 0, 8))
    assert np.array_equal(single(inputs), scores_of(networks, inputs, "value"))
    assert "ONNX Runtime failed" in caplog.text


# --- threads, copies and processes ---------------------------------------------------------------------------------------------


def test_threads_share_it() -> None:
    networks = made("lstm")
    single, rows = SingleRow(networks, "value"), [row(networks[0], (n % 9, n % 4, n), n) for n in range(30)]
    expected = [single(inputs) for inputs in rows]
    with ThreadPoolExecutor(4) as pool:
        for turn in range(5):
            for at, found in enumerate(pool.map(single, rows)):
                assert np.array_equal(found, expected[at]), (turn, at)


def test_a_model_that_has_answered_is_copied() -> None:
    data = toy(100)
    fitted = GRU().fit(data, params=type(GRU().tiny())(epochs=1), seed=0, progress=lambda *_: None)
    one = data.batch.take(np.array([3]))
    np.testing.assert_array_equal(deepcopy(fitted).predict(one), fitted.predict(one))
    np.testing.assert_array_equal(deepcopy(fitted).predict(one), fitted.predict(one))


FORKED = """
import os, signal
import numpy as np
from zoo.testing import toy
from zoo_recurrent import GRU
data = toy(100)
fitted = GRU().fit(data, params=type(GRU().tiny())(epochs=1), seed=0, progress=lambda *_: None)
rows = [data.batch.take(np.array([at])) for at in range(20)]
expected = [fitted.predict(row).tolist() for row in rows]
assert fitted._single._session is not None
for _ in range(2):
    if (child := os.fork()) == 0:
        signal.alarm(20)
        os._exit(0 if [fitted.predict(row).tolist() for row in rows] == expected else 3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), [fitted.predict(row).tolist() for row in rows] == expected)
"""


def test_a_forked_worker_answers_with_what_its_parent_made() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["0 True", "0 True"]
