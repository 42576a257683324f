"""What the members say of all items, and candidates of a second stage: the union of their first items, and what is known of each.

It must not know which model reads the columns, nor how candidates are chosen among.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from zoo.errors import ArtefactError
from zoo.evaluation.ranking import best
from zoo.plugin import UNKNOWN, Array, Artefact, Block, Catalogue, Column, FeatureBatch, TrainingData, gather
from zoo.vocabulary import ITEMS, Vocabulary

HISTORY = "items"
"""The sequence column that holds a user's items."""
FIRST = UNKNOWN + 1
RECENT = 28 * 86_400.0
"""Seconds before the newest event of training that count as recent."""
LATELY = 10
"""Newest events of a row that a candidate is compared with."""
_CHANGED = 16
"""A row of which at most one value in so many is another than before is put in order by what changed."""
_SAMPLE = 255
"""Values of a row by which the one that most have is guessed."""
NOTHING = -1e29
"""A member that knows nothing of an item may say so by a score below this."""


@dataclass(frozen=True)
class ItemCounts:
    """What training rows say of items, by the vocabulary's codes.

    popularity: float64 (m,), events of histories and targets. recent: float64 (m,), those of the last ``RECENT`` seconds, (0,) where there
    are no times. pairs: int64 (p,), rising, ``older * m + newer`` of items side by side in a history. follows: float32 (p,), how often.
    """

    popularity: Array
    recent: Array
    pairs: Array
    follows: Array

    @staticmethod
    def of(data: TrainingData, vocabulary: Vocabulary) -> ItemCounts:
        size = vocabulary.size(ITEMS)
        batch, target = vocabulary.apply(data.batch.select([HISTORY, "ages"])), vocabulary.target(data).astype(np.int64)
        history = batch.column(HISTORY)
        row = np.concatenate([np.repeat(np.arange(len(batch)), history.lengths), np.arange(len(batch))])
        items = np.concatenate([history.values, target]).astype(np.int64)
        recent = np.zeros(0)
        if "ages" in batch:
            age = np.concatenate([batch.column("ages").values, np.zeros(len(batch))])
            time = batch.as_of[row] / 1e6 - age
            recent = np.bincount(items[time > time.max(initial=0.0) - RECENT], minlength=size).astype(np.float64)
            recent[:FIRST] = 0
        popularity = np.bincount(items, minlength=size).astype(np.float64)
        popularity[:FIRST] = 0
        order = np.argsort(row, kind="stable")  # a row's target after its history
        order = order[items[order] >= FIRST]
        row, items = row[order], items[order]
        beside = row[1:] == row[:-1]
        pairs, follows = np.unique(items[:-1][beside] * size + items[1:][beside], return_counts=True)
        return ItemCounts(popularity, recent, pairs, follows.astype(np.float32))

    def followed(self, older: Array, newer: Array) -> Array:
        """float64, same shape: how often the items ``newer`` came right after the items ``older``."""
        if not len(self.pairs):
            return np.zeros(older.shape)
        keys = older.astype(np.int64) * len(self.popularity) + newer
        at = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        return np.where(self.pairs[at] == keys, self.follows[at], 0.0)

    def widened(self, size: int) -> ItemCounts:
        """The same for ``size`` codes, those behind training's never met."""
        own = len(self.popularity)
        more = (0, size - own)
        pairs = self.pairs // own * size + self.pairs % own
        return ItemCounts(
            np.pad(self.popularity, more), np.pad(self.recent, more) if len(self.recent) else self.recent, pairs, self.follows
        )

    def save(self) -> Artefact:
        return Artefact(vars(self))

    @staticmethod
    def load(artefact: Artefact) -> ItemCounts:
        """What ``save`` wrote. Raises KeyError naming an array that is missing."""
        return ItemCounts(**{name: artefact.arrays[name] for name in ItemCounts.__dataclass_fields__})

    def check(self, size: int) -> None:
        """Raise ArtefactError unless these are counts of so many codes."""
        expected = {
            "popularity": ("float64", (size,)),
            "recent": ("float64", (size if self.recent.size else 0,)),
            "pairs": ("int64", self.follows.shape),
            "follows": ("float32", (self.pairs.size,)),
        }
        odd = [name for name, form in expected.items() if (getattr(self, name).dtype.name, getattr(self, name).shape) != form]
        if (
            odd
            or (np.diff(self.pairs) <= 0).any()
            or (self.pairs.size and not 0 <= self.pairs[0] <= self.pairs[-1] < size * size)
        ):
            raise ArtefactError(
                f"counts of items ({', '.join(odd) or 'pairs'}) are not those of {size} codes; restore it, or train again"
            )


@dataclass(frozen=True)
class Stage:
    """What the first stage, the members, says of a few rows.

    batch: the rows, in the members' codes. hidden: bool (n, codes), what may not be listed. scores: by member, float32 (n, codes).
    vectors: by member that has them, float32 (codes, d) of length 1, or zeros for items that the member cannot score. orders: by member a
    row that was put in order before, and that order; rows that differ from it little are put in order sooner. Changed here.
    """

    batch: FeatureBatch
    hidden: Array
    scores: Mapping[str, Array]
    vectors: Mapping[str, Array] = field(default_factory=dict)
    orders: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    @cached_property
    def ranks(self) -> Mapping[str, Array]:
        """By member, float32 (n, codes): the place among the items that are not hidden, equal scores sharing theirs, infinite for hidden
        ones. Of some items ``ranks_of`` is quicker."""
        ranks = {}
        for name, each in self.scores.items():
            ranks[name] = average_ranks(np.where(self.hidden, np.inf, -each))
            ranks[name][self.hidden] = np.inf
        return ranks

    @cached_property
    def _listed(self) -> dict[str, Array]:
        return {}

    @cached_property
    def _rising(self) -> dict[str, Array]:
        return {}

    def listed(self, scores: Array) -> Array:
        """float32: the scores, -inf where an item is hidden."""
        out: Array = scores.astype(np.float32)
        np.copyto(out, np.float32(-np.inf), where=self.hidden)  # a third of the time of np.where
        return out

    def listed_of(self, name: str) -> Array:
        """float32 (n, codes): ``listed`` of a member's scores."""
        if name not in self._listed:
            self._listed[name] = self.listed(self.scores[name])
        return self._listed[name]

    def rising(self, name: str) -> Array:
        """float32 (n, codes): each row's scores of a member in order, those of hidden items first, as -inf."""
        if name not in self._rising:
            scores = self.listed_of(name)
            if len(scores) == 1:
                row = scores[0]
                rising = in_order(row, self.orders.get(name))
                self.orders[name] = row, rising
                self._rising[name] = rising[None]
            else:
                self._rising[name] = np.sort(scores, axis=1)
        return self._rising[name]

    def ranks_of(self, name: str, row: Array, items: Array) -> Array:
        """float32 (c,): a member's ``ranks`` of items that are not hidden; row: (c,), rising."""
        own, rising = self.scores[name][row, items], self.rising(name)
        ahead, level = np.empty(len(row)), np.empty(len(row))
        for at, begin, end in _runs(row):
            right = rising[at].searchsorted(own[begin:end], "right")
            ahead[begin:end] = rising.shape[1] - right
            level[begin:end] = right - rising[at].searchsorted(own[begin:end], "left")
        return (ahead + (level + 1) / 2).astype(np.float32)

    def ahead(self, name: str, items: Array) -> Array:
        """int64 (n, k): how many items that are not hidden a member gives more than each of ``items`` (n, k); of hidden ones, all."""
        own, rising = np.take_along_axis(self.listed_of(name), items, axis=1), self.rising(name)
        found: Array = np.empty(items.shape, np.int64)
        for at, each in enumerate(rising):
            found[at] = len(each) - each.searchsorted(own[at], "right")
        return found


def in_order(row: Array, before: tuple[Array, Array] | None) -> Array:
    """(m,): ``np.sort`` of a row without NaN, in less time where there is some: sorting all items is a fifth of a list's.

    By way of another row and that one's order where only a few values differ: popularity is the same for everybody but for one's own
    items. Else without the value that most items have, where there is one: what no event of the user speaks for.
    """
    if before is not None and len(before[0]) == len(row):
        known, rising = before
        other = row != known
        if _CHANGED * np.count_nonzero(other) <= len(row):
            changed = other.nonzero()[0]
            old, new = np.sort(known[changed]), np.sort(row[changed])
            again = np.arange(len(old)) - old.searchsorted(old)  # equal ones stand side by side
            left = np.delete(rising, rising.searchsorted(old) + again)
            return np.insert(left, left.searchsorted(new), new)
    sample = np.sort(row[:: len(row) // _SAMPLE + 1])
    usual = sample[len(sample) // 2 : len(sample) // 2 + 1]  # what more than half of them have is in the middle
    over, under = row > usual, row < usual
    above, below = np.count_nonzero(over), np.count_nonzero(under)
    if 2 * (above + below) > len(row):
        return np.sort(row)
    out = np.empty_like(row)
    out[:below] = np.sort(row.compress(under))
    out[below : len(row) - above] = usual
    out[len(row) - above :] = np.sort(row.compress(over))
    return out


def _runs(row: Array) -> Iterator[tuple[int, int, int]]:
    """(row, begin, end) of each run of equal rows."""
    ends = np.append(np.flatnonzero(np.diff(row)) + 1, len(row)).tolist() if len(row) else []
    for begin, end in zip([0, *ends], ends):
        yield int(row[begin]), begin, end


def average_ranks(values: Array) -> Array:
    """float32 (n, m): places in a row, smallest first, from 1; equal values share theirs. As scipy's ``rankdata``, in half its time."""
    n, m = values.shape
    order = values.argsort(axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    new = np.ones((n, m), bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    begins = np.flatnonzero(new)
    ends = np.append(begins, n * m)[1:]
    middles = ((begins % max(m, 1)) + (ends - begins + 1) / 2).astype(np.float32)
    out = np.empty((n, m), np.float32)
    np.put_along_axis(out, order, np.repeat(middles, ends - begins).reshape(n, m), axis=1)
    return out


@dataclass(frozen=True)
class Candidates:
    """offsets: int64 (n + 1,), candidates of each row. items: int32 (c,), rising within a row. batch: c rows grouped by ``offsets``."""

    offsets: Array
    items: Array
    batch: FeatureBatch

    @property
    def rows(self) -> Array:
        """int64 (c,): whose candidate each is."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @staticmethod
    def of(stage: Stage, depth: int, counts: ItemCounts, allowed: Array | None = None) -> Candidates:
        """The union of each member's first ``depth`` items that are not hidden.

        allowed: bool (codes,), only these are candidates; scores and ranks are told as without it. Columns of a candidate: ``score:M``
        (standardised among the row's candidates), ``rank:M`` (logarithm), ``margin:M`` (how far below M's best candidate, in standard
        deviations), ``listed`` (by how many members), and those of ``_items``, ``_history``, ``_attributes`` and ``_alike``.
        """
        batch, barred = stage.batch, None if allowed is None else stage.hidden | ~allowed
        chosen = np.zeros(stage.hidden.shape, bool)
        listed = np.zeros(chosen.shape, np.int8)
        for name, each in stage.scores.items():
            deep = min(depth, each.shape[1])
            if barred is None:
                first = best(stage.listed_of(name), deep, stage.rising(name))
            else:
                first = best(np.where(barred, np.float32(-np.inf), each), deep)
            mark = np.zeros(chosen.shape, bool)
            np.put_along_axis(mark, first, True, axis=1)
            mark[:, :FIRST] = False  # what stands for no further item
            chosen |= mark
            listed += mark
        row, items = np.nonzero(chosen)
        offsets = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]).astype(np.int64)
        columns: dict[str, Array] = {}
        for name, each in stage.scores.items():
            columns |= _of_member(name, each[row, items], stage.ranks_of(name, row, items), offsets)
        columns["listed"] = listed[row, items]
        columns |= _items(counts, items) | _history(batch, counts, row, items) | _attributes(batch, row, items)
        columns |= _alike(batch, stage.vectors, row, items)
        block: Block = {name: Column(values.astype(np.float32)) for name, values in columns.items()}
        user: Block = {"events": Column(np.log1p(batch.column(HISTORY).lengths).astype(np.float32))}
        table = FeatureBatch(
            {"user": user, "candidate": block},
            {"user": row.astype(np.int32), "candidate": np.arange(len(row), dtype=np.int32)},
            batch.as_of[row],
            batch.newest[row],
            Catalogue(),
            offsets,
        )
        return Candidates(offsets, items.astype(np.int32), table)

    @staticmethod
    def joined(parts: Sequence[Candidates]) -> Candidates:
        """Those of several sets of rows, one after the other."""
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        blocks, row_of = {}, {}
        for entity, block in parts[0].batch.blocks.items():
            blocks[entity] = {
                name: Column(np.concatenate([p.batch.blocks[entity][name].values for p in parts])) for name in block
            }
            starts = np.cumsum([0, *(len(next(iter(p.batch.blocks[entity].values()))) for p in parts)])
            row_of[entity] = np.concatenate([p.batch.row_of[entity] + s for p, s in zip(parts, starts)]).astype(np.int32)
        times = [np.concatenate([getattr(p.batch, name) for p in parts]) for name in ("as_of", "newest")]
        batch = FeatureBatch(blocks, row_of, times[0], times[1], Catalogue(), offsets)
        return Candidates(offsets, np.concatenate([p.items for p in parts]), batch)

    def take(self, rows: Array) -> Candidates:
        """Those of these rows (int (k,))."""
        at, offsets = gather(np.arange(len(self.items)), self.offsets[:-1][rows], np.diff(self.offsets)[rows])
        return Candidates(offsets, self.items[at], replace(self.batch.take(at).compact(), group=offsets))

    def keep(self, which: Array) -> Candidates:
        """Those of a mask (c,), rows as they are."""
        at = np.flatnonzero(which)
        sizes = np.bincount(self.rows[at], minlength=len(self.offsets) - 1)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return Candidates(offsets, self.items[at], replace(self.batch.take(at).compact(), group=offsets))


def _of_member(name: str, score: Array, rank: Array, offsets: Array) -> dict[str, Array]:
    some = np.flatnonzero(np.diff(offsets))
    starts = offsets[:-1][some]
    if not len(some):
        return {f"{kind}:{name}": score for kind in ("score", "rank", "margin")}
    score, at = score.astype(np.float64), np.repeat(np.arange(len(some)), np.diff(offsets)[some])
    score = np.maximum(score, np.minimum.reduceat(np.where(score > NOTHING, score, np.inf), starts)[at])
    score[~np.isfinite(score)] = 0.0  # a member that knows nothing of any candidate
    sizes = np.diff(offsets)[some]
    mean = np.add.reduceat(score, starts) / sizes
    away = score - mean[at]
    spread = np.sqrt(np.add.reduceat(away * away, starts) / sizes)
    spread[spread <= 1e-12 * np.maximum(1.0, np.abs(mean))] = 1.0
    z = away / spread[at]
    return {f"score:{name}": z, f"rank:{name}": np.log(rank), f"margin:{name}": np.maximum.reduceat(z, starts)[at] - z}


def _items(counts: ItemCounts, items: Array) -> dict[str, Array]:
    """``popularity`` and, where there are times, ``popularity_recent``: logarithms of counts of training."""
    out = {"popularity": np.log1p(counts.popularity[items])}
    if len(counts.recent):
        out["popularity_recent"] = np.log1p(counts.recent[items])
    return out


def _history(batch: FeatureBatch, counts: ItemCounts, row: Array, items: Array) -> dict[str, Array]:
    """Of a candidate and its row's history: ``follows`` and ``follows_lately`` (log of how often it came right after the newest item, after
    one of the newest items), ``own`` (log of how often the history holds it), ``own_back`` (log of how many events ago it does, NaN for
    never) and, where there are times, ``own_age`` (log of seconds); where there are several types of events, ``own:TYPE``.
    """
    history = batch.column(HISTORY)
    size = batch.catalogue.size(ITEMS)
    newest = history.padded(5)
    known = (newest >= FIRST)[row]
    after = [np.where(known[:, lag], counts.followed(newest[row, lag], items), 0.0) for lag in range(newest.shape[1])]
    out = {"follows": np.log1p(after[-1]), "follows_lately": np.log1p(np.sum(after, axis=0))}
    owner = np.repeat(np.arange(len(batch)), history.lengths)
    keys = owner * size + history.values
    order = np.argsort(keys, kind="stable")
    asked = row * size + items
    low, high = np.searchsorted(keys[order], asked, "left"), np.searchsorted(keys[order], asked, "right")
    out["own"] = np.log1p(high - low)
    types = batch.catalogue.names["event_type"][FIRST:] if "event_types" in batch else ()
    for number, kind in enumerate(types if len(types) > 1 else (), start=FIRST):
        some = np.sort(keys[batch.column("event_types").values == number])
        out[f"own:{kind}"] = np.log1p(np.searchsorted(some, asked, "right") - np.searchsorted(some, asked, "left"))
    there = high > low
    last = order[high[there] - 1]
    assert history.offsets is not None
    back = np.full(len(items), np.nan)
    back[there] = np.log(history.offsets[1:][row[there]] - last)
    out["own_back"] = back
    if "ages" in batch:
        age = np.full(len(items), np.nan)
        age[there] = np.log1p(np.maximum(0.0, batch.column("ages").values[last]))
        out["own_age"] = age
    return out


def _attributes(batch: FeatureBatch, row: Array, items: Array) -> dict[str, Array]:
    """Of the item table: ``same:COLUMN``, the share of the row's newest items with the candidate's code there, and ``apart:COLUMN``,
    how far its number lies above their mean, as a logarithm where no item's number is negative; NaN where nothing is known.
    """
    newest = batch.column(HISTORY).padded(LATELY)
    known = newest >= FIRST
    some = np.maximum(known.sum(axis=1), 1)
    out: dict[str, Array] = {}
    for name, column in batch.catalogue.items.items():
        if column.is_sequence or column.is_text:
            continue
        values = column.values
        if column.is_code:
            alike = (values[newest][row] == values[items][:, None]) & known[row]
            same = alike.sum(axis=1) / some[row]
            out[f"same:{name}"] = np.where(values[items] >= FIRST, same, np.nan)
            continue
        numbers: Array = values.astype(np.float64)
        if not (numbers[np.isfinite(numbers)] < 0).any():
            numbers = np.log1p(numbers)
        there: Array = known & np.isfinite(numbers[newest])
        mean = np.where(there, numbers[newest], 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        out[f"apart:{name}"] = np.where(np.any(there, axis=1)[row], numbers[items] - mean[row], np.nan)
    return out


def _alike(batch: FeatureBatch, vectors: Mapping[str, Array], row: Array, items: Array) -> dict[str, Array]:
    """``like:MEMBER``: the cosine of a candidate's vector and the mean of those of the row's newest items; NaN where either is unknown."""
    newest = batch.column(HISTORY).padded(LATELY)
    out: dict[str, Array] = {}
    for name, each in vectors.items():
        mean = each[newest].sum(axis=1)  # what is no item has a vector of zeros
        length = np.linalg.norm(mean, axis=1)[row]
        there = each[items].any(axis=1) & (length > 0)
        out[f"like:{name}"] = np.where(there, (each[items] * mean[row]).sum(axis=1) / np.where(there, length, 1.0), np.nan)
    return out
