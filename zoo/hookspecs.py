"""The hooks through which plugins enter: registration and events, never fitting or predicting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from zoo.contract import Array, ModelPlugin, Task, TrainingData

PROJECT = "zoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def zoo_models() -> Sequence[ModelPlugin]:  # type: ignore[empty-body]
    """Return the model plugins that this distribution adds."""


@hookspec
def zoo_tasks() -> Sequence[Task]:  # type: ignore[empty-body]
    """Return the tasks that this distribution adds."""


@hookspec(firstresult=True)
def zoo_folds(data: TrainingData, known_at: Array, count: int, seed: int) -> Sequence[tuple[Array, Array]] | None:
    """Return (training rows, scored rows) pairs for out-of-fold scores, or None to leave it to the next plugin."""


@hookspec
def zoo_trained(record: Mapping[str, Any]) -> None:
    """Hear of a finished training run: its record as written to the registry."""


@hookspec
def zoo_scored(model: str, version: int, scores: Mapping[str, Any]) -> None:
    """Observe an answer of the predictor; a failure here is logged and never reaches the caller."""


@hookspec
def zoo_commands(cli: Any) -> None:
    """Add commands to the command line application."""
