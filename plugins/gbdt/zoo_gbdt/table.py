"""From a batch to a table float32 (n, columns): values as they are, codes as categories, sequences as summaries.

No Python loop runs over rows: sums, minima and maxima of all rows' sequences come from ``reduceat`` over their concatenation.
"""

from __future__ import annotations

import numpy as np

from zoo.plugin import PADDING, Array, Column, FeatureBatch, gather
from zoo_gbdt.layout import NUMBER_STATS, Codes, Entity, Layout, aligned


def table(batch: FeatureBatch, layout: Layout) -> Array:
    """float32 (n, columns), C order, NaN where nothing is known; columns as in ``layout.names()``.

    Raises PluginError where the batch lacks a column.
    """
    layout.check(batch)
    # Money and times beyond float32 become infinite, which trees order as well as any number.
    with np.errstate(over="ignore"):
        parts = [_entity(batch, entity, layout) for entity in layout.entities]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _entity(batch: FeatureBatch, entity: Entity, layout: Layout) -> Array:
    """One block's part, worked out once for each stored row that is used, then spread over the rows."""
    block, rows = batch.blocks[entity.name], batch.row_of[entity.name]
    columns = {name: block[name] for name in (*entity.values, *entity.sequences)}
    stored = len(next(iter(columns.values())))
    if stored > len(rows):
        used, rows = np.unique(rows, return_inverse=True)
        columns = {name: column.take(used) for name, column in columns.items()}
        stored = len(used)
    parts = [columns[name].values.astype(np.float32)[:, None] for name in entity.numbers]
    parts += [codes.categories(columns[codes.name].values)[:, None] for codes in entity.codes]
    parts += [columns[name].lengths.astype(np.float32)[:, None] for name in entity.lengths]
    # Offsets are compared here and not in the layout: sequences that are all empty in training look aligned.
    groups = aligned({name: columns[name] for name in entity.sequences})
    codes_of = {codes.name: codes for codes in entity.code_sequences}
    summaries: dict[str, Array] = {}
    for group in groups:
        summaries |= _summaries({name: columns[name] for name in group}, codes_of, layout)
    parts += [summaries[name] for name in entity.sequences]
    out = np.concatenate(parts, axis=1)
    return out if len(rows) == stored and np.array_equal(rows, np.arange(stored)) else out[rows]


def _summaries(columns: dict[str, Column], codes_of: dict[str, Codes], layout: Layout) -> dict[str, Array]:
    """Of sequences with equal offsets: float32 (n, some) by name, in the order of ``Layout._columns``."""
    offsets = next(iter(columns.values())).offsets
    assert offsets is not None
    lengths = np.diff(offsets)
    named = {name: column.values[: offsets[-1]] for name, column in columns.items()}
    numeric = [name for name in named if name not in codes_of]
    numbers = np.empty((len(numeric), offsets[-1]))
    for row, name in zip(numbers, numeric, strict=True):
        row[:] = named[name]
    numbers[~np.isfinite(numbers)] = np.nan
    places = {name: codes_of[name].places(named[name]) for name in named if name in codes_of}

    statistics: list[Array] = []
    shares: dict[str, list[Array]] = {name: [] for name in places}
    for window in (0, *layout.windows):
        keep = np.minimum(lengths, window) if window else lengths
        if window and np.array_equal(keep, lengths):  # no sequence is longer: the same as over all events
            statistics.append(statistics[0])
            for parts in shares.values():
                parts.append(parts[0])
            continue
        newest = gather(np.arange(offsets[-1]), offsets[1:] - keep, keep)[0] if window else slice(None)
        statistics.append(_statistics(numbers[:, newest], keep))
        for name, place in places.items():
            shares[name].append(_shares(place[newest], len(codes_of[name].top), keep))
    statistics.append(_lasts(numbers, offsets, layout.lasts))

    joined = np.concatenate(statistics, axis=1)
    out = {name: joined[:, :, number] for number, name in enumerate(numeric)}
    for name, parts in shares.items():
        out[name] = np.concatenate([*parts, _code_summary(named[name], offsets, codes_of[name])], axis=1)
    return out


def _code_summary(values: Array, offsets: Array, codes: Codes) -> Array:
    """float32 (n, 4): the newest code and the most frequent one as categories, the latter's share, the number of distinct codes."""
    lengths = np.diff(offsets)
    most, most_share, distinct = _runs(values, lengths)
    last = np.zeros(len(lengths), np.int64)
    last[lengths > 0] = values[offsets[1:][lengths > 0] - 1]
    return np.stack([codes.categories(last), codes.categories(most), most_share, distinct], axis=1).astype(np.float32)


def _statistics(numbers: Array, lengths: Array) -> Array:
    """float32 (n, 6, k): NUMBER_STATS of every sequence of float64 (k, sum(lengths)); NaN where it has no number."""
    k, n = len(numbers), len(lengths)
    some = lengths > 0
    out = np.full((n, len(NUMBER_STATS), k), np.nan, np.float32)
    if k and some.any():
        starts = (np.cumsum(lengths) - lengths)[some]
        known = ~np.isnan(numbers)
        count = np.add.reduceat(known, starts, axis=1, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.add.reduceat(np.where(known, numbers, 0.0), starts, axis=1) / count
            away = numbers - np.repeat(mean, lengths[some], axis=1)
            std = np.sqrt(np.add.reduceat(np.where(known, away * away, 0.0), starts, axis=1) / count)
            newest = numbers[:, starts + lengths[some] - 1]
            above = np.add.reduceat(numbers > np.repeat(newest, lengths[some], axis=1), starts, axis=1, dtype=np.float64) / count
            above[np.isnan(newest)] = np.nan
            of_mean = np.where(np.abs(mean) > 1e-9, newest / mean, np.nan)
            low, high = np.fmin.reduceat(numbers, starts, axis=1), np.fmax.reduceat(numbers, starts, axis=1)
        out[some] = np.stack([mean.T, std.T, low.T, high.T, above.T, of_mean.T], axis=1)
    return out


def _shares(places: Array, count: int, lengths: Array) -> Array:
    """float32 (n, count): share of each place among a row's events; 0 where there is no event."""
    n = len(lengths)
    owner = np.repeat(np.arange(n), lengths)
    counts = np.bincount(owner * (count + 1) + places, minlength=n * (count + 1)).reshape(n, count + 1)
    return (counts[:, :count] / np.maximum(lengths, 1)[:, None]).astype(np.float32)


def _lasts(numbers: Array, offsets: Array, count: int) -> Array:
    """float32 (n, count, k): the newest value, the one before it, and so on; NaN where there are not that many."""
    lengths = np.diff(offsets)
    out = np.full((len(lengths), count, len(numbers)), np.nan, np.float32)
    for back in range(count):
        some = lengths > back
        out[some, back] = numbers[:, offsets[1:][some] - 1 - back].T
    return out


def _runs(values: Array, lengths: Array) -> tuple[Array, Array, Array]:
    """Most frequent code (0 for none; of equally frequent ones the smallest), its share, and the number of distinct codes.

    Events without a code count for none of them.
    """
    n = len(lengths)
    most, most_share, distinct = np.zeros(n, np.int64), np.zeros(n), np.zeros(n)
    there = values != PADDING
    if not there.any():
        return most, most_share, distinct
    owner, codes = np.repeat(np.arange(n), lengths)[there], values[there]
    size = int(codes.max()) + 1
    keys = np.sort(owner * size + codes)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    run_owner, run_code = np.divmod(keys[starts], size)
    run_length = np.diff(np.append(starts, len(keys)))
    distinct = np.bincount(run_owner, minlength=n).astype(np.float64)
    some = distinct > 0
    # Longest run, and of equally long ones the smallest code, as one number.
    firsts = (np.cumsum(distinct) - distinct)[some].astype(np.int64)
    best = np.maximum.reduceat(run_length * size + (size - 1 - run_code), firsts)
    longest, code = np.divmod(best, size)
    most[some] = size - 1 - code
    most_share[some] = longest / np.bincount(owner, minlength=n)[some]
    return most, most_share, distinct
