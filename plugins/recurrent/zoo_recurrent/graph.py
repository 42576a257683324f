"""Networks as a graph in ONNX that answers one row: each value in it is (steps, 1, width)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from zoo.plugin import TargetKind
from zoo_recurrent.network import Encoder, Mixer, Network

OPSET, IR = 17, 8
"""Versions of ONNX's operators and of its files, of 2022: a newer ONNX Runtime reads them, an older one need not know ours."""
CELLS = {nn.RNN: ("RNN", (0,)), nn.GRU: ("GRU", (1, 0, 2)), nn.LSTM: ("LSTM", (0, 3, 1, 2))}
"""The operator of each cell, and its gates by their places in torch's."""
FIRST = np.zeros(1, np.int64)
"""The axis of steps."""


ENDS: dict[TargetKind, str] = {"binary": "Sigmoid", "multiclass": "Softmax", "value": "Identity"}
"""What makes scores of logits."""


def graph(networks: Sequence[Network], kind: TargetKind) -> bytes:
    """Of networks of one layout, a model in ONNX.

    Inputs: ``numbers`` (1, 1, f) and ``codes`` (1, c) of the row; of stream i ``numbersI`` (t, 1, f), ``codesI`` (t, c), t at least 1, and
    ``hereI``: a bool, False for a sequence without steps. Numbers are float32, codes int32. Output: ``scores`` float32 (networks, 1, k).
    """
    made = _Graph()
    logits = made.node("Concat", *(made.network(network) for network in networks), axis=0)
    made.nodes.append(helper.make_node(ENDS[kind], [logits], ["scores"]))
    inputs = [("numbers", TensorProto.FLOAT, [1, 1, None]), ("codes", TensorProto.INT32, [1, None])]
    for i in range(len(networks[0].encoders)):
        inputs.append((f"numbers{i}", TensorProto.FLOAT, [None, 1, None]))
        inputs.append((f"codes{i}", TensorProto.INT32, [None, None]))
        inputs.append((f"here{i}", TensorProto.BOOL, []))
    output = ("scores", TensorProto.FLOAT, [len(networks), 1, networks[0].output.out_features])
    given, told = ([helper.make_tensor_value_info(*each) for each in some] for some in (inputs, [output]))
    whole = helper.make_graph(made.nodes, "single_row", given, told, made.weights)
    model = helper.make_model(whole, ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)])
    return bytes(model.SerializeToString())


class _Graph:
    """Nodes and weights so far. Values are known by their names, which its methods take and return."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def nodes_of(self, kind: str, *inputs: str, outputs: int = 1, **settings: Any) -> list[str]:
        names = [f"value{len(self.nodes)}.{n}" for n in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **settings))
        return names

    def node(self, kind: str, *inputs: str, **settings: Any) -> str:
        return self.nodes_of(kind, *inputs, **settings)[0]

    def weight(self, values: Tensor | np.ndarray[Any, Any]) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(torch.as_tensor(values).detach().numpy()), name))
        return name

    def linear(self, layer: nn.Linear, value: str) -> str:
        return self.node("Add", self.node("MatMul", value, self.weight(layer.weight.t())), self.weight(layer.bias))

    def joined(self, parts: Sequence[str]) -> str:
        return self.node("Concat", *parts, axis=2) if parts else self.weight(np.zeros((1, 1, 0), np.float32))

    def network(self, network: Network) -> str:
        """Logits (1, 1, k)."""
        parts = self.mixed(network.mixer, "numbers", "codes")
        for i, encoder in enumerate(network.encoders):
            parts.append(self.encoded(encoder, f"numbers{i}", f"codes{i}", f"here{i}"))
        return self.linear(network.output, self.node("Relu", self.linear(network.inner, self.joined(parts))))

    def mixed(self, mixer: Mixer, numbers: str, codes: str) -> list[str]:
        """What the mixer puts side by side."""
        columns = self.nodes_of("Split", codes, outputs=len(mixer.tables), axis=1) if len(mixer.tables) else []
        looked = [self.node("Gather", self.weight(table.weight), column) for table, column in zip(mixer.tables, columns)]
        return [numbers, *looked] if mixer.numbers else looked

    def encoded(self, encoder: Encoder, numbers: str, codes: str, here: str) -> str:
        """The vector (1, 1, width) of a sequence."""
        states = self.node("Relu", self.linear(encoder.project, self.joined(self.mixed(encoder.mixer, numbers, codes))))
        pooled = ""
        for cell in encoder.cells:
            states, pooled = self.states(cell, states)
        if encoder.pooling == "mean_last":
            pooled = self.joined([pooled, self.node("ReduceMean", states, axes=[0])])
        elif encoder.attention is not None:
            share = self.node("Softmax", self.linear(encoder.attention, states), axis=0)
            mean = self.node("ReduceSum", self.node("Mul", states, share), self.weight(FIRST))
            pooled = self.joined([pooled, mean])
        return self.node("Where", here, pooled, self.weight(encoder.empty))

    def states(self, cell: nn.RNNBase, values: str) -> tuple[str, str]:
        """A cell's states (t, 1, hidden), and the last of them (1, 1, hidden)."""
        kind, order = next(each for of, each in CELLS.items() if isinstance(cell, of))
        settings = {"linear_before_reset": 1} if kind == "GRU" else {}

        def gates(values: Tensor) -> Tensor:
            parts = values.chunk(len(order))
            return torch.cat([parts[place] for place in order])

        weights = [
            gates(cell.weight_ih_l0),
            gates(cell.weight_hh_l0),
            torch.cat([gates(cell.bias_ih_l0), gates(cell.bias_hh_l0)]),
        ]
        given = [self.weight(each[None]) for each in weights]
        told, last = self.nodes_of(kind, values, *given, outputs=2, hidden_size=cell.hidden_size, **settings)
        return self.node("Squeeze", told, self.weight(FIRST + 1)), last
