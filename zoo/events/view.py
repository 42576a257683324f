"""One version of a log, opened for reading features: indexes by entity, dictionaries and entity tables. Knows no Feast."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from zoo.contract import PADDING, UNKNOWN, Array, Block, Catalogue, Column
from zoo.errors import FeatureError, choices
from zoo.events.evaluate import Evaluator, evaluate_pairs, member_sets
from zoo.events.index import FIXED, Index, fixed_point
from zoo.events.log import EventLog
from zoo.events.specs import Aggregation

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

ENTITIES = ("user_id", "item_id")
"""Entity kinds that have an index."""
_NOT_COLUMNS = {"user_id", "item_id", "event_type", "time", "seq", "event_id", "source", "row", "session", *FIXED}


@dataclass(frozen=True)
class Encoded:
    """Events as an index keeps them: codes, int64 times and fixed-point money, in the order of the table."""

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


def _sessions(values: pa.ChunkedArray) -> Array:
    """int64 by session: whole numbers as they are, other text hashed, so that a number means one session in every process."""
    import pyarrow as pa
    import pyarrow.compute as pc

    encoded = values.combine_chunks().cast(pa.string()).dictionary_encode()
    names = encoded.dictionary
    whole = pc.match_substring_regex(names, r"^-?[0-9]{1,18}$")
    numbers = np.array(pc.if_else(whole, names, "0").cast(pa.int64()))
    for i in np.flatnonzero(~np.asarray(whole)):
        digest = hashlib.blake2b(names[int(i)].as_py().encode(), digest_size=8).digest()
        numbers[i] = int.from_bytes(digest, "little", signed=True)
    found: Array = np.append(numbers, -1)[np.asarray(encoded.indices.fill_null(len(numbers)))]
    return found


def _floats(values: pa.ChunkedArray) -> Array:
    import pyarrow as pa

    return np.asarray(values.combine_chunks().cast(pa.float64()).fill_null(np.nan))


def encode(log: EventLog, table: pa.Table) -> Encoded:
    """The log's rows with dictionary codes in place of identifiers."""
    import pyarrow as pa

    users = log.dictionary("user_id").encode(table["user_id"])
    items = log.dictionary("item_id").encode(table["item_id"])
    columns: dict[str, Array] = {
        "user_id": users,
        "item_id": items,
        "event_type": log.dictionary("event_type").encode(table["event_type"]),
    }
    dictionaries = {name: name for name in columns}
    for name in FIXED:
        if name in table.column_names and table[name].null_count < len(table):
            columns[name] = fixed_point(_floats(table[name]))
    if "session" in table.column_names and log.schema.session:
        columns["session"] = _sessions(table["session"])
    for name in table.column_names:
        if name in _NOT_COLUMNS:
            continue
        if pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type):
            columns[name] = log.dictionary(f"events.{name}").encode(table[name])
            dictionaries[name] = f"events.{name}"
        else:
            columns[name] = _floats(table[name])
    return Encoded(users, items, np.asarray(table["time"]), np.asarray(table["seq"]), columns, dictionaries)


@dataclass
class LogView:
    """Reads features from one version of a log. Indexes are built once and kept under ``<root>/index``; thread-safe for reading."""

    log: EventLog
    version: int
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, root: Path | str) -> LogView:
        """The log as it is now. Raises ZooError where there is none."""
        log = EventLog.open(root)
        return cls(log, log.version())

    def _keep(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        return cast(T, self._kept[key])

    @property
    def ordered_only(self) -> bool:
        return self.log.schema.clock == "order"

    def event_types(self) -> Mapping[str, int]:
        """Code by event type."""
        dictionary = self.log.dictionary("event_type")
        return self._keep("event_types", lambda: {name: code for code, name in enumerate(dictionary.ids, start=2)})

    def facts(self, encoded: Encoded | None = None) -> dict[str, Any]:
        """What an ``Index`` over this log's events needs to know beside them."""
        return {
            "dictionaries": self._dictionaries() if encoded is None else encoded.dictionaries,
            "attributes": self.attributes(),
            "timezone": self.log.schema.timezone or "UTC",
            "ordered_only": self.ordered_only,
        }

    def _dictionaries(self) -> dict[str, str]:
        extra = {n: f"events.{n}" for n, kind in self.log.schema.extra.items() if kind == "string"}
        return {"user_id": "user_id", "item_id": "item_id", "event_type": "event_type", **extra}

    def index(self, entity: str) -> Index:
        """The index of ``user_id`` or ``item_id``, opened from disk or built and kept there."""
        if entity not in ENTITIES:
            raise FeatureError(choices("indexed entity", entity, ENTITIES))
        return self._keep(("index", entity), lambda: self._open_index(entity))

    def _open_index(self, entity: str) -> Index:
        tables = self.tables()
        name = f"{self.version}-{tables.get('items', 0)}-{entity}"
        folder = Path(self.log.root) / "index" / name
        if not (folder / "index.json").exists():
            encoded = self._keep("encoded", lambda: encode(self.log, self.log.table(self.version)))
            size = self.log.dictionary(entity).size
            columns = {k: v for k, v in encoded.columns.items() if k != entity}
            index = Index.build(encoded.keys(entity), encoded.time, encoded.seq, columns, size, **self.facts(encoded))
            index.save(folder)
            self._kept.pop("encoded", None) if entity == "item_id" else None
        return Index.open(folder)

    def evaluator(self, entity: str) -> Evaluator:
        """Computes features of an entity kind; kept, so that filtered events and prefix sums are shared by all calls."""
        return self._keep(("evaluator", entity), lambda: Evaluator(self.index(entity), self.event_types()))

    def attributes(self) -> dict[str, tuple[Array, str | None]]:
        """``items.COLUMN`` -> (values by item code, dictionary)."""
        items = self.block("items") if "items" in self.tables() else {}
        return {f"items.{name}": (c.values, c.dictionary) for name, c in items.items()}

    def codes(self, entity: str, ids: Any) -> Array:
        """int32 (n,): codes of raw identifiers; 1 where the log does not know one. Raises UnknownIdError on a wrong type."""
        import pyarrow as pa

        values = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids)
        if entity in ENTITIES:
            return self.log.dictionary(entity).encode(values)
        keys = self._partner_keys(entity)
        found = np.asarray(values.to_pylist(), dtype=object if keys.dtype == object else keys.dtype)
        at = np.searchsorted(keys, found)
        hit = keys[np.minimum(at, len(keys) - 1)] == found if len(keys) else np.zeros(len(found), bool)
        return np.where(hit, at + 2, UNKNOWN).astype(np.int32)

    def _partner_keys(self, entity: str) -> Array:
        """Sorted identifiers of an entity that has a table of its own (``campaign_id`` in ``campaigns``)."""

        def make() -> Array:
            for name in self.tables():
                table = self.log.read_table(name)
                if table.column_names[0] == entity and len(table[entity].unique()) == len(table):
                    values = table[entity].to_pylist()
                    return np.array(sorted(values), dtype=object if isinstance(values[0], str) else np.int64)
            raise FeatureError(
                f"no entity table has the key {entity!r}; tables: {', '.join(sorted(self.tables())) or '(none)'}. "
                f"Write one whose first column is {entity!r}"
            )

        return self._keep(("keys", entity), make)

    def block(self, name: str) -> Block:
        """An entity table's columns by code (row 0 padding, 1 unknown): text as codes, numbers as float64 with NaN for null."""
        return self._keep(("block", name), lambda: self._block(name))

    def _block(self, name: str) -> Block:
        import pyarrow as pa

        if name not in self.tables():
            raise FeatureError(choices("entity table", name, self.tables()))
        table = self.log.read_table(name)
        key = table.column_names[0]
        codes = self.codes(key, table[key])
        size = self.log.dictionary(key).size if key in ENTITIES else len(table) + 2
        out: dict[str, Column] = {}
        for column in table.column_names[1:]:
            values = table[column]
            if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
                stored = np.zeros(size, np.int32)
                stored[1] = UNKNOWN
                stored[codes] = self.log.dictionary(f"{name}.{column}").encode(values)
                out[column] = Column(stored, dictionary=f"{name}.{column}")
            elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type):
                numbers = np.full(size, np.nan)
                numbers[codes] = _floats(values)
                out[column] = Column(numbers)
        return out

    def members(self, name: str, key: str, via: str) -> tuple[Array, Array]:
        """(offsets by partner code, sorted codes) of a set table, its items mapped to ``via``."""

        def make() -> tuple[Array, Array]:
            table = self.log.read_table(name)
            partners = self.codes(key, table[key])
            items = self.codes("item_id", table["item_id"])
            if via != "item_id":
                values, _ = self.attributes()[via]
                items = values[np.minimum(items, len(values) - 1)]
            return member_sets(partners, items, len(self._partner_keys(key)) + 2)

        return self._keep(("members", name, key, via), make)

    def evaluate(
        self, aggregation: Aggregation, keys: Mapping[str, Array], times: Array, evaluator: Evaluator | None = None
    ) -> dict[str, Column]:
        """Columns of an aggregation for n rows, given codes (n,) by entity and times int64 (n,).

        evaluator: over other events than the whole log's (an online store's); its entity codes are then those in ``keys``.
        """
        first = aggregation.entity[0]
        evaluator = evaluator or self.evaluator(first)
        if len(aggregation.entity) == 1:
            return evaluator.evaluate(aggregation, keys[first], times)
        second = aggregation.entity[1]
        sets = None
        if aggregation.members:
            vias = {f.via or "item_id" for f in aggregation.features}
            sets = {via: self.members(aggregation.members, second, via) for via in vias}
        return evaluate_pairs(evaluator, aggregation, keys[first], keys[second], times, sets)

    def names(self, dictionary: str) -> Array:
        """object (size,): display text by code; the item table's ``title`` stands for an item."""
        return self._keep(("names", dictionary), lambda: self._names(dictionary))

    def _names(self, dictionary: str) -> Array:
        ids = self.log.dictionary(dictionary).ids
        out = np.empty(len(ids) + 2, object)
        out[PADDING], out[UNKNOWN] = "", "unknown"
        out[2:] = [str(v) for v in (ids.to_pylist() if hasattr(ids, "to_pylist") else ids)]
        if dictionary == "item_id" and "items" in self.tables():
            titles = self.block("items").get("title")
            if titles is not None:
                known = titles.values > UNKNOWN
                out[known] = self.names("items.title")[titles.values[known]]
        return out

    def tables(self) -> dict[str, int]:
        """Version by name of the tables beside the log."""
        return self._keep("tables", self.log.tables)

    def catalogue(self, dictionaries: frozenset[str]) -> Catalogue:
        """What the codes of these dictionaries mean, with the item table. The same object for the same version and dictionaries."""
        return self._keep(("catalogue", dictionaries), lambda: self._catalogue(dictionaries))

    def _catalogue(self, dictionaries: Iterable[str]) -> Catalogue:
        wanted = {d: self.names(d) for d in sorted({*dictionaries, "item_id"})}
        items = dict(self.block("items")) if "items" in self.tables() else {}
        return Catalogue(wanted, {k: c for k, c in items.items() if c.dictionary is None or c.dictionary in wanted})
