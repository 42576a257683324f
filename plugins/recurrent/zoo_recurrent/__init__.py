"""Recurrent networks over behaviour sequences: ``rnn``, ``lstm`` and ``gru``, three models with one training loop."""

from __future__ import annotations

from zoo.plugin import ModelPlugin, hookimpl
from zoo_recurrent.models import GRU, LSTM, SimpleRNN

__all__ = ["GRU", "LSTM", "SimpleRNN"]


@hookimpl
def zoo_models() -> list[ModelPlugin]:
    return [SimpleRNN(), LSTM(), GRU()]
