"""Looking at files before there is a log: what events a file holds, and entity tables as the log keeps them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import SchemaError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from zoo.contract import Progress
    from zoo.events.inspection import Inspection
    from zoo.events.schema import LogSchema
    from zoo.events.sources import Source

TITLES = ("name", "product_name", "item_name", "product_title", "item_title", "description")
"""Names that an item's title goes by elsewhere."""


@dataclass(frozen=True)
class Survey:
    """An event file as ingest would take it.

    rows: rows looked at. event_types: rows by type, the most frequent first. bad: rows by the reason why they would be kept apart.
    first, end: microseconds UTC (of an order-only log: positions). filled: the log's columns that hold any value. repeated: event types of
    which some user has two, and a third event of any type.
    """

    inspection: Inspection
    rows: int
    event_types: Mapping[str, int]
    bad: Mapping[str, int]
    users: int
    items: int
    first: int
    end: int
    filled: frozenset[str]
    repeated: frozenset[str]


def survey(path: Path, mapping: Mapping[str, str], timezone: str | None, progress: Progress) -> Survey:
    """Inspect an event file and clean its rows as ingest does, writing nothing.

    Raises UsageError where its times are naive and no timezone is given, SchemaError where it cannot be a log of events.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from zoo.events.ingest import wall_clock
    from zoo.events.inspection import ROWS, inspect
    from zoo.events.readers import open_source
    from zoo.events.rows import clean, plan

    progress(0.0, f"inspect {path.name}")
    found = inspect(path, mapping, timezone)
    if found.naive and timezone is None:
        raise UsageError(
            f"{path}: its times have no offset, so nobody knows which instants they are; "
            "say where their clock stood, as in --timezone Europe/London or --timezone UTC"
        )
    source = open_source(path)
    how = plan(source, found.schema, found.mapping, timezone, found.time_unit, required=("item_id",))
    now = wall_clock()
    rows, types, bad = 0, Counter[str](), Counter[str]()
    users, items = (
        pa.array([], found.schema.arrow().field("user_id").type),
        pa.array([], found.schema.arrow().field("item_id").type),
    )
    first, end, filled, counts = None, None, set(), []
    for chunk, done in source.chunks(how.wanted):
        good, rejected = clean(chunk, how, now)
        rows += good.num_rows + len(rejected)
        bad.update(rejected.reason)
        types.update({v["values"]: v["counts"] for v in good["event_type"].value_counts().to_pylist()})
        users = pc.unique(pa.concat_arrays([users, pc.unique(good["user_id"].combine_chunks())]))
        items = pc.unique(pa.concat_arrays([items, pc.unique(good["item_id"].combine_chunks())]))
        if good.num_rows:
            low, high = pc.min_max(good["time"]).as_py().values()
            first, end = low if first is None else min(first, low), high if end is None else max(end, high)
        counts.append(good.group_by(["user_id", "event_type"]).aggregate([([], "count_all")]))
        filled |= {name for name in good.column_names if good[name].null_count < good.num_rows}
        progress(done, f"read {path.name}")
        if rows >= ROWS:
            break
    if first is None or end is None:
        raise SchemaError(f"{path}: none of its {rows} rows can be taken ({_listed(bad)}); expected events")
    return Survey(
        found,
        rows,
        dict(types.most_common()),
        dict(bad.most_common()),
        len(users),
        len(items.drop_null()),
        first,
        end,
        frozenset(filled),
        _repeated(pa.concat_tables(counts)),
    )


def _repeated(counts: pa.Table) -> frozenset[str]:
    """counts: rows by user and event type, where a pair may stand more than once."""
    import pyarrow.compute as pc

    both = counts.group_by(["user_id", "event_type"]).aggregate([("count_all", "sum")])
    whole = counts.group_by("user_id").aggregate([("count_all", "sum")])
    of = whole.filter(pc.greater_equal(whole["count_all_sum"], 3))["user_id"]
    twice = both.filter(pc.and_(pc.greater_equal(both["count_all_sum"], 2), pc.is_in(both["user_id"], of)))
    return frozenset(twice["event_type"].unique().to_pylist())


def _listed(bad: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {rows}" for reason, rows in bad.items())


@dataclass(frozen=True)
class EntityTable:
    """A table as ``EventLog.put_table`` takes it. left_out: the file's column -> why it is not kept."""

    table: pa.Table
    left_out: Mapping[str, str]


def entity_table(path: Path, key: str, schema: LogSchema) -> EntityTable:
    """Read a file with one row an item or user (Parquet, CSV, NDJSON); key: ``item_id`` or ``user_id``, found by its aliases.

    Raises SchemaError where no column looks like the key or the file cannot be read.
    """
    import pyarrow as pa

    from zoo.events.inspection import ALIASES
    from zoo.events.readers import open_source

    source = open_source(path)
    names = {_plain(name): name for name in reversed(source.names)}
    holder = next((names[_plain(alias)] for alias in (key, *ALIASES[key], "id") if _plain(alias) in names), None)
    if holder is None:
        raise SchemaError(
            f"{path}: no column looks like {key!r}; found: {', '.join(source.names)}. Rename the one that holds it to {key!r}"
        )
    title = None
    if key == "item_id" and "title" not in names:
        title = next((names[_plain(t)] for t in TITLES if _plain(t) in names), None)
    raw = _columns(path, source)
    columns: dict[str, Any] = {key: _identifiers(path, holder, raw.pop(holder), schema.id_type(key), source.text)}
    left_out: dict[str, str] = {}
    for name, values in raw.items():
        ours = "title" if name == title else re.sub(r"\W", "_", name)
        reason = _unfit(ours, values, columns, schema)
        if reason:
            left_out[name] = reason
        else:
            columns[ours] = _labels(ours, _typed(values) if source.text else values)
    return EntityTable(pa.table(columns), left_out)


def keyed_rows(path: Path, schema: LogSchema) -> pa.Table:
    """A file of rows to predict for: identifiers in the log's type, other columns as they are (text files: numbers where all are)."""
    import pyarrow as pa

    from zoo.events.readers import open_source

    source = open_source(path)
    out = {}
    for name, values in _columns(path, source).items():
        if name in ("user_id", "item_id"):
            out[name] = _identifiers(path, name, values, schema.id_type(name), source.text)
        else:
            out[name] = _typed(values) if source.text else values
    return pa.table(out)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _columns(path: Path, source: Source) -> dict[str, Any]:
    """The whole file, an Arrow array a column; a text file's are text."""
    import pyarrow as pa

    parts: dict[str, list[Any]] = {name: [] for name in source.names}
    try:
        for chunk, _ in source.chunks(dict.fromkeys(source.names, "as it is")):
            for line in chunk.malformed:
                raise SchemaError(f"{path}: row {line.row + 1} is no row ({line.reason}): {line.text[:100]!r}; mend the file")
            for name, values in chunk.columns.items():
                parts[name].append(pa.array(values) if isinstance(values, list) else values)
        return {name: pa.concat_arrays(_alike(arrays)) for name, arrays in parts.items() if arrays}
    except (OSError, EOFError, pa.ArrowException) as error:
        raise SchemaError(f"{path} cannot be read: {error}; is the file whole?") from error


def _alike(arrays: list[Any]) -> list[Any]:
    """Arrays of one type: a piece of an NDJSON file may hold nulls only, or whole numbers only."""
    import pyarrow as pa

    types = {a.type for a in arrays if not pa.types.is_null(a.type)}
    target = types.pop() if len(types) == 1 else pa.float64() if all(map(_number, types)) and types else pa.string()
    return [a.cast(target) for a in arrays]


def _number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _identifiers(path: Path, name: str, values: Any, kind: str, text: bool) -> Any:
    """A text file's identifiers in the log's type; those of typed files are checked when the table is written."""
    import polars as pl

    if not text or kind != "int":
        return values
    whole = pl.Series(values).cast(pl.Int64, strict=False)
    bad = pl.Series(values).filter(whole.is_null() & pl.Series(values).is_not_null())
    if len(bad):
        raise SchemaError(
            f"{path}: column {name!r} holds {bad[0]!r}, which is no whole number, while the events' identifiers are; "
            "the two files must name the same things alike"
        )
    return whole.to_arrow()


def _typed(values: Any) -> Any:
    """Text -> numbers where every value is one and nothing is lost, such as a leading zero."""
    import polars as pl

    text = pl.Series(values)
    whole = text.cast(pl.Int64, strict=False)
    if whole.cast(pl.String).eq_missing(text).all():
        return whole.to_arrow()
    floats = text.cast(pl.Float64, strict=False)
    if floats.null_count() == text.null_count() and not text.str.contains(r"^0\d").any():
        return floats.to_arrow()
    return values


def _labels(name: str, values: Any) -> Any:
    """Whole numbers that are names of something, such as a category_id, as text: as amounts they would mean nothing."""
    import pyarrow as pa

    return values.cast(pa.string()) if name.endswith("_id") and pa.types.is_integer(values.type) else values


def _unfit(ours: str, values: Any, taken: Mapping[str, Any], schema: LogSchema) -> str:
    """Why a column is not kept, empty where it is."""
    import pyarrow as pa

    from zoo.events.inspection import INDEX
    from zoo.events.schema import NAME
    from zoo.events.tables import ENTITIES

    types = pa.types
    if ours in ENTITIES:
        return "it names what a row is not about; a row goes with the user whom it names when that one is forgotten"
    if INDEX.fullmatch(ours):
        return "the index of a pandas frame"
    if not NAME.match(ours) or ours in taken:
        return "its name is no plain word, or another column has it"
    if values.null_count == len(values):
        return "empty"
    if types.is_nested(values.type) or types.is_binary(values.type):
        return f"of type {values.type}"
    if types.is_timestamp(values.type) and values.type.tz is None and schema.timezone is None:
        return "times without an offset, and no --timezone"
    return ""
