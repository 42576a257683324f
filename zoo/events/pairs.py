"""Features of pairs, such as a user and a campaign: those of the user's events that concern the partner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from zoo.contract import UNKNOWN, Array, Column
from zoo.events.evaluate import Evaluator
from zoo.events.index import Gathered, Index
from zoo.events.slices import MICROSECONDS, Slices, chunks, joined
from zoo.events.specs import OF_STEPS, Aggregation, Feature


def evaluate_pairs(
    evaluator: Evaluator,
    aggregation: Aggregation,
    codes: Array,
    partners: Array,
    times: Array,
    members: Mapping[str, Array] | None,
    carried: Array | None = None,
) -> dict[str, Column]:
    """Columns of a pair aggregation for n rows: a pair's events make an index of their own, which is evaluated like any other.

    codes: int32 (n,) of the user; partners: int32 (n,) of the second entity. members: ``via`` -> the partners' sets
    (``member_sets``); None: the user's events whose ``carried`` int32 (m,), the partner that each names, is the row's.
    """
    evaluator.check(aggregation)
    low, stop = evaluator.seen(aggregation, codes, times)
    groups: dict[str, list[Feature]] = {}
    for f in aggregation.features:
        groups.setdefault("" if members is None else f.via or "item_id", []).append(f)
    parts = []
    for rows in chunks(stop - low):
        found: dict[str, Column] = {}
        for via, features in groups.items():
            named = evaluator.index.column(via) if carried is None else carried
            sets = None if members is None else members[via]
            begin = low[rows]
            window = _widest(features)
            if window is not None:
                begin = evaluator.index.search(begin, stop[rows], times[rows] - window * MICROSECONDS)
            own = _matching(evaluator.index, Slices(begin, stop[rows]), partners[rows], named, sets)
            part = replace(aggregation, features=tuple(features))
            found |= evaluator.over(own).columns(part, own.offsets[:-1], own.offsets[1:], times[rows])
        parts.append({f.name: found[f.name] for f in aggregation.features})
    return joined(parts)


def _widest(features: list[Feature]) -> int | None:
    """Seconds that the features look back together; None: all history, as where a gap may reach back before the window."""
    windows = [None if f.kind == "decay" or f.step == "visit" or f.column in OF_STEPS else f.window for f in features]
    return None if None in windows else max(window for window in windows if window is not None)


def _matching(index: Index, slices: Slices, partners: Array, named: Array, sets: Array | None) -> Index:
    """An index of the events of each row's slice that concern its partner; row i is entity i."""
    positions, rows = slices.positions, slices.rows
    found, wanted = named[positions], partners[rows]
    # an unknown partner has no events, not those that name none
    match = (found == wanted) & (wanted > UNKNOWN) if sets is None else _contains(sets, _pairs(wanted, found))
    kept = positions[match]
    offsets = np.concatenate(([0], np.cumsum(slices.count(match))))
    columns = Gathered(index.columns, kept)
    return replace(index, offsets=offsets, time=index.time[kept], seq=index.seq[kept], columns=columns, _derived={})


def _pairs(partners: Array, codes: Array) -> Array:
    """int64: one number a (partner, code)."""
    return partners.astype(np.int64) << 32 | codes


def member_sets(partners: Array, codes: Array) -> Array:
    """int64 (k,), sorted: the distinct pairs of a partner and a member of its set, codes int32 (n,) each; unknown ones are left out."""
    known = (partners > UNKNOWN) & (codes > UNKNOWN)
    return np.unique(_pairs(partners[known], codes[known]))


def _contains(members: Array, pairs: Array) -> Array:
    """bool (m,): which pairs are among the members."""
    if not len(members):
        return np.zeros(len(pairs), bool)
    found: Array = members[np.minimum(np.searchsorted(members, pairs), len(members) - 1)] == pairs
    return found
