"""The log's rows as an index keeps them: dictionary codes for identifiers, fixed-point money, numbered sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zoo.contract import Array
from zoo.events.index import FIXED, NO_SESSION, fixed_point, nothing
from zoo.events.log import EventLog

if TYPE_CHECKING:
    import pyarrow as pa

    from zoo.events.few import Few

_NOT_COLUMNS = {"user_id", "item_id", "event_type", "time", "seq", "event_id", "source", "row", "session", *FIXED}


@dataclass(frozen=True)
class Encoded:
    """Events in the order of their table; ``dictionaries`` names each code column's."""

    user_id: Array
    item_id: Array
    time: Array
    seq: Array
    columns: dict[str, Array]
    dictionaries: dict[str, str]

    def __len__(self) -> int:
        return len(self.time)

    def keys(self, entity: str) -> Array:
        return self.user_id if entity == "user_id" else self.item_id

    def others(self, entity: str) -> dict[str, Array]:
        """The columns that an index of this entity holds."""
        return {name: values for name, values in self.columns.items() if name != entity}


def concatenated(parts: Sequence[Encoded]) -> Encoded:
    """Events of several tables in their order; a column that a part lacks is filled with missing values."""
    names = {name: part.columns[name].dtype for part in parts for name in part.columns}
    columns = {
        name: np.concatenate([part.columns[name] if name in part.columns else nothing(dtype, len(part)) for part in parts])
        for name, dtype in names.items()
    }
    time, seq = (np.concatenate([getattr(part, name) for part in parts]) for name in ("time", "seq"))
    dictionaries = {name: d for part in parts for name, d in part.dictionaries.items()}
    return Encoded(columns["user_id"], columns["item_id"], time, seq, columns, dictionaries)


def columns_of(log: EventLog) -> list[str]:
    """The log's columns that ``encode`` reads."""
    return [name for name in log.schema.arrow().names if name not in ("event_id", "source", "row")]


def kinds_of(log: EventLog, entity: str) -> dict[str, str]:
    """dtype by name of the columns that every index of this entity has (money only where some event has any)."""
    own = {"user_id": "<i4", "item_id": "<i4", "event_type": "<i4"} | ({"session": "<i8"} if log.schema.session else {})
    extra = {name: "<i4" if kind == "string" else "<f8" for name, kind in log.schema.extra.items()}
    return {name: kind for name, kind in (own | extra).items() if name != entity}


def encode(log: EventLog, table: pa.Table) -> Encoded:
    """Rows of the log as codes, int64 times and fixed-point money. A money column without any value is left out.

    table: of ``columns_of``, the three identifiers, ``time`` and ``seq`` at least.
    """
    import pyarrow as pa

    names = set(table.column_names)
    found = log.own_dictionaries()
    columns: dict[str, Array] = {name: found[name].encode(table[name]) for name in ("user_id", "item_id", "event_type")}
    users, items = columns["user_id"], columns["item_id"]
    dictionaries = {name: name for name in columns}
    for name in FIXED:
        if name in names and table[name].null_count < len(table):
            columns[name] = fixed_point(floats(table[name]))
    if log.schema.session and "session" in names:
        columns["session"] = _sessions(table["session"])
    for name in table.column_names:
        if name in _NOT_COLUMNS:
            continue
        if pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type):
            columns[name] = found[f"events.{name}"].encode(table[name])
            dictionaries[name] = f"events.{name}"
        else:
            columns[name] = floats(table[name])
    return Encoded(users, items, np.asarray(table["time"]), np.asarray(table["seq"]), columns, dictionaries)


def encode_few(log: EventLog, few: Few, first: int) -> Encoded:
    """As ``encode`` of columns that include the identifiers and ``time``; ``seq`` is from ``first`` on."""
    import pyarrow as pa

    found = log.own_dictionaries()
    columns: dict[str, Array] = {name: found[name].encode(few.columns[name]) for name in ("user_id", "item_id", "event_type")}
    users, items = columns["user_id"], columns["item_id"]
    dictionaries = {name: name for name in columns}
    for name, values in few.columns.items():
        if name in FIXED and values.count(None) < len(few):
            columns[name] = fixed_point(np.array(values, np.float64))
        elif name == "session" and log.schema.session:
            columns[name] = _sessions(pa.chunked_array([pa.array(values, pa.string())]))
        elif name not in _NOT_COLUMNS:
            if log.schema.extra[name] == "string":
                columns[name] = found[f"events.{name}"].encode(values)
                dictionaries[name] = f"events.{name}"
            else:
                columns[name] = np.array(values, np.float64)
    seq = np.arange(first, first + len(few), dtype=np.int64)
    return Encoded(users, items, np.array(few.columns["time"], np.int64), seq, columns, dictionaries)


def floats(values: pa.ChunkedArray) -> Array:
    """float64 with NaN for null; whole numbers beyond 2**53 lose their last digits."""
    import pyarrow as pa

    return np.asarray(values.combine_chunks().cast(pa.float64(), safe=False).fill_null(np.nan))


def _sessions(values: pa.ChunkedArray) -> Array:
    """int64 by session: whole numbers as they are, other text hashed, so that a number means one session in every process."""
    import pyarrow as pa
    import pyarrow.compute as pc

    encoded = values.combine_chunks().cast(pa.string()).dictionary_encode()
    names = encoded.dictionary
    whole = pc.match_substring_regex(names, r"^(0|-?[1-9][0-9]{0,17})$")
    numbers = np.array(pc.if_else(whole, names, "0").cast(pa.int64()))
    for i in np.flatnonzero(~np.asarray(whole)):
        digest = hashlib.blake2b(names[int(i)].as_py().encode(), digest_size=8).digest()
        numbers[i] = int.from_bytes(digest, "little", signed=True)
    found: Array = np.append(numbers, NO_SESSION)[np.asarray(encoded.indices.fill_null(len(numbers)))]
    return found
