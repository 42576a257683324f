"""What the codes and tables of a log mean: identifiers, the entity tables beside it, and the catalogue of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np

from zoo.contract import PADDING, UNKNOWN, Array, Block, Catalogue, gather
from zoo.errors import FeatureError, choices
from zoo.events.attributes import ALWAYS, VALID_FROM, Attribute, EntityTable, Validity, looked_up
from zoo.events.dictionary import FIRST, Dictionary, as_ids
from zoo.events.encode import floats
from zoo.events.log import EventLog
from zoo.events.pairs import member_sets
from zoo.events.tables import ENTITIES

T = TypeVar("T")


class Meanings:
    """The part of ``LogView`` that reads no event. Each answer is made once for the tables' versions and kept; thread-safe.

    _tables: version by name. _kept: answers by what was asked. _lock: held while one is made.
    """

    log: EventLog
    _tables: Mapping[str, int]
    _kept: dict[Any, Any]
    _lock: Any

    def _keep(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        if key not in self._kept:
            with self._lock:
                if key not in self._kept:
                    self._kept[key] = make()
        return cast(T, self._kept[key])

    def tables(self) -> Mapping[str, int]:
        """Version by name of the tables beside the log."""
        return self._tables

    @property
    def ordered_only(self) -> bool:
        return self.log.schema.clock == "order"

    def facts(self) -> Mapping[str, Any]:
        """What an ``Index`` over this log's events needs to know beside them."""
        return self._keep(("facts",), self._facts)

    def _facts(self) -> dict[str, Any]:
        extra = {n: f"events.{n}" for n, kind in self.log.schema.extra.items() if kind == "string"}
        return {
            "dictionaries": {"user_id": "user_id", "item_id": "item_id", "event_type": "event_type", **extra},
            "attributes": self.attributes(),
            "timezone": self.log.schema.timezone or "UTC",
            "ordered_only": self.ordered_only,
        }

    # Events

    def codes(self, entity: str, ids: Any) -> Array:
        """int32 (n,): codes of raw identifiers; 1 where the log does not know one, 0 for null. Raises UnknownIdError on a wrong type."""
        if entity in ENTITIES:
            return self.dictionary(entity).encode(ids)
        named = self._partner_dictionary(entity)
        if named is not None:
            return self.log.dictionary(named).encode(ids)
        keys = self._partner_keys(entity)
        text = keys.dtype == object
        values = as_ids(ids, "string" if text else "int", entity)
        found = np.asarray(values.fill_null("" if text else 0), dtype=keys.dtype)
        at = np.searchsorted(keys, found)
        hit = keys[np.minimum(at, len(keys) - 1)] == found if len(keys) else np.zeros(len(found), bool)
        codes = np.where(hit, at + FIRST, UNKNOWN).astype(np.int32)
        if values.null_count:
            codes[np.asarray(values.is_null())] = PADDING
        return codes

    def dictionary(self, entity: str) -> Dictionary:
        """The identifiers of ``user_id``, ``item_id`` or a text column, at least those of the view's events and tables."""
        return self._keep(("dictionary", entity), lambda: self.log.dictionary(entity))

    def size(self, entity: str) -> int:
        """Number of an entity kind's codes, padding and unknown included."""
        named = entity if entity in ENTITIES else self._partner_dictionary(entity)
        return self.log.dictionary(named).size if named is not None else len(self._partner_keys(entity)) + FIRST

    def ids(self, entity: str, codes: Array) -> Any:
        """Arrow array (n,) of identifiers, the inverse of ``codes``; null for 0 and 1."""
        if entity in ENTITIES:
            return self.log.dictionary(entity).decode(codes)
        named = self._partner_dictionary(entity)
        if named is not None:
            return self.log.dictionary(named).decode(codes)
        import pyarrow as pa

        return pa.array(self._partner_keys(entity)).take(pa.array(codes.astype(np.int64) - FIRST, mask=codes < FIRST))

    def _partner_keys(self, entity: str) -> Array:
        """Sorted identifiers of an entity that has a table of its own (``campaign_id`` in ``campaigns``)."""
        keys = self._table_keys(entity)
        if keys is None:
            raise FeatureError(
                f"no entity table has the key {entity!r}; tables: {', '.join(sorted(self.tables())) or '(none)'}. "
                f"Write one whose first column is {entity!r}, or name a text column of the events or items"
            )
        return keys

    def _partner_dictionary(self, entity: str) -> str | None:
        """The dictionary of an entity without a table, which events or their items name in a text column (``category``)."""

        def make() -> str | None:
            if self._table_keys(entity) is not None:
                return None
            facts = self.facts()
            items = facts["attributes"].get(f"items.{entity}")
            found: str | None = facts["dictionaries"].get(entity) or (items.dictionary if items else None)
            return found

        return self._keep(("keys", entity, "dictionary"), make)

    def _table_keys(self, entity: str) -> Array | None:
        def make() -> Array | None:
            for name in self.tables():
                table = self.log.read_table(name, self._tables[name])
                values = set(table[entity].to_pylist()) if table.column_names[0] == entity else set()
                if values and (len(values) == len(table) or VALID_FROM in table.column_names):
                    text = any(isinstance(value, str) for value in values)
                    return np.array(sorted(values), dtype=object if text else np.int64)
            return None

        return self._keep(("keys", entity), make)

    def block(self, name: str) -> Block:
        """An entity table's columns by code (row 0 padding, 1 unknown): text as codes, numbers as float64 with NaN for null.

        A code given after the table was read is beyond its rows and counts as row 0 (``looked_up``). Of a table that says from
        when its rows hold (``valid_from``), each key's newest.
        """
        return self.entity_table(name).block

    def key_of(self, name: str) -> str:
        """The key column of an entity table."""
        return self.entity_table(name).key

    def entity_table(self, name: str) -> EntityTable:
        """A table beside the log with a key of its own; FeatureError where there is none of that name."""
        return self._keep(("block", name), lambda: self._entity_table(name))

    def _entity_table(self, name: str) -> EntityTable:
        import pyarrow as pa

        if name not in self.tables():
            raise FeatureError(choices("entity table", name, self.tables()))
        table = self.log.read_table(name, self._tables[name])
        key = table.column_names[0]
        codes = self.codes(key, table[key])
        size = self.log.dictionary(key).size if key in ENTITIES else len(table) + FIRST
        validity = None
        if VALID_FROM in table.column_names:
            since = np.asarray(table[VALID_FROM].cast(pa.int64()).fill_null(ALWAYS))
            validity, order = Validity.of(codes, since, size)
        out: dict[str, Attribute] = {}
        for column in table.column_names[1:]:
            values = table[column]
            dictionary = None
            if pa.types.is_list(values.type):
                rows = np.full(size, -1, np.int64)
                rows[codes] = np.arange(len(table))
                out[column] = _lists(values.combine_chunks(), rows if validity is None else np.append(order, -1), validity)
                continue
            if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
                dictionary = f"{name}.{column}"
                read, nothing = self.log.dictionary(dictionary).encode(values), np.zeros(size, np.int32)
                nothing[1] = UNKNOWN
            elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type):
                read, nothing = floats(values), np.full(size, np.nan)
            else:
                continue
            if validity is None:
                nothing[codes] = read
                out[column] = Attribute(nothing, dictionary)
            else:
                out[column] = Attribute(np.append(read[order], nothing[0]), dictionary, validity)
        present = np.zeros(size, bool)
        present[codes] = True
        there = Attribute(present if validity is None else np.arange(len(table) + 1) < len(table), None, validity)
        return EntityTable(key, out, {name: each.newest() for name, each in out.items() if each.offsets is None}, there)

    def attributes(self) -> dict[str, Attribute]:
        """``items.COLUMN`` -> attribute by item code."""
        items = self.entity_table("items").attributes if "items" in self.tables() else {}
        return {f"items.{name}": attribute for name, attribute in items.items() if attribute.offsets is None}

    def members(self, name: str, key: str, via: str) -> Array:
        """The sets of a set table, its items mapped to ``via``, as ``member_sets`` gives them."""

        def make() -> Array:
            table = self.log.read_table(name, self._tables[name])
            partners = self.codes(key, table[key])
            items = self.codes("item_id", table["item_id"])
            if via != "item_id":
                items = looked_up(self.attributes()[via].newest().values, items)
            return member_sets(partners, items)

        return self._keep(("members", name, key, via), make)

    # Meanings

    def names(self, dictionary: str) -> Array:
        """object (size,): display text by code; the item table's ``title`` stands for an item."""
        held: Array | None = self._kept.get(("names", dictionary))
        found = self.log.dictionary(dictionary)
        if held is None or len(held) < found.size:  # a dictionary only grows
            self._kept["names", dictionary] = held = self._names(dictionary, found.ids, held)
        return held

    def _names(self, dictionary: str, ids: list[Any], held: Array | None) -> Array:
        out = np.empty(len(ids) + FIRST, object)
        start = FIRST if held is None else len(held)
        if held is None:
            out[PADDING], out[UNKNOWN] = "", "unknown"
        else:
            out[:start] = held
        out[start:] = [str(v) for v in ids[start - FIRST :]]
        titles = self.block("items").get("title") if dictionary == "item_id" and "items" in self.tables() else None
        if titles is not None:
            known = np.flatnonzero(titles.values[: len(out)] > UNKNOWN)
            out[known] = self.names("items.title")[titles.values[known]]
        return out

    def catalogue(self, dictionaries: frozenset[str]) -> Catalogue:
        """What the codes of these dictionaries mean, with the item table. The same object for the same version and dictionaries."""
        return self._keep(("catalogue", dictionaries), lambda: self._catalogue(dictionaries))

    def item_dictionaries(self) -> frozenset[str]:
        """Dictionaries of the item table's columns, which put all of the table into a catalogue."""
        items = self.block("items") if "items" in self.tables() else {}
        return frozenset(column.dictionary for column in items.values() if column.dictionary is not None)

    def _catalogue(self, dictionaries: frozenset[str]) -> Catalogue:
        wanted = {d: self.names(d) for d in sorted({*dictionaries, "item_id"})}
        codes = np.arange(len(wanted["item_id"]))
        items = self.block("items") if "items" in self.tables() else {}
        shown = {k: c for k, c in items.items() if c.dictionary is None or c.dictionary in wanted}
        return Catalogue(wanted, {k: replace(c, values=looked_up(c.values, codes)) for k, c in shown.items()})


def _lists(values: Any, rows: Array, validity: Validity | None) -> Attribute:
    """A column of lists, an Arrow array, at these of its rows; -1 is an empty list."""
    import pyarrow.compute as pc

    lengths = np.append(np.asarray(pc.list_value_length(values).fill_null(0)), 0).astype(np.int64)
    flat = np.asarray(values.flatten().fill_null(np.nan))
    start = np.cumsum(lengths) - lengths
    found, offsets = gather(flat, start[rows], lengths[rows])
    return Attribute(found, None, validity, offsets)
