"""``bert``: a pretrained text encoder fine-tuned on a user's recent behaviour as text."""

from __future__ import annotations

from zoo.plugin import ModelPlugin, hookimpl
from zoo_bert.model import Bert

__all__ = ["Bert"]


@hookimpl
def zoo_models() -> list[ModelPlugin]:
    return [Bert()]
