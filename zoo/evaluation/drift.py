"""How far the test rows are from the training rows, column by column."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.evaluation.columns import single
from zoo.plugin import Array, Column, FeatureBatch

BINS = 10
LISTED = 60
"""Columns that a record keeps, the ones that moved most."""
SAMPLE = 100_000
"""Rows of each side that are looked at, at most."""
LEAST = 1e-4
"""A bin's share counts as at least this, so that an empty one does not weigh without bound."""


def drift(train: FeatureBatch, test: FeatureBatch) -> dict[str, dict[str, Any]]:
    """Column -> ``psi``, ``ks`` and the share of ``missing`` values in training and in the test, the largest PSI first; JSON-ready.

    psi: population stability index over ten bins of equal mass in training, or the most frequent codes, and one for missing values;
    by custom below 0.1 is little and above 0.25 much. ks: the largest difference between the two distribution functions (Kolmogorov
    and Smirnov), of codes half the sum of the shares' differences. Sequences as in ``columns.single``.
    """
    a, b = (single(_sample(batch)) for batch in (train, test))
    found = {name: _moved(a[name], b[name]) for name in a if name in b and len(a[name]) and len(b[name])}
    return dict(sorted(found.items(), key=lambda each: -each[1]["psi"])[:LISTED])


def _sample(batch: FeatureBatch) -> FeatureBatch:
    if len(batch) <= SAMPLE:
        return batch
    return batch.take(np.sort(np.random.default_rng(0).permutation(len(batch))[:SAMPLE]))


def _moved(train: Column, test: Column) -> dict[str, Any]:
    if train.is_code:
        codes = np.concatenate([train.values, test.values])
        counts = np.bincount(train.values, minlength=int(codes.max(initial=0)) + 1)
        kept = np.argsort(-counts, kind="stable")[: 2 * BINS]
        place = np.full(len(counts), len(kept))
        place[kept] = np.arange(len(kept))
        shares = [_shares(place[each.values], len(kept) + 1) for each in (train, test)]
        missing = [float((each.values == 0).mean()) for each in (train, test)]
        return {"psi": _psi(*shares), "ks": float(np.abs(shares[0] - shares[1]).sum() / 2), "missing": missing}
    known = [np.sort(each.values[~np.isnan(each.values)]) for each in (train, test)]
    edges = np.unique(np.quantile(known[0], np.arange(1, BINS) / BINS)) if len(known[0]) else np.zeros(0)
    shares = []
    for each in (train, test):
        place = np.where(np.isnan(each.values), len(edges) + 1, np.searchsorted(edges, each.values, side="left"))
        shares.append(_shares(place, len(edges) + 2))
    missing = [float(np.isnan(each.values).mean()) for each in (train, test)]
    return {"psi": _psi(*shares), "ks": _ks(*known), "missing": missing}


def _shares(place: Array, size: int) -> Array:
    found: Array = np.bincount(place, minlength=size) / max(1, len(place))
    return found


def _psi(a: Array, b: Array) -> float:
    a, b = np.maximum(a, LEAST), np.maximum(b, LEAST)
    return float(((a - b) * np.log(a / b)).sum())


def _ks(a: Array, b: Array) -> float:
    """Of sorted values."""
    if not len(a) or not len(b):
        return 0.0 if len(a) == len(b) else 1.0
    both = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, both, side="right") / len(a) - np.searchsorted(b, both, side="right") / len(b)).max())
