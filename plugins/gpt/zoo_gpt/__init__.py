"""A causal transformer over the items of a history: ``gpt``."""

from __future__ import annotations

from zoo.plugin import ModelPlugin, hookimpl
from zoo_gpt.models import GPT

__all__ = ["GPT", "zoo_models"]


@hookimpl
def zoo_models() -> list[ModelPlugin]:
    return [GPT()]
