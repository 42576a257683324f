"""From a source's columns to the log's: which column is which, and which rows cannot be taken, with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import Array
from zoo.errors import UsageError, choices
from zoo.events import values
from zoo.events.quick import quick
from zoo.events.schema import MICROSECONDS, MONEY, LogSchema
from zoo.events.sources import Chunk, Source
from zoo.events.times import ColumnError, check_type, read_times

LAST_POSITION = 2**63 // MICROSECONDS - 1


@dataclass(frozen=True)
class Plan:
    """How a source's columns become the log's.

    columns: the log's column -> the source's. kinds: the log's column -> how it is read. ignored: columns that the log has
    no place for. timezone, unit: for naive and for whole-number times. each: a naive time that nothing says the timezone of is its own
    row's fault where other times have an offset; else the column's.
    """

    schema: LogSchema
    columns: Mapping[str, str]
    kinds: Mapping[str, str]
    ignored: tuple[str, ...]
    timezone: str | None
    unit: str | None
    text: bool
    each: bool = False

    @property
    def wanted(self) -> dict[str, str]:
        """The source's columns that are read, with their kind."""
        return {theirs: self.kinds[ours] for ours, theirs in self.columns.items()}


@dataclass(frozen=True)
class Rejected:
    """Rows that were not taken: number int64 (n,), reason and record (JSON, under the source's names)."""

    row: Array
    reason: Sequence[str]
    record: Sequence[str]

    def __len__(self) -> int:
        return len(self.reason)


def plan(
    source: Source,
    schema: LogSchema,
    mapping: Mapping[str, str] | None = None,
    timezone: str | None = None,
    unit: str | None = None,
    required: Sequence[str] = (),
    each: bool = False,
) -> Plan:
    """Find the log's columns in a source.

    mapping: the source's name -> the log's, for those whose names differ. required: columns that must be there beside
    ``user_id``, ``event_type`` and the time. each: see ``Plan``. Raises SchemaError for a missing column, a column of a type that cannot be
    read and naive times without a timezone; UsageError for a mapping to or from names that do not exist.
    """
    mapping = dict(mapping or {})
    for theirs, ours in mapping.items():
        if theirs not in source.names:
            raise UsageError(choices("column in the mapping", theirs, source.names))
        if ours not in schema.accepted:
            raise UsageError(choices("column to map to", ours, schema.accepted))
    twice = sorted({ours for ours in mapping.values() if list(mapping.values()).count(ours) > 1})
    if twice:
        raise UsageError(f"the mapping names {twice[0]!r} for several columns; expected one column for it")
    columns = {ours: theirs for theirs, ours in mapping.items()}
    for name in schema.accepted:
        if name in source.names and name not in columns and name not in mapping:
            columns[name] = name
    missing = [n for n in ("user_id", "event_type", schema.time_column, *required) if n not in columns]
    if missing:
        raise ColumnError(
            f"no column {missing[0]!r}; found: {', '.join(source.names) or '(none)'}",
            f'. Say which one holds it: THEIRS = "{missing[0]}" under [ingest.columns] in zoo.toml, in Python '
            f"mapping={{'THEIRS': {missing[0]!r}}}"
            + ("; for events without items add an empty one" if missing[0] == "item_id" else ""),
            f"; expected events with user_id, event_type and {schema.time_column}",
        )
    kinds = {name: _kind(schema, name, unit) for name in columns}
    timezone = timezone or schema.timezone
    if source.types is not None:
        for ours, theirs in columns.items():
            found = source.types[theirs]
            if kinds[ours] in ("time", "instant"):
                check_type(theirs, found, timezone, unit)
            elif not values.fits(kinds[ours], found):
                raise values.wrong_type(theirs, found, kinds[ours])
    used = set(columns.values())
    return Plan(schema, columns, kinds, tuple(n for n in source.names if n not in used), timezone, unit, source.text, each)


def _kind(schema: LogSchema, name: str, unit: str | None) -> str:
    time = "time" if unit is None else "instant"
    fixed = {"timestamp": time, "position": "position", "session": "label", "event_id": "label", "event_type": "string"}
    if name in ("user_id", "item_id"):
        return schema.id_type(name)
    if name in MONEY:
        return "amount"
    return fixed.get(name) or schema.extra[name]


class _Reasons:
    """The first reason found for each row, 0 where there is none."""

    def __init__(self, count: int) -> None:
        self.codes = np.zeros(count, np.int16)
        self.names: list[str] = [""]

    def note(self, mask: Array, reason: str) -> None:
        if mask.any():
            self.codes[mask & (self.codes == 0)] = len(self.names)
            self.names.append(reason)


def clean(chunk: Chunk, how: Plan, now: int | None) -> tuple[pa.Table, Rejected]:
    """Split a chunk into rows for the log (all its columns but ``seq`` and ``source``) and rejected ones.

    now: events later than this (microseconds UTC) are rejected; None checks nothing.
    """
    taken = quick(chunk, how, now)
    if taken is not None:
        return taken.table(pa.schema([f for f in how.schema.arrow() if f.name not in ("seq", "source")])), none_rejected()
    return sift(chunk, how, now)


def canonical(chunk: Chunk, how: Plan) -> Mapping[str, list[Any]]:
    """The values of a chunk by the log's columns as the log types them, whatever they came as: what ``quick`` would tell. In the place of
    one that cannot be read stands its text. No row is judged: what is after now today is not tomorrow."""
    out: dict[str, list[Any]] = {}
    for ours, theirs in how.columns.items():
        column = chunk.columns[theirs]
        array, _ = _read(column, ours, how, _Reasons(len(chunk.rows)))
        found = _listed(_kept(array, ours))
        if array.null_count:
            given = column if isinstance(column, list) else _objects(column)
            lost = np.flatnonzero(np.asarray(array.is_null())).tolist()
            for row in (row for row in lost if given[row] is not None and given[row] == given[row]):
                found[row] = {"unreadable": str(given[row])}
        out["time" if ours == how.schema.time_column else ours] = found
    return out


def _kept(array: pa.Array, ours: str) -> pa.Array:
    """A column that was read as the log keeps it: of a position the time, of text that names nothing null."""
    if ours == "position":
        return pc.multiply(array, MICROSECONDS)
    if ours in ("item_id", "session", "event_id") and pa.types.is_string(array.type):
        return pc.if_else(pc.equal(array, ""), None, array)
    return array


def _listed(values: pa.Array) -> list[Any]:
    """``values.to_pylist()``, of plain ones in a fraction of its time."""
    kind, types = values.type, pa.types
    plain = types.is_integer(kind) or types.is_floating(kind) or types.is_string(kind)
    found: list[Any] = values.to_numpy(zero_copy_only=False).tolist() if plain and not values.null_count else values.to_pylist()
    return found


def none_rejected() -> Rejected:
    return Rejected(np.empty(0, np.int64), [], [])


def sift(chunk: Chunk, how: Plan, now: int | None) -> tuple[pa.Table, Rejected]:
    """``clean``, column by column."""
    count = len(chunk.rows)
    reasons = _Reasons(count)
    out: dict[str, Any] = {"row": pa.array(chunk.rows)}
    for ours in (name for name in how.schema.accepted if name in how.columns):
        time = ours == how.schema.time_column
        array, bad = _read(chunk.columns[how.columns[ours]], ours, how, reasons)
        reasons.note(bad, f"{ours}_unreadable" if ours == "timestamp" else f"{ours}_invalid")
        if ours in ("user_id", "event_type") or time:
            reasons.note(_missing(array) & ~bad, f"{ours}_null")
        if ours == "event_type" and how.schema.event_types is not None:
            known = pc.is_in(array, value_set=pa.array(how.schema.event_types))
            reasons.note(~np.asarray(known), "event_type_unknown")
        if ours == "timestamp" and now is not None:
            reasons.note(np.asarray(array.fill_null(now)) > now, "timestamp_after_now")
        if how.kinds[ours] in ("amount", "float64"):
            floats = np.asarray(array.fill_null(0.0))
            reasons.note(~np.isfinite(floats), f"{ours}_not_finite")
            if how.kinds[ours] == "amount":
                reasons.note(np.abs(floats) > values.LARGEST, f"{ours}_too_large")
        if pa.types.is_string(array.type):
            reasons.note(np.asarray(pc.binary_length(array).fill_null(0)) > values.LONGEST, f"{ours}_too_long")
        out["time" if time else ours] = _kept(array, ours)
    good = reasons.codes == 0
    for field in how.schema.arrow():
        if field.name not in out and field.name not in ("seq", "source"):
            out[field.name] = pa.nulls(count, field.type)
    taken = pa.table(out)
    if not good.all():
        taken = taken.filter(pa.array(good))
    return taken, _rejected(chunk, how, reasons)


def _read(column: Any, ours: str, how: Plan, reasons: _Reasons) -> tuple[pa.Array, Array]:
    kind = how.kinds[ours]
    wrong: Array | None = None
    if isinstance(column, list):
        column, wrong = values.from_objects(kind, column)
    if kind in ("time", "instant"):
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        array, bad, why = read_times(column, how.columns[ours], how.timezone, how.unit, how.each)
        for name, mask in why.items():
            reasons.note(mask, f"timestamp_{name}")
    else:
        array, bad = values.read(kind, column, how.text)
    if kind == "position":
        too_far = np.abs(np.asarray(array.fill_null(0))) > LAST_POSITION
        array, bad = pc.if_else(pa.array(too_far), None, array), bad | too_far
    return array, bad if wrong is None else bad | wrong


def _missing(array: pa.Array) -> Array:
    """Null, or text that is empty: an identifier of nobody."""
    missing = np.asarray(array.is_null())
    if pa.types.is_string(array.type):
        missing = missing | np.asarray(pc.equal(array, "").fill_null(False))
    return missing


def _rejected(chunk: Chunk, how: Plan, reasons: _Reasons) -> Rejected:
    index = np.flatnonzero(reasons.codes)
    # half a surrogate pair, which JSON may hold, is no text: it is kept as the escape that it came as
    said = (json.dumps(record, ensure_ascii=False, default=str) for record in _records(chunk, how, index))
    records = [text.encode("utf-8", "backslashreplace").decode() for text in said]
    malformed = [_shown(m.text) for m in chunk.malformed]
    return Rejected(
        np.concatenate([chunk.rows[index], np.array([m.row for m in chunk.malformed], np.int64)]),
        [*(reasons.names[code] for code in reasons.codes[index]), *(m.reason for m in chunk.malformed)],
        [*records, *malformed],
    )


def _records(chunk: Chunk, how: Plan, index: Array) -> Iterator[dict[str, Any]]:
    """Rows as the source gave them, without empty fields."""
    picked = {
        name: [column[i] for i in index] if isinstance(column, list) else _objects(column.take(pa.array(index)))
        for name, column in ((theirs, chunk.columns[theirs]) for theirs in how.columns.values())
    }
    for row in zip(*picked.values()):
        # JSON has no not-a-number; its name says what was there.
        shown = {k: _shown(v) for k, v in zip(picked, row) if v is not None}
        yield {k: str(v) if isinstance(v, float) and not np.isfinite(v) else v for k, v in shown.items()}


def _objects(column: pa.Array) -> list[Any]:
    """Python values; times beyond what Python's can hold as the numbers that they are."""
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        return list(column.cast(pa.int64(), safe=False).to_pylist())


def _shown(value: Any) -> Any:
    """The value, a text that is too long to be kept by its beginning and its length."""
    if not isinstance(value, str) or len(value) <= values.LONGEST // 4:
        return value
    return f"{value[:200]}... ({len(value):,} characters)"
