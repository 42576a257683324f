"""Rows as users give them: frames, mappings or lists as columns, their times as instants, and which of them are alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, Block, Column
from zoo.errors import FeatureError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

TIME = "time"
_FEW = 256
"""Rows up to which looking for repeated ones in Python costs less than sorting."""
_PLAIN = ({int}, {str})
"""Types of a list's values that need no look by Arrow."""


def table_of(rows: Any) -> pa.Table:
    """Rows as an Arrow table: a table, a pandas or polars frame, a mapping of columns or a list of mappings.

    Raises UsageError for anything else, and naming the column whose values are not of one type.
    """
    import pyarrow as pa

    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, Mapping):
        alone = [name for name, values in rows.items() if not hasattr(values, "__len__") or isinstance(values, str | bytes)]
        if alone:
            raise UsageError(f"column {alone[0]!r} is {_short(rows[alone[0]])}; expected a list of values, one a row")
        lengths = {name: len(values) for name, values in rows.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"columns differ in length: {lengths}; expected one value a row in each")
        return pa.table({name: _column(name, values) for name, values in rows.items()})
    if isinstance(rows, list):
        for row in rows:
            if not isinstance(row, Mapping):
                raise UsageError(f"a row is a {type(row).__name__}; expected mappings of column names to values")
        if rows and not any(rows):  # Arrow would forget how many
            raise UsageError(f"{len(rows)} rows hold nothing; expected mappings of column names to values")
        # every row's names, not the first one's only as in Table.from_pylist
        return pa.table({n: _column(n, [row.get(n) for row in rows]) for n in dict.fromkeys(n for row in rows for n in row)})
    if hasattr(rows, "to_arrow"):
        return rows.to_arrow()
    if hasattr(rows, "columns"):
        return pa.Table.from_pandas(rows, preserve_index=False)
    raise UsageError(f"rows are a {type(rows).__name__}; expected a table, a frame, a mapping of columns or a list of mappings")


def identifiers(users: Any) -> list[Any]:
    """``users=[...]`` as a list. Raises UsageError for one identifier alone, and for what is no list of any."""
    if isinstance(users, (str, bytes, Mapping)) or not isinstance(users, Iterable) or getattr(users, "ndim", 1) != 1:
        kind = "text" if isinstance(users, str) else type(users).__name__
        raise UsageError(f"users is the {kind} {_short(users)}; expected a list of identifiers, as in users=[{_example(users)}]")
    return list(users)


def _example(users: Any) -> str:
    return _short(users) if isinstance(users, (str, int)) else "1, 42"


def keyed(table: pa.Table, needed: tuple[str, ...], who: str) -> pa.Table:
    """The table, if every row has every column that ``who`` needs; without rows and columns it is an empty one. Raises UsageError."""
    if not table.num_columns and not len(table):
        return table_of({name: [] for name in needed})
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise UsageError(
            f"rows have no column {missing[0]!r}; {who} needs {', '.join(needed)} and the rows have: "
            f"{', '.join(table.column_names) or '(none)'}"
        )
    for name in needed:
        if table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise UsageError(f"row {row} of {len(table)} has no {name}; {who} needs it in every row")
    return table


def _column(name: str, values: Any) -> pa.Array:
    import pyarrow as pa

    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise UsageError(f"column {name!r} cannot be read: {_why(values, error)}") from error


def _why(values: Any, error: Exception) -> str:
    """What Arrow cannot make a column of, in words."""
    first: dict[type, int] = {}
    for row, value in enumerate(values if isinstance(values, (list, tuple)) else ()):
        if type(value) is int and not -(2**63) <= value < 2**63:
            return f"row {row} holds {_short(value)}; expected whole numbers of at most 64 bits"
        if value is not None:
            first.setdefault(float if type(value) is int else type(value), row)  # Arrow takes both kinds of number together
    if len(first) > 1:
        seen = ", ".join(f"row {row} holds {_short(values[row])}" for row in [*first.values()][:2])
        return f"{seen}; expected values of one type"
    return f"{error}; expected values of one type"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


Given = Mapping[str, Any]
"""Rows by column: Arrow, or lists as they were given."""


def given_columns(rows: Any) -> Given:
    """The columns of ``table_of``, without making a table of lists of plain whole numbers and texts."""
    if type(rows) is dict and all(type(v) is list and {*map(type, v)} in _PLAIN for v in rows.values()):
        lengths = {*map(len, rows.values())}
        if len(lengths) == 1:
            return rows
    table = table_of(rows)
    return dict(zip(table.column_names, table.columns))


def instants(values: pa.ChunkedArray) -> Array:
    """int64 microseconds UTC of a time column: integers as they are, timestamps with a timezone, to whole microseconds.

    UsageError for naive timestamps, and for times before year 1 or after year 9999.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from zoo.events.times import to_microseconds

    if not len(values):
        return np.zeros(0, np.int64)
    if values.null_count:
        raise UsageError(f"the time column has {values.null_count} nulls; expected an instant a row")
    if pa.types.is_timestamp(values.type) and values.type.tz is None:
        raise UsageError("the time column has no timezone; expected UTC timestamps or int64 microseconds")
    if not (pa.types.is_timestamp(values.type) or pa.types.is_integer(values.type)):
        raise UsageError(f"the time column is {values.type}; expected timestamps with a timezone or int64 microseconds")
    unit = values.type.unit if pa.types.is_timestamp(values.type) else "us"
    if pa.types.is_uint64(values.type):  # what is beyond int64 is beyond the range, too
        values = pa.chunked_array([pc.min_element_wise(values, pa.scalar(2**63 - 1, pa.uint64()))])
    found, beyond = to_microseconds(np.asarray(values.cast(pa.int64()).combine_chunks()), unit)
    if beyond.any():
        raise _out_of_range(f"the time column holds {values.cast(pa.int64())[int(beyond.argmax())].as_py()} {unit}")
    return found


def timed(rows: Any) -> tuple[pa.Table, Array]:
    """Rows that say when: (the table, its times int64 (n,) microseconds UTC)."""
    table = table_of(rows)
    if TIME not in table.column_names:
        raise UsageError(f"rows have no column 'time'; they have: {', '.join(table.column_names)}")
    return table, instants(table[TIME])


def microseconds(instant: datetime) -> int:
    """Microseconds UTC of an aware datetime, without the rounding of float seconds."""
    if instant.tzinfo is None:
        raise FeatureError(f"the instant {instant.isoformat()} has no timezone; expected UTC, such as 2017-12-01T00:00:00Z")
    whole = int(instant.replace(microsecond=0).timestamp())
    return whole * 1_000_000 + instant.microsecond


def moment(at: Any) -> int:
    """Microseconds UTC of an ``at``: an aware datetime, or a whole number, which is microseconds already. UsageError for anything else."""
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise UsageError(f"at is {at.isoformat()}, which has no timezone; expected an instant such as 2017-12-01T00:00:00Z")
        return microseconds(at)
    if not isinstance(at, (bool, np.bool_)) and isinstance(at, (int, np.integer)):
        from zoo.events.times import EARLIEST, LATEST

        if not EARLIEST <= at <= LATEST:
            raise _out_of_range(f"at is {at}")
        return int(at)
    raise UsageError(f"at is {at!r}; expected a datetime with a timezone or int64 microseconds UTC")


def _out_of_range(seen: str) -> UsageError:
    from zoo.events.times import EARLIEST, LATEST

    return UsageError(
        f"{seen}, which is no instant of the years 1 to 9999; expected microseconds UTC from {EARLIEST} to {LATEST}: is it in another unit?"
    )


def distinct(columns: list[Array]) -> tuple[Array | None, Array]:
    """(first row of each distinct tuple, None where every row is; int32 (n,) which of them each row is)."""
    number = len(columns[0])
    if number == 1:
        return None, np.zeros(1, np.int32)
    if number <= _FEW:
        rows = columns[0].tolist() if len(columns) == 1 else zip(*[column.tolist() for column in columns])
        if len({*rows}) == number:
            return None, np.arange(number, dtype=np.int32)
    order = np.lexsort(columns[::-1])
    change = np.zeros(len(order), bool)
    change[:1] = True
    for column in columns:
        change[1:] |= np.diff(column[order]) != 0
    inverse = np.empty(len(order), np.int32)
    inverse[order] = np.cumsum(change) - 1
    return order[change], inverse


def context_block(given: Given, context: Mapping[str, str]) -> Block:
    import pyarrow as pa

    out = {}
    for name, dtype in context.items():
        if name not in given:
            raise UsageError(f"rows have no context column {name!r}; they have: {', '.join(given)}")
        values = _column(name, given[name])
        out[name] = Column(np.asarray(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values).astype(dtype))
    return out
