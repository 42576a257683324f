"""Forward-chaining folds in time: a model scores a block only after training on labels that were known before the block began."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from zoo.errors import UsageError
from zoo.plugin import Array, TrainingData, hookimpl


def forward_chaining(time: Array, known_at: Array, count: int) -> list[tuple[Array, Array]]:
    """Pairs (training rows, scored rows), int64 and ascending, for ``count`` consecutive blocks of time.

    time, known_at: int64 (n,), microseconds UTC, in any order. Rows of one instant stay in one block. A row trains a block when
    it was drawn before the block's first instant and its label was known by then. Before the first scored block lie at least a
    third of the rows with known labels where the instants allow it, so that the first model has enough to learn from; those rows
    have no honest score. The scored blocks hold about as many rows each.

    Raises UsageError when there are too few instants.
    """
    if count < 1:
        raise UsageError(f"{count} folds asked for; expected at least 1")
    if len(time) != len(known_at):
        raise UsageError(f"{len(time)} times and {len(known_at)} known_at; expected one of each for every row")
    instants, rows_at = np.unique(time, return_counts=True)
    usable_from = np.sort(np.maximum(known_at, time + 1))
    trainable = np.searchsorted(usable_from, instants, side="right")
    first, last = int(np.searchsorted(trainable, 1)), len(instants) - count
    if first > last:
        raise UsageError(
            f"{count} forward-chaining folds need {count} instants after the first label is known; the rows have "
            f"{len(instants)} distinct instants, {max(0, len(instants) - first)} of them after that; "
            "draw rows at more instants, over a longer time, or ask for fewer folds"
        )
    enough = int(np.searchsorted(trainable, len(time) * max(1 / 3, 1 / (count + 1))))
    start = min(max(first, enough), last)
    bounds = [*_even_blocks(rows_at[start:], count) + start, len(instants)]
    # The last bound is open: it only has to lie beyond every time.
    edges = [*instants[bounds[:-1]], instants[-1] + 1]
    return [
        (
            np.flatnonzero((time < begin) & (known_at <= begin)),
            np.flatnonzero((time >= begin) & (time < end)),
        )
        for begin, end in pairwise(edges)
    ]


def _even_blocks(sizes: Array, count: int) -> Array:
    """Starts of ``count`` runs of about equal total size, each of at least one element."""
    before = np.cumsum(sizes) - sizes
    starts: Array = np.abs(before[None, :] - (np.arange(count) * sizes.sum() / count)[:, None]).argmin(axis=1)
    for k in range(1, count):
        starts[k] = max(starts[k], starts[k - 1] + 1)
    latest: Array = len(sizes) - count + np.arange(count)
    return np.minimum(starts, latest)


@hookimpl(trylast=True)
def zoo_folds(data: TrainingData, known_at: Array, count: int) -> Sequence[tuple[Array, Array]]:
    """The default of the hook: forward-chaining folds, which draw nothing and so need no seed."""
    return forward_chaining(data.time, known_at, count)
