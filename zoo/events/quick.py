"""The rules of ``zoo.events.rows`` for a few rows that are plainly good, without what it costs to start a plan over columns.

Whatever is not plainly good, or not known here, is left to the rules themselves: ``quick`` never rejects and never differs from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from zoo.events.few import Few
from zoo.events.schema import MICROSECONDS
from zoo.events.times import EARLIEST, LATEST
from zoo.events.values import LARGEST, LONGEST

if TYPE_CHECKING:
    from zoo.events.rows import Plan
    from zoo.events.sources import Chunk

FEW = 64
"""Rows up to which looking at each value in Python is quicker."""
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[T ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?(?:[Zz]|([+-])([0-9]{2}):?([0-9]{2}))"
)
_EPOCH, _MICROSECOND = datetime(1970, 1, 1), timedelta(microseconds=1)
_SCALES = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}
_LARGEST_INT, _EXACT, _LAST_POSITION = 2**63, 2**53, 2**63 // MICROSECONDS - 1


class _Unsure(Exception):
    """Not plainly good."""


def quick(chunk: Chunk, how: Plan, now: int | None) -> Few | None:
    """The rows as ``clean`` would return them, where it would reject none; None where that is not plain."""
    if len(chunk.rows) > FEW or chunk.malformed or how.text or not len(chunk.rows):
        return None
    out: dict[str, list[Any]] = {"row": chunk.rows.tolist()}
    try:
        for ours, theirs in how.columns.items():
            values = _values(chunk.columns[theirs], how.kinds[ours], how.unit)
            time = ours == how.schema.time_column
            if time or ours in ("user_id", "event_type"):
                _required(values, ours, how, now)
            elif ours in ("item_id", "session", "event_id"):
                values = [None if v == "" else v for v in values]
            out["time" if time else ours] = values
    except (_Unsure, pa.ArrowException, OverflowError, ValueError):
        return None
    return Few(out, len(chunk.rows))


def _required(values: Sequence[Any], ours: str, how: Plan, now: int | None) -> None:
    known = how.schema.event_types if ours == "event_type" else None
    latest = now if ours == "timestamp" else None
    for value in values:
        if value is None or value == "" or (known is not None and value not in known) or (latest is not None and value > latest):
            raise _Unsure


def _values(column: Any, kind: str, unit: str | None) -> list[Any]:
    """Python values as the log keeps them."""
    json = isinstance(column, list)
    if not json and kind in ("time", "instant"):
        column, kind, unit = _ticks(column, unit)
    elif not json and not _known(column.type, kind):
        raise _Unsure
    read = _READERS[kind]
    return [None if v is None else read(v, unit) for v in (column if json else column.to_pylist())]


def _ticks(column: pa.Array, unit: str | None) -> tuple[pa.Array, str, str | None]:
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        return column.cast(pa.int64(), safe=False), "instant", column.type.unit
    if pa.types.is_int64(column.type):
        return column, "instant", unit
    if pa.types.is_string(column.type) and unit is None:
        return column, "time", None
    raise _Unsure


def _known(found: pa.DataType, kind: str) -> bool:
    types = pa.types
    if kind in ("int", "int64", "position"):
        return bool(types.is_signed_integer(found))
    if kind in ("float64", "amount"):
        return bool(types.is_float64(found) or types.is_signed_integer(found))
    if kind == "bool":
        return bool(types.is_boolean(found))
    return bool(types.is_string(found) or types.is_large_string(found) or (kind == "label" and types.is_signed_integer(found)))


def _whole(value: Any, _: Any) -> int:
    if type(value) is not int or not -_LARGEST_INT <= value < _LARGEST_INT:
        raise _Unsure
    return value


def _position(value: Any, _: Any) -> int:
    if type(value) is not int or abs(value) > _LAST_POSITION:
        raise _Unsure
    return value * MICROSECONDS


def _number(value: Any, _: Any) -> float:
    if (type(value) is not float and type(value) is not int) or (type(value) is int and abs(value) > _EXACT):
        raise _Unsure
    if not math.isfinite(value):
        raise _Unsure
    return float(value)


def _amount(value: Any, _: Any) -> float:
    number = _number(value, None)
    if abs(number) > LARGEST:
        raise _Unsure
    return number


def _truth(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise _Unsure
    return value


def _text(value: Any, _: Any) -> str:
    if type(value) is not str or len(value) * 4 > LONGEST or not value.isprintable():
        raise _Unsure
    return value


def _label(value: Any, _: Any) -> str:
    return str(value) if type(value) is int else _text(value, None)


def _time(value: Any, _: Any) -> int:
    found = _TIME.fullmatch(value) if type(value) is str else None
    if found is None:
        raise _Unsure
    year, month, day, hour, minute, second, part, sign, hours, minutes = found.groups()
    moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))
    at = (moment - _EPOCH) // _MICROSECOND + (int(part.ljust(6, "0")) if part else 0)
    if sign:
        ahead = (int(hours) * 60 + int(minutes)) * 60 * MICROSECONDS
        at += ahead if sign == "-" else -ahead
    return _in_range(at)


def _instant(value: Any, unit: str | None) -> int:
    if type(value) is not int or unit is None:
        raise _Unsure
    times, over = _SCALES[unit]
    return _in_range(value * times // over)


def _in_range(at: int) -> int:
    if not EARLIEST <= at <= LATEST:
        raise _Unsure
    return at


_READERS: dict[str, Any] = {
    "int": _whole,
    "int64": _whole,
    "position": _position,
    "float64": _number,
    "amount": _amount,
    "bool": _truth,
    "string": _text,
    "label": _label,
    "time": _time,
    "instant": _instant,
}
