"""What a registry hands out, and how it is asked: versions, and references such as ``churn@champion``. Knows no database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from zoo.errors import UnknownReferenceError

CHAMPION = "champion"
"""The alias that a bare model name stands for, where it is set."""
CANARY = "canary"
"""The alias of the version that a service tries on a share of its requests."""
SHADOW = "shadow"
"""The alias of the version that a service asks beside the one that answers, to compare the two."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Version:
    """One registered version of a model.

    number: from 1, without gaps. created: UTC. digest: its artefact's. metrics, lineage, tags: as registered, through JSON.
    aliases: sorted. status: ``ready``, or ``retired`` (kept and loadable, but never the latest and never promoted).
    """

    model: str
    number: int
    created: datetime
    digest: str
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, Any] = field(default_factory=dict)
    status: str = "ready"

    @property
    def reference(self) -> str:
        """The reference that always means this version: ``churn@3``."""
        return f"{self.model}@{self.number}"


@dataclass(frozen=True)
class Reference:
    """A model, and which of its versions: by number, by alias, or neither (the champion, else the newest ready version)."""

    model: str
    number: int | None = None
    alias: str | None = None


def parse(text: str) -> Reference:
    """``churn``, ``churn@3`` or ``churn@champion``. Raises UnknownReferenceError for anything else."""
    if not isinstance(text, str):
        raise UnknownReferenceError(
            f"a version is named by the {type(text).__name__} {text!r}; expected a text such as 'churn@champion' or 'churn@3'"
        )
    model, at, which = text.partition("@")
    if _NAME.fullmatch(model) and not at:
        return Reference(model)
    if _NAME.fullmatch(model) and _NUMBER.fullmatch(which):
        return Reference(model, number=int(which))
    if _NAME.fullmatch(model) and _NAME.fullmatch(which):
        return Reference(model, alias=which)
    raise UnknownReferenceError(
        f"{text!r} is no reference to a model; expected NAME, NAME@NUMBER or NAME@ALIAS, as in churn, churn@3 or churn@{CHAMPION}"
    )


def checked(name: str, what: str) -> str:
    """The name, if a model or an alias may have it. Raises UnknownReferenceError."""
    if not _NAME.fullmatch(name):
        raise UnknownReferenceError(
            f"{name!r} cannot be the name of {what}; expected a letter, then letters, digits, '.', '_' or '-', at most 100 in all"
        )
    return name
