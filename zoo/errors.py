"""Errors that zoo raises. Each message says what was seen, what was expected and what to do."""

from __future__ import annotations


class ZooError(Exception):
    """Something could not be done; the command line prints it and exits with 1."""


class UsageError(ZooError):
    """The caller asked in a way that cannot be meant; the command line exits with 2."""


class ReusedKeyError(UsageError):
    """An idempotency key names another push already; nothing of this one was taken."""


class SchemaError(ZooError):
    """A table's columns or types are not what was declared; nothing of it was taken."""


class UnknownIdError(ZooError):
    """An identifier has the wrong type for this log (``"1"`` and ``1`` are different)."""


class PluginError(ZooError):
    """A plugin is missing, broken or breaks the contract; the message names its distribution."""


class ArtefactError(ZooError):
    """A stored artefact is missing, incomplete or does not match its digest."""


class RegistryError(ZooError):
    """The registry cannot answer: unknown model, version or alias, or an unusable database."""


class UnknownReferenceError(RegistryError, UsageError):
    """The caller names a model, version or alias that the registry does not have, or that no registry could have.

    model: its name, where the registry has no version of it.
    """

    def __init__(self, message: str, model: str | None = None) -> None:
        super().__init__(message)
        self.model = model


class FeatureError(ZooError):
    """Features cannot be computed as declared (unknown view, order-only log, missing table)."""


class LateError(ZooError):
    """There is no answer by the deadline that the caller gave."""


def choices(name: str, seen: object, valid: object) -> str:
    """One sentence naming what was seen and the valid choices: ``unknown task 'chrun'; choose one of campaign, churn``."""
    listed = ", ".join(sorted(str(v) for v in valid)) if hasattr(valid, "__iter__") else str(valid)
    return f"unknown {name} {seen!r}; choose one of: {listed or '(none)'}"
