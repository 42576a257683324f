"""Reading times: anything that a file may call a time -> int64 microseconds UTC, and which rows could not be read."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from zoo.contract import Array
from zoo.errors import SchemaError, UsageError, choices

EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""Years 1 to 9999, the range that every reader of the log can show."""
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Units of whole-number times."""

OFFSET = r"(?:Z|z|\s*UTC|\s*GMT|[+-]\d{2}:?\d{2})$"
FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")


def to_microseconds(values: Array, unit: str) -> tuple[Array, Array]:
    """int64 (n,) in a unit -> microseconds (rounded down), and which of them are out of range."""
    if unit not in PER_SECOND:
        raise UsageError(choices("time unit", unit, PER_SECOND))
    if unit == "ns":
        out = values // 1_000
        return out, (out < EARLIEST) | (out > LATEST)
    factor = PER_SECOND["us"] // PER_SECOND[unit]
    bad = (values < EARLIEST // factor) | (values > LATEST // factor)
    return np.where(bad, 0, values) * factor, bad


def naive_to_utc(values: pa.Array, timezone: str) -> pa.Array:
    """Naive ``timestamp[us]`` read in a timezone -> ``timestamp[us, UTC]``.

    An hour that occurs twice is the first of the two; one that clocks skip is null.
    """
    local = pl.Series(values.cast(pa.timestamp("us")))
    return local.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC").to_arrow()


class ColumnError(SchemaError):
    """A column that cannot be read as it is. pushed: the same, and what to do, for events that are pushed, which have no options."""

    def __init__(self, seen: str, of_files: str, pushed: str) -> None:
        super().__init__(f"{seen}{of_files}")
        self.pushed = f"{seen}{pushed}"


def _naive_refused(column: str, found: str) -> ColumnError:
    return ColumnError(
        f"column {column!r} holds naive times ({found}); expected times with an offset",
        ", or a log whose schema states a timezone (zoo init --timezone NAME; in Python timezone=NAME)",
        ", as in 2018-01-01T12:00:00Z",
    )


def check_type(column: str, found: pa.DataType, timezone: str | None, unit: str | None) -> None:
    """SchemaError where a column's type cannot be read as time."""
    types = pa.types
    if types.is_date(found) or (types.is_timestamp(found) and found.tz is None):
        if timezone is None:
            raise _naive_refused(column, str(found))
    elif types.is_integer(found):
        if unit is None:
            raise ColumnError(
                f"column {column!r} is {found}; expected times",
                ". For numbers since 1970 say their unit (s, ms, us or ns): time_unit under [ingest] in zoo.toml, in Python time_unit=",
                " with an offset, as in 2018-01-01T12:00:00Z",
            )
    elif not (types.is_timestamp(found) or types.is_null(found) or is_text(found)):
        raise SchemaError(f"column {column!r} is {found}; expected times, ISO 8601 text, or whole numbers with a stated unit")


def is_text(found: pa.DataType) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))


def read_times(
    values: pa.Array, column: str, timezone: str | None, unit: str | None, each: bool = False
) -> tuple[pa.Array, Array, dict[str, Array]]:
    """int64 microseconds UTC (n,) with nulls; bool (n,): not null, but not readable as a time; and what is readable, but no instant,
    bool (n,) by why: ``skipped_by_clock``, the timezone's, or ``naive``.

    timezone: for naive times, which are refused (SchemaError) without one; with ``each`` only where no time has an offset. unit: of whole
    numbers.
    """
    check_type(column, values.type, timezone, unit)
    missing = np.asarray(values.is_null())
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), pa.int64()), missing & False, {}
    skipped = naive = np.zeros(len(values), bool)
    if is_text(values.type):
        out, bad, skipped, naive = _read_text(values, column, timezone, unit, each)
    else:
        if pa.types.is_date(values.type):
            values = values.cast(pa.date32()).cast(pa.timestamp("s"))
        local = pa.types.is_timestamp(values.type) and values.type.tz is None
        unit = values.type.unit if pa.types.is_timestamp(values.type) else unit
        assert unit is not None
        too_big = np.zeros(len(values), bool)
        if pa.types.is_uint64(values.type):
            too_big = np.asarray(values.fill_null(0)) > np.iinfo(np.int64).max
        numbers = np.asarray(values.cast(pa.int64(), safe=False).fill_null(0))
        out, bad = to_microseconds(numbers, unit)
        bad |= too_big
        if local:
            assert timezone is not None
            out, skipped = _shift(out, bad, timezone)
    bad &= ~missing
    why = {name: mask & ~missing & ~bad for name, mask in (("skipped_by_clock", skipped), ("naive", naive))}
    return pa.array(out, mask=np.logical_or.reduce([missing, bad, *why.values()])), bad, why


def _shift(local: Array, bad: Array, timezone: str) -> tuple[Array, Array]:
    """Naive microseconds -> UTC, and which of them the timezone's clocks skip."""
    utc = naive_to_utc(pa.array(np.where(bad, 0, local)).cast(pa.timestamp("us")), timezone).cast(pa.int64())
    return np.asarray(utc.fill_null(0)), np.asarray(utc.is_null())


def _parse(text: pl.Series) -> pl.Series:
    """Text without offset -> microseconds as they stand, null where no format fits."""
    out = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(text))
    for form in FORMATS:
        missing = out.is_null() & text.is_not_null()
        if not missing.any():
            break
        read = text.filter(missing).str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us")
        out = out.scatter(missing.arg_true(), read) if len(read) < len(text) else read
    return out


def _read_text(
    values: pa.Array, column: str, timezone: str | None, unit: str | None, each: bool
) -> tuple[Array, Array, Array, Array]:
    """Microseconds, and of what is no instant: unreadable, skipped, naive without a timezone."""
    text = pl.Series(values.cast(pa.large_string())).str.strip_chars()
    skipped = np.zeros(len(text), bool)
    if unit is not None:
        numbers = text.cast(pl.Int64, strict=False)
        out, bad = to_microseconds(numbers.fill_null(0).to_numpy(), unit)
        return out, bad | numbers.is_null().to_numpy(), skipped, skipped
    offset = text.str.extract(rf"({OFFSET})", 1)
    local = _parse(text.str.replace(OFFSET, "").str.replace("T", " ", literal=True))
    bad = local.is_null().to_numpy()
    hours = offset.str.extract(r"[+-](\d{2})", 1).cast(pl.Int64).fill_null(0)
    minutes = offset.str.extract(r"[+-]\d{2}:?(\d{2})", 1).cast(pl.Int64).fill_null(0)
    ahead = np.where(offset.str.starts_with("-").fill_null(False).to_numpy(), -1, 1) * (hours * 60 + minutes).to_numpy()
    utc = local.fill_null(0).to_numpy() - ahead * 60_000_000
    naive = offset.is_null().to_numpy() & ~bad
    if naive.any() and timezone is None and not (each and (offset.is_not_null().to_numpy() & ~bad).any()):
        raise _naive_refused(column, repr(text[int(np.argmax(naive))]))
    if naive.any() and timezone is not None:
        moved, gone = _shift(utc, ~naive, timezone)
        utc, skipped, naive = np.where(naive, moved, utc), naive & gone, naive & False
    return utc, bad | (utc < EARLIEST) | (utc > LATEST), skipped, naive
