"""Reading a column's values as what the log keeps, and saying which of them cannot be.

Each reader takes an Arrow array as a file gave it and returns the array in the kept type (null where unusable) and
bool (n,): not null, but unusable. ``text`` says that the file knows text only (CSV), so numbers are read from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import Array
from zoo.errors import SchemaError
from zoo.events.times import is_text

Read = tuple[pa.Array, Array]
LARGEST = 1e11
"""Amounts beyond this cannot be summed exactly in the fixed-point int64 that features use."""

LONGEST = 1 << 20
"""Bytes of a text value (1 MiB) beyond which its row is not taken: a log's text is names, not documents."""

JSON_TYPES = {
    "int": pa.int64(),
    "int64": pa.int64(),
    "position": pa.int64(),
    "string": pa.string(),
    "label": pa.string(),
    "float64": pa.float64(),
    "amount": pa.float64(),
    "bool": pa.bool_(),
    "time": pa.string(),
    "instant": pa.int64(),
}
"""What a JSON value of each kind is; an ``instant`` is a time as a whole number."""

EXPECTED = {
    "int": "whole numbers (int64)",
    "int64": "whole numbers (int64)",
    "position": "whole numbers (int64)",
    "string": "text (string)",
    "label": "text or whole numbers",
    "float64": "numbers (float64)",
    "amount": "numbers (float64)",
    "bool": "booleans",
}


def fits(kind: str, found: pa.DataType) -> bool:
    """Whether a column of this type can be read as a kind; single values may still turn out bad."""
    types = pa.types
    if types.is_null(found):
        return True
    if types.is_dictionary(found):
        return fits(kind, found.value_type)
    whole = types.is_integer(found) or types.is_floating(found) or (types.is_decimal(found) and found.scale == 0)
    if kind in ("int", "int64", "position"):
        return bool(whole)
    if kind in ("float64", "amount"):
        return bool(whole or types.is_decimal(found))
    if kind == "bool":
        return bool(types.is_boolean(found))
    return is_text(found) or (kind == "label" and bool(types.is_integer(found)))


def read(kind: str, values: pa.Array, text: bool) -> Read:
    """Read a column as ``int``, ``int64``, ``position``, ``string``, ``label``, ``float64``, ``amount`` or ``bool``."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if kind in ("int", "int64", "position"):
        return whole_numbers(values, text)
    if kind in ("float64", "amount"):
        return numbers(values, text)
    if kind == "bool":
        return booleans(values, text)
    return values.cast(pa.string()), np.zeros(len(values), bool)


def whole_numbers(values: pa.Array, text: bool) -> Read:
    """int64. Floats count where they are whole and exact; NaN counts as null."""
    missing = np.asarray(values.is_null())
    if text:
        return _from_text(values, pl.Int64)
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    if pa.types.is_floating(values.type):
        floats = np.asarray(values.cast(pa.float64()).fill_null(0))
        missing |= np.isnan(floats)
        bad = ~missing & ((np.abs(floats) >= 2**53) | (floats != np.floor(floats)))
        out = np.where(bad | missing, 0, floats).astype(np.int64)
        return pa.array(out, mask=bad | missing), bad
    if pa.types.is_uint64(values.type):
        bad = np.asarray(values.fill_null(0)) > np.iinfo(np.int64).max
        return pa.array(np.asarray(values.fill_null(0)).astype(np.int64), mask=bad | missing), bad
    return values.cast(pa.int64()), np.zeros(len(values), bool)


def numbers(values: pa.Array, text: bool) -> Read:
    """float64, not-a-number and infinities kept."""
    if text:
        return _from_text(values, pl.Float64)
    return values.cast(pa.float64(), safe=False), np.zeros(len(values), bool)


def booleans(values: pa.Array, text: bool) -> Read:
    """bool; from text: true, false, 1, 0, yes, no in any case."""
    if not text:
        return values.cast(pa.bool_()), np.zeros(len(values), bool)
    words = pc.utf8_lower(pc.utf8_trim_whitespace(values.cast(pa.string())))
    yes, no = (pc.is_in(words, value_set=pa.array(w)) for w in (["true", "1", "yes"], ["false", "0", "no"]))
    known = np.asarray(yes) | np.asarray(no)
    return pa.array(np.asarray(yes), mask=~known), ~known & ~np.asarray(values.is_null())


def _from_text(values: pa.Array, kind: Any) -> Read:
    text = pl.Series(values.cast(pa.large_string())).str.strip_chars()
    read = text.cast(kind, strict=False)
    return read.to_arrow(), (read.is_null() & text.is_not_null()).to_numpy()


def from_objects(kind: str, values: Sequence[Any]) -> Read:
    """Python values (JSON) -> an Arrow array that ``read`` takes, and which values have the wrong type for the kind.

    JSON has types of its own: ``"1"`` is text and ``1`` a number, and neither stands for the other.
    """
    if kind in ("int", "int64", "position", "instant"):
        values = [int(v) if type(v) is float and v.is_integer() else v for v in values]
        good = [v is None or (type(v) is int and -(2**63) <= v < 2**63) for v in values]
        target = pa.int64()
    elif kind in ("float64", "amount"):
        good = [v is None or type(v) in (int, float) for v in values]
        values = [float(v) if type(v) is int and abs(v) < 2**1000 else v for v in values]
        good = [g and type(v) is not int for g, v in zip(good, values)]
        target = pa.float64()
    elif kind == "bool":
        good, target = [v is None or type(v) is bool for v in values], pa.bool_()
    else:
        if kind == "label":
            values = [str(v) if type(v) is int else v for v in values]
        elif kind == "time":  # rows made in Python have them
            values = [v.isoformat() if isinstance(v, datetime) else v for v in values]
        good, target = [v is None or ((type(v) is str and v.isprintable()) or _encodable(v)) for v in values], pa.string()
    kept = [v if g else None for v, g in zip(values, good)]
    return pa.array(kept, target), ~np.array(good, bool)


def _encodable(value: Any) -> bool:
    """Whether a value is text that UTF-8 can hold (JSON may bring half of a surrogate pair)."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def wrong_type(column: str, found: object, kind: str) -> SchemaError:
    """The refusal of a whole table whose column cannot be read as a kind."""
    hint = ""
    if kind == "int" and "string" in str(found):
        hint = '. "1" and 1 are different identifiers: make the log with string identifiers, or convert the column'
    elif kind == "string" and column in ("user_id", "item_id"):
        hint = '. "1" and 1 are different identifiers: make the log with int identifiers, or convert the column'
    return SchemaError(f"column {column!r} is {found}; expected {EXPECTED[kind]}{hint}")
