"""Whether the online store answers as the log does: entities drawn at random, the same instant, every feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from zoo.contract import Array, Column
from zoo.errors import FeatureError, UsageError
from zoo.events.dictionary import FIRST
from zoo.features import Features

TOLERANCE = 1e-9
"""Relative difference of floats that counts as none: sums of floats may be added in another order."""
LOOKS = 3
"""Times that rows which differ are read again where events came meanwhile: one may have come between the two answers."""


@dataclass(frozen=True)
class Drift:
    """A feature whose online answers differ from the log's. rows: how many; example: the keys of one; online, log: its values."""

    service: str
    feature: str
    rows: int
    example: dict[str, Any]
    online: Any
    log: Any


def drift(features: Features, service: str, entities: int = 100, seed: int = 0) -> tuple[int, list[Drift]]:
    """(rows compared, features that differ) for rows of random keys, as of now. Events may be pushed meanwhile.

    Raises UsageError for an unknown service or no entities.
    """
    if entities < 1:
        raise UsageError(f"{entities} entities to compare; expected at least 1")
    view, rng = features.reader.view(), np.random.default_rng(seed)
    joins = {column: key for each, _ in features.views(service) for key, column in _joins(each).items()}
    sizes = {key: view.size(key) for key in set(joins.values())}
    number = 0 if min(sizes.values(), default=0) <= FIRST else entities
    rows = {column: view.ids(key, rng.integers(FIRST, max(sizes[key], FIRST + 1), number)) for column, key in joins.items()}
    for _ in range(LOOKS):
        now, count = features.reader.now(), features.reader.log.count()
        online = features.online(service, rows, now)
        log = features.history(service, {**rows, "time": np.full(len(online), now)})
        differ = {name: _differ(online.column(name), log.column(name)) for name in log.names}
        again = pa.array(np.logical_or.reduce([*differ.values(), np.zeros(len(online), bool)]))
        if not again.true_count or features.reader.log.count() == count:
            break
        rows = {column: values.filter(again) for column, values in rows.items()}
    found = []
    for name, rows_of in differ.items():
        if rows_of.any():
            at = int(np.flatnonzero(rows_of)[0])
            example = {column: values[at].as_py() for column, values in rows.items()}
            shown = _shown(online.column(name), at), _shown(log.column(name), at)
            found.append(Drift(service, name, int(rows_of.sum()), example, *shown))
    return number, found


def foreign(features: Features, service: str) -> list[str]:
    """Views of a service that are not computed from the log, such as those of files: there is nothing to compare them with."""
    from zoo.stores.columns import source_of

    out = []
    for view, _ in features.views(service):
        try:
            source_of(view)
        except FeatureError:
            out.append(view.name)
    return out


def _joins(feature_view: Any) -> dict[str, str]:
    from zoo.stores.columns import join_columns

    return join_columns(feature_view)


def _differ(ours: Column, theirs: Column) -> Array:
    """bool (n,): rows whose values are not the same."""
    if theirs.offsets is None:
        return np.logical_not(_equal(ours.values, theirs.values))
    assert ours.offsets is not None
    out: Array = ours.lengths != theirs.lengths
    same = np.flatnonzero(~out)
    a, b = ours.take(same), theirs.take(same)
    rows = np.repeat(same, b.lengths)
    out[rows[~_equal(a.values, b.values)]] = True
    return out


def _equal(a: Array, b: Array) -> Array:
    if b.dtype.kind != "f":
        return np.equal(a, b)
    same: Array = np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    return same


def _shown(column: Column, row: int) -> Any:
    if column.offsets is None:
        return column.values[row].item()
    return column.values[column.offsets[row] : column.offsets[row + 1]].tolist()
