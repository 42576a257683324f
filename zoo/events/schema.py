"""What a log holds: the types of its identifiers, its clock, its event types and its further columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from zoo.errors import SchemaError, UsageError, choices

IdType = Literal["int", "string"]
Clock = Literal["time", "order"]

ARROW_TYPES: Mapping[str, pa.DataType] = MappingProxyType(
    {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string(), "bool": pa.bool_()}
)
"""Types that a further column may have, by the name used in a schema."""

ID_TYPES: Mapping[str, pa.DataType] = MappingProxyType({"int": pa.int64(), "string": pa.string()})

MONEY = ("price", "quantity", "value")
"""Standard columns that hold amounts (float64, finite)."""

OPTIONAL = ("session", *MONEY, "event_id")
"""Standard columns that a file may lack."""

RESERVED = ("time", "seq", "source", "row")
"""Columns that the log gives itself."""

STANDARD = ("user_id", "item_id", "event_type", "timestamp", "position", *OPTIONAL)
"""Columns that a file may bring, besides those in ``LogSchema.extra``."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

MICROSECONDS = 1_000_000


def check_timezone(timezone: str) -> None:
    """Refuse a name that is no IANA timezone (UsageError)."""
    try:
        pl.Series([0]).cast(pl.Datetime("us", timezone)).dt.replace_time_zone("UTC")
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"unknown timezone {timezone!r}; expected an IANA name such as Europe/London or UTC") from error


@dataclass(frozen=True)
class LogSchema:
    """The fixed promises of one log.

    user_id, item_id: ``int`` (int64) or ``string``; ``"1"`` and ``1`` are different identifiers.
    clock: ``time`` (instants) or ``order`` (positions only; stored as 1970-01-01 + position seconds).
    timezone: IANA name that naive times are read in; None refuses naive times.
    event_types: the closed set of event types, or None where any is welcome.
    session: whether events carry a session (a visit, a basket); where not, a file's session column is ignored, and said so.
    extra: further columns by name, each ``int64``, ``float64``, ``string`` or ``bool``.
    """

    user_id: IdType = "int"
    item_id: IdType = "int"
    clock: Clock = "time"
    timezone: str | None = None
    event_types: tuple[str, ...] | None = None
    session: bool = True
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("user_id", "item_id"):
            if getattr(self, name) not in ID_TYPES:
                raise UsageError(choices(f"{name} type", getattr(self, name), ID_TYPES))
        if self.clock not in ("time", "order"):
            raise UsageError(choices("clock", self.clock, ("time", "order")))
        if self.timezone is not None:
            check_timezone(self.timezone)
        if self.event_types is not None:
            object.__setattr__(self, "event_types", tuple(self.event_types))
            if not self.event_types or any(not isinstance(t, str) or not t for t in self.event_types):
                raise UsageError("event_types must be names, at least one; leave it out where any event type is welcome")
        for name, kind in self.extra.items():
            if kind not in ARROW_TYPES:
                raise UsageError(choices(f"type of column {name!r}", kind, ARROW_TYPES))
            if name in STANDARD or name in RESERVED:
                raise UsageError(f"column {name!r} is a standard column of the log and cannot be an extra one; rename it")
            if not NAME.match(name):
                raise UsageError(f"column name {name!r} is not letters, digits and underscores; rename it by a mapping")
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    @property
    def time_column(self) -> str:
        """The column that an input file orders its events by: ``timestamp`` or ``position``."""
        return "timestamp" if self.clock == "time" else "position"

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every column that an input may bring, required ones first."""
        optional = OPTIONAL if self.session else tuple(name for name in OPTIONAL if name != "session")
        return ("user_id", "item_id", "event_type", self.time_column, *optional, *self.extra)

    def id_type(self, column: str) -> IdType:
        """The declared type of ``user_id`` or ``item_id``; every other dictionary holds strings."""
        return {"user_id": self.user_id, "item_id": self.item_id}.get(column, "string")

    def arrow(self) -> pa.Schema:
        """The stored columns: identifiers, ``event_type``, ``time`` (int64 microseconds UTC), ``seq``, ... and the extra ones."""
        return self._arrow

    @cached_property
    def _arrow(self) -> pa.Schema:
        return pa.schema(
            [
                ("user_id", ID_TYPES[self.user_id]),
                ("item_id", ID_TYPES[self.item_id]),
                ("event_type", pa.string()),
                ("time", pa.int64()),
                ("seq", pa.int64()),
                ("session", pa.string()),
                *((name, pa.float64()) for name in MONEY),
                ("event_id", pa.string()),
                ("source", pa.string()),
                ("row", pa.int64()),
                *((name, ARROW_TYPES[kind]) for name, kind in self.extra.items()),
            ]
        )

    def to_json(self) -> str:
        """The schema as a JSON object; ``from_json`` reads it back."""
        plain: dict[str, Any] = {
            "user_id": self.user_id,
            "item_id": self.item_id,
            "clock": self.clock,
            "timezone": self.timezone,
            "event_types": None if self.event_types is None else list(self.event_types),
            "session": self.session,
            "extra": dict(self.extra),
        }
        return json.dumps(plain, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> LogSchema:
        """The schema that ``to_json`` wrote; SchemaError where the text is something else."""
        try:
            plain = json.loads(text)
            return LogSchema(**plain)
        except (ValueError, TypeError, UsageError) as error:
            raise SchemaError(f"not a log schema: {text[:200]!r} ({error}); was the log's metadata edited by hand?") from error
