"""What a version is described by, as JSON and both databases hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.errors import RegistryError


def described(metrics: Mapping[str, Any], lineage: Mapping[str, Any], tags: Mapping[str, Any] | None) -> dict[str, Any]:
    """The three by name, as ``plain``."""
    given = {"metrics": metrics, "lineage": lineage, "tags": tags or {}}
    return {name: plain(dict(each), name) for name, each in given.items()}


def plain(value: Any, where: str) -> Any:
    """The value as JSON and PostgreSQL can hold it: a run of hours must not be lost to one metric that is not a number.

    where: what it is, for messages. Raises RegistryError for a value that no JSON holds, and for text that is no valid Unicode.
    """
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise RegistryError(f"{where} has the key {odd[0]!r}; JSON keys are text")
        return {_unicode(key, f"a key of {where}"): plain(each, f"{where}[{key!r}]") for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, f"{where}[{at}]") for at, each in enumerate(value)]
    if hasattr(value, "tolist"):
        return plain(value.tolist(), where)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return _unicode(value, where)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise RegistryError(f"{where} is {type(value).__name__}, which JSON cannot hold; give text, a number, a list or a mapping")


def _unicode(value: str, where: str) -> str:
    """The text, if it can be written anywhere: half of a surrogate pair would break every listing that shows it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RegistryError(f"{where} is {value[:80]!r}, which is no valid Unicode ({error.reason}); give other text") from error
    return value
