"""Sequence features: the steps of each row that a sequence shows, oldest first."""

from __future__ import annotations

import numpy as np

from zoo.contract import Array, Column
from zoo.events.filtered import FilteredEvents
from zoo.events.slices import Picked, Slices
from zoo.events.specs import Feature
from zoo.events.steps import Steps


def picked(f: Feature, steps: Steps) -> Picked:
    """The steps that a sequence feature shows; ``steps`` are those of its window."""
    window = steps.picked
    assert isinstance(window, Slices)
    if f.kind == "last_n":
        return window.newest(f.n)
    return window.oldest(f.n) if f.kind == "first_n" else newest_different(f.by, f.n, steps.events, window)


def sequence(f: Feature, shown: Steps) -> Column:
    """The column of a sequence feature at the steps that ``picked`` gave."""
    values, dictionary = shown.values(f.column, f.of)
    return Column(values, shown.picked.offsets, dictionary)


def newest_different(name: str, number: int, events: FilteredEvents, rows: Slices) -> Picked:
    """The newest event of each of the newest ``number`` different values of a column, in order of time."""
    following = events.following(name)

    def newest(part: Slices) -> Array:
        """bool (m,): whether no later event of the slice has the same value."""
        return part.of(following) >= np.repeat(part.stop, part.lengths)

    # most rows hold enough different values near their end: look there first, and further back only where they do not
    width = 4 * number + 32
    begin = np.maximum(rows.start, rows.stop - width)
    short = np.flatnonzero(begin > rows.start)
    while len(short):
        part = Slices(begin[short], rows.stop[short])
        short = short[part.count(newest(part)) < number]
        width *= 4
        begin[short] = np.maximum(rows.start[short], rows.stop[short] - width)
        short = short[begin[short] > rows.start[short]]
    part = Slices(begin, rows.stop)
    hits = newest(part)
    offsets = np.concatenate(([0], np.cumsum(part.count(hits))))
    return Picked(part.positions[hits], offsets).newest(number)
