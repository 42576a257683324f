"""Which versions of which models exist, what each was made from, and which one an alias such as ``champion`` means.

Importing this is light; ``Registry`` brings SQLAlchemy along when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.registry.reference import CANARY, CHAMPION, SHADOW, Reference, Version, parse

if TYPE_CHECKING:
    from zoo.registry.registry import Registry

__all__ = ["CANARY", "CHAMPION", "SHADOW", "Reference", "Registry", "Version", "parse"]


def __getattr__(name: str) -> Any:
    if name != "Registry":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zoo.registry.registry import Registry

    return Registry
