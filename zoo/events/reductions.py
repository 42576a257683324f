"""One number a row from the steps of its window: sums, means, extremes, spreads, and how the steps lie in time."""

from __future__ import annotations

import numpy as np

from zoo.contract import Array
from zoo.events.slices import Slices, or_zero
from zoo.events.specs import OF_STEPS, Feature
from zoo.events.steps import Steps, average, divided, total


def reduced(f: Feature, steps: Steps) -> Array:
    """float64 (n,): sum, mean, min, max or std of a column over each row's steps; missing values are left out."""
    rows = steps.picked
    assert isinstance(rows, Slices)
    if f.kind in ("sum", "mean") and steps.gap is None and f.column not in OF_STEPS:
        return total(f.column, steps.events, rows) if f.kind == "sum" else average(f.column, steps.events, rows)
    values = steps.numbers(f.column, f.of)
    if f.kind in ("min", "max"):
        return rows.reduced(np.fmin if f.kind == "min" else np.fmax, values)
    there = ~np.isnan(values)
    sums, number = rows.sum(or_zero(values)), rows.count(there)
    if f.kind == "sum":
        return sums
    means = divided(sums, number)
    if f.kind == "mean":
        return means
    # population, in two passes, with the rounding of the mean taken out again (Chan, Golub, LeVeque 1983, eq. 1.7)
    away = np.where(there, values - np.repeat(means, rows.lengths), 0.0)
    squares = rows.sum(away * away) - divided(rows.sum(away) ** 2, number, 0.0)
    return np.sqrt(np.maximum(divided(squares, number), 0.0))


def amount(f: Feature, steps: Steps) -> Array:
    """float64 (n,): how many steps a row has, or the sum of a feature's column over them."""
    if not f.column and f.of == "first":
        return steps.picked.lengths.astype(np.float64)
    if steps.gap is None and f.column not in OF_STEPS:
        assert isinstance(steps.picked, Slices)
        return total(f.column, steps.events, steps.picked)
    return steps.picked.sum(or_zero(steps.numbers(f.column, f.of)))


def share(f: Feature, above: Steps, below: Steps) -> Array:
    """float64 (n,): a smoothed ratio."""
    otherwise = np.nan if f.otherwise is None else f.otherwise
    return divided(amount(f, above) + f.smoothing * f.prior, amount(f, below) + f.smoothing, otherwise)


def decay(f: Feature, steps: Steps) -> Array:
    """float64 (n,): steps, or values of a column, each counting half as much for every half-life of its age."""
    weights = np.exp2(-steps.ages() / float(f.window or 1))
    if f.column or f.of != "first":
        weights = weights * or_zero(steps.numbers(f.column, f.of))
    return steps.picked.sum(weights)


def quietness(f: Feature, steps: Steps) -> Array:
    """float64 (n,): ``quiet`` or ``survival``, from the waits between steps, the present one until t among them."""
    rows, wait, horizon = steps.picked, steps.waits(), float(f.horizon or 0)
    if f.kind == "quiet":
        return divided(rows.sum(np.maximum(wait - horizon, 0)), rows.sum(wait))
    some = rows.lengths > 0
    ends = rows.offsets[1:][some] - 1
    newest = np.zeros(len(rows))
    newest[some] = wait[ends]
    present = np.repeat(newest, rows.lengths)
    past = np.ones(len(wait), bool)
    past[ends] = False
    longer, lasted = rows.count(past & (wait >= present)), rows.count(past & (wait >= present + horizon))
    return np.where(some, (lasted + 1) / (longer + 4), np.nan)
