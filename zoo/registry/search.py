"""Which versions somebody means by some words. Knows no database."""

from __future__ import annotations

import json
from collections.abc import Iterable

from zoo.registry.reference import Version


def matching(versions: Iterable[Version], text: str) -> list[Version]:
    """Those in which every word of the text is found, whatever its case, in their order.

    A word is looked for in the reference, the status, aliases, tags and lineage (members, task, log version, commit); ``owner=anna``
    asks for the tag ``owner`` with that value, ``owner=`` for any value of it.
    """
    words = text.lower().split()
    return [version for version in versions if all(_has(version, word) for word in words)]


def _has(version: Version, word: str) -> bool:
    key, asked, value = word.partition("=")
    if asked:
        tags = {name.lower(): seen for name, seen in version.tags.items()}
        return key in tags and (not value or _plain(tags[key]) == value)
    said = [version.reference, version.status, *version.aliases, *(f"{version.model}@{alias}" for alias in version.aliases)]
    return any(word in each.lower() for each in said) or word in _plain(version.tags) or word in _plain(version.lineage)


def _plain(value: object) -> str:
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=dict)).lower()
