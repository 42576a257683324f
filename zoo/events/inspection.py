"""Looking at an event file before there is a log: what its columns seem to be, and the schema that would take it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from zoo.errors import SchemaError, UsageError, choices
from zoo.events.readers import open_source
from zoo.events.schema import NAME, RESERVED, STANDARD, Clock, IdType, LogSchema
from zoo.events.times import OFFSET, PER_SECOND, is_text
from zoo.events.values import numbers, whole_numbers

ROWS = 2_000_000
"""Rows that are looked at, at most."""
LABELS = 1_000
"""Distinct values beyond which a further text column is taken for free text and left out."""

INDEX = re.compile(r"__index_level_\d+__")
"""Columns in which pandas writes a frame's index: they number rows and say nothing of events."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "user_id": ("user", "visitor_id", "customer_id", "household_id", "client_id", "member_id", "account_id"),
    "item_id": ("item", "product_id", "stock_code", "sku", "article_id", "movie_id", "asin"),
    "event_type": ("event", "action", "behavior_type", "behaviour_type", "behavior", "behaviour"),
    "timestamp": ("event_time", "datetime", "time", "date", "ts", "created_at", "invoice_date", "transaction_timestamp"),
    "position": ("order", "step"),
    "session": ("session_id", "user_session", "visit_id", "basket_id", "invoice_id", "invoice", "invoice_no", "order_id"),
    "price": ("unit_price", "item_price"),
    "quantity": ("qty", "units"),
    "value": ("amount", "sales_value", "revenue", "total"),
    "event_id": ("event_uuid",),
}
"""Names that a standard column goes by elsewhere; case, spaces and underscores do not matter."""


@dataclass(frozen=True)
class Inspection:
    """What a file seems to hold.

    rows: rows looked at; complete: whether these are all. schema, mapping, time_unit: what ``ingest`` needs to take the file.
    naive: its times have no offset, so that a timezone must be stated. nulls: empty fields by the log's column.
    event_types: rows by event type. left_out: the file's column -> why the proposal has no place for it.
    """

    path: Path
    rows: int
    complete: bool
    schema: LogSchema
    mapping: Mapping[str, str]
    time_unit: str | None
    naive: bool
    nulls: Mapping[str, int]
    event_types: Mapping[str, int]
    left_out: Mapping[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """The log's columns that the file fills."""
        return tuple(self.nulls)


def inspect(path: Path | str, mapping: Mapping[str, str] | None = None, timezone: str | None = None) -> Inspection:
    """Propose a schema and a mapping for an event file (Parquet, CSV, NDJSON).

    mapping: the file's name -> the log's, for columns that their names do not give away. timezone: of naive times.
    Raises SchemaError where no column looks like a required one, UsageError for a mapping of no column.
    """
    path = Path(path)
    columns, text, rows, complete = _read(path)
    mapping = dict(mapping or {})
    for theirs in mapping:
        if theirs not in columns:
            raise UsageError(choices("column in the mapping", theirs, columns))
    found = _recognise(columns, mapping)
    clock = _clock(path, columns, found)
    found.pop("timestamp" if clock == "order" else "position", None)
    missing = [name for name in ("user_id", "item_id", "event_type") if name not in found]
    if missing:
        raise SchemaError(
            f"{path}: no column looks like {missing[0]!r}; found: {', '.join(columns)}. Say which one holds it: "
            f"--column {missing[0]}=THEIRS, in Python mapping={{'THEIRS': {missing[0]!r}}}"
        )
    naive, unit = (False, None) if clock == "order" else _times(columns[found["timestamp"]])
    extra, left_out = {}, {}
    for theirs, array in columns.items():
        if theirs in found.values():
            continue
        if INDEX.fullmatch(theirs) and theirs not in mapping:
            left_out[theirs] = "the index of a pandas frame"
            continue
        ours = mapping.get(theirs) or re.sub(r"\W", "_", theirs)
        kind = _extra_kind(array, text)
        if ours in STANDARD or ours in RESERVED or not NAME.match(ours) or ours in extra:
            left_out[theirs] = "its name has another meaning in the log"
        elif kind is None:
            left_out[theirs] = f"empty, nested, or text with more than {LABELS} different values"
        else:
            extra[ours], found[ours] = kind, theirs
    schema = LogSchema(
        user_id=_id_kind(columns[found["user_id"]], text),
        item_id=_id_kind(columns[found["item_id"]], text),
        clock=clock,
        timezone=timezone,
        session="session" in found,
        extra=extra,
    )
    types = Counter(str(v) for v in columns[found["event_type"]].to_pylist() if v is not None)
    return Inspection(
        path=path,
        rows=rows,
        complete=complete,
        schema=schema,
        mapping={theirs: ours for ours, theirs in found.items() if ours != theirs},
        time_unit=unit,
        naive=naive,
        nulls={ours: columns[theirs].null_count for ours, theirs in found.items()},
        event_types=dict(types.most_common()),
        left_out=left_out,
    )


def _read(path: Path) -> tuple[dict[str, pa.Array], bool, int, bool]:
    """The file's columns, whether it knows text only, rows read, and whether these are all."""
    source = open_source(path)
    parts: dict[str, list[pa.Array]] = {name: [] for name in source.names}
    rows, complete = 0, True
    for chunk, _ in source.chunks(dict.fromkeys(source.names, "as it is")):
        rows += len(chunk.rows)
        for name, values in chunk.columns.items():
            parts[name].append(_array(values))
        if rows >= ROWS:
            complete = False
            break
    if rows == 0:
        raise SchemaError(f"{path} holds no rows; expected events")
    columns = {}
    for name, arrays in parts.items():
        types = {a.type for a in arrays if not pa.types.is_null(a.type)}
        target = types.pop() if len(types) == 1 else pa.string() if types else pa.null()
        columns[name] = pa.concat_arrays([a.cast(target) for a in arrays])
    return columns, source.text, rows, complete


def _array(values: Any) -> pa.Array:
    if not isinstance(values, list):
        return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if v is None else str(v) for v in values])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _recognise(columns: Mapping[str, pa.Array], mapping: Mapping[str, str]) -> dict[str, str]:
    """The log's standard column -> the file's: mapped ones, then the same name, then an alias in the order of ``ALIASES``."""
    found = {ours: theirs for theirs, ours in mapping.items() if ours in STANDARD}
    plain = {_plain(name): name for name in reversed(list(columns)) if name not in mapping}
    for ours in STANDARD:
        for candidate in (ours, *ALIASES[ours]):
            theirs = plain.get(_plain(candidate))
            if ours not in found and theirs is not None and theirs not in found.values():
                found[ours] = theirs
    return found


def _clock(path: Path, columns: Mapping[str, pa.Array], found: Mapping[str, str]) -> Clock:
    """``order`` where there are positions and no times at all."""
    if "timestamp" in found and columns[found["timestamp"]].null_count < len(columns[found["timestamp"]]):
        return "time"
    if "position" in found:
        return "order"
    raise SchemaError(
        f"{path}: no column holds times (timestamp) or positions (position); found: {', '.join(columns)}. "
        "Say which one does: --column timestamp=THEIRS, in Python mapping={'THEIRS': 'timestamp'}"
    )


def _times(array: pa.Array) -> tuple[bool, str | None]:
    """Whether times are naive, and the unit of whole-number ones by their size."""
    if pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
        return pa.types.is_date(array.type) or array.type.tz is None, None
    sample = array.drop_null()[:10_000]
    whole, bad = whole_numbers(sample, is_text(array.type)) if not pa.types.is_nested(array.type) else (sample, np.ones(1, bool))
    if not bad.any():
        size = float(np.median(np.abs(np.asarray(whole, dtype=np.float64))))
        return False, next((unit for unit, per in PER_SECOND.items() if size < 1e11 * per), "ns")
    if not is_text(array.type):
        return False, None
    return bool((~pl.Series(sample.cast(pa.large_string())).str.strip_chars().str.contains(OFFSET)).any()), None


def _id_kind(array: pa.Array, text: bool) -> IdType:
    """``int`` where every identifier is a whole number written as such; text of typed files stays text."""
    values = array.drop_null()
    if is_text(array.type):
        whole, bad = whole_numbers(values, True) if text else (values, np.ones(1, bool))
        # "007" and "7" are two identifiers, so they cannot be numbers.
        return "int" if not bad.any() and whole.cast(pa.string()).equals(values.cast(pa.string())) else "string"
    return "string" if whole_numbers(values, False)[1].any() else "int"


def _extra_kind(array: pa.Array, text: bool) -> str | None:
    """The type of a further column, None where it is not worth keeping."""
    types, values = pa.types, array.drop_null()
    if not len(values):
        return None
    if types.is_boolean(array.type):
        return "bool"
    if types.is_integer(array.type):
        return "int64"
    if types.is_floating(array.type) or types.is_decimal(array.type):
        return "float64"
    if not is_text(array.type):
        return None
    if text and not whole_numbers(values, True)[1].any():
        return "int64"
    if text and not numbers(values, True)[1].any():
        return "float64"
    return "string" if len(values.unique()) <= LABELS else None
