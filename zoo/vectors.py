"""Vectors of items as features: what a member of a recommender learnt of each, in an entity table beside the log that Feast reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import UsageError, choices
from zoo.events.attributes import VALID_FROM
from zoo.events.dictionary import FIRST
from zoo.plugin import Array, EncodesItems, FeatureBatch
from zoo.recommender import Recommender
from zoo.tasks.recommendation import DEFAULTS
from zoo.tasks.settings import instant
from zoo.vocabulary import ITEMS

if TYPE_CHECKING:
    import pyarrow as pa

    from zoo.events.view import LogView
    from zoo.features import Features
    from zoo.registry import Version

VECTOR, MODEL = "vector", "model"
"""Columns of the table: a list of float32, and the version and member that it is of."""


@dataclass(frozen=True)
class Written:
    """What ``write`` did. valid_from: microseconds UTC, None for a log of positions."""

    member: str
    items: int
    width: int
    valid_from: int | None


def write(
    version: Version, recommender: Any, features: Features, table: str = "item_vectors", member: str | None = None
) -> Written:
    """Put the vectors of every item that a member can score into an entity table, in place of what it held.

    The table has a row an item: ``item_id``, ``vector``, ``model`` and, where the log has times, ``valid_from``: the instant from which on
    the model has learnt of no event, so that no row of history sees a vector that knows what came later. That is the start of the test,
    and of the protocol ``leave_one_out``, where users' times overlap, the end of the log. Raises UsageError where no member has vectors.
    """
    chosen, fitted = _encoder(version, recommender, member)
    view = features.reader.view()
    catalogue = view.catalogue(frozenset(recommender.vocabulary.kept) | view.item_dictionaries())
    vocabulary = recommender.known(catalogue)
    none = np.zeros(0, np.int64)
    seen = vocabulary.apply(FeatureBatch({}, {}, none, none, catalogue)).catalogue
    codes = np.flatnonzero(fitted.scorable(seen))
    codes = codes[codes >= FIRST]
    vectors = np.asarray(fitted.item_vectors(seen)[codes], np.float32)
    since = None if view.ordered_only else _unseen_from(version, view)
    ids = view.ids(ITEMS, vocabulary.log_codes(ITEMS, codes))
    features.reader.log.put_table(table, _table(ids, vectors, f"{version.reference}/{chosen}", since))
    return Written(chosen, len(codes), vectors.shape[1], since)


def readers(features: Features, table: str) -> tuple[str, ...]:
    """Names of the applied feature views that read an entity table."""
    from zoo.stores import TableSource

    views = features.store.list_feature_views()
    return tuple(sorted(v.name for v in views if isinstance(v.batch_source, TableSource) and v.batch_source.table == table))


def _encoder(version: Version, recommender: Any, member: str | None) -> tuple[str, EncodesItems]:
    members = recommender.members if isinstance(recommender, Recommender) else ()
    able = {each.name: each.fitted for each in members if isinstance(each.fitted, EncodesItems)}
    if not able:
        raise UsageError(
            f"no member of {version.reference} has vectors of items (it has: {', '.join(m.name for m in members) or 'none that ranks'}); "
            "one that reads their texts has: train bert with ranking.mode = 'text'"
        )
    if member is None and len(able) > 1:
        raise UsageError(f"several members of {version.reference} have vectors of items; name one of: {', '.join(able)}")
    name = next(iter(able)) if member is None else member
    if name not in able:
        raise UsageError(choices("member with vectors of items", name, able))
    return name, able[name]


def _unseen_from(version: Version, view: LogView) -> int:
    """The instant from which on a version has learnt of no event, microseconds UTC."""
    if version.lineage["settings"].get("protocol", DEFAULTS["protocol"]) == "leave_one_out":
        return (view.end or 0) + 1
    return instant(version.metrics["test"][0])


def _table(ids: Any, vectors: Array, model: str, since: int | None) -> pa.Table:
    import pyarrow as pa

    most = np.iinfo(np.int32).max
    if vectors.size > most:
        raise UsageError(
            f"{len(vectors):,} vectors of {vectors.shape[1]} numbers are more than a column of lists holds, {most:,} numbers in all; "
            "train a member with a smaller width"
        )
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
    columns = {
        ITEMS: ids,
        VECTOR: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(vectors.ravel())),
        MODEL: pa.array([model] * len(vectors)),
    }
    if since is not None:
        columns[VALID_FROM] = pa.array(np.full(len(vectors), since), pa.timestamp("us", "UTC"))
    return pa.table(columns)
