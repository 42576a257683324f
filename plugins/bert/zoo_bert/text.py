"""Recent behaviour in words: ``today: bought soft drinks, cheese x2. 3 days ago: bought milk. ``

A text is a list of phrases (what is said of the row, then headers and names, newest first); phrases are interned, so that what recurs is
read by the encoder once. Knows no encoder: lengths in tokens are given to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from zoo.plugin import PADDING, UNKNOWN, Array, Catalogue, FeatureBatch, gather

if TYPE_CHECKING:
    from zoo_bert.columns import Columns
    from zoo_bert.params import BertParams, Words

DAY = 86_400.0
MOST_EVENTS = 8
"""Events read for each token of the text: repeated names merge, so more events than tokens may be said."""

SAID, HEADER, NAME = 0, 1, 2


@dataclass
class Phrases:
    """Distinct phrases in order of first use."""

    texts: list[str] = field(default_factory=list)
    _number: dict[str, int] = field(default_factory=dict)

    def add(self, texts: Sequence[str]) -> Array:
        """int32 (k,): the phrases' numbers."""
        for text in texts:
            if text not in self._number:
                self._number[text] = len(self.texts)
                self.texts.append(text)
        return np.fromiter((self._number[text] for text in texts), np.int32, len(texts))


@dataclass(frozen=True)
class Units:
    """Phrases of n rows. number: int32 (m,). gap: int32 (m,), the number of the phrase that says when, -1 without. role: int8 (m,).

    offsets: int64 (n + 1,).
    """

    number: Array
    gap: Array
    role: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        return np.diff(self.offsets)

    def take(self, rows: Array) -> Units:
        start, lengths = self.offsets[:-1][rows], self.lengths[rows]
        where, offsets = gather(np.arange(len(self.number)), start, lengths)
        return Units(self.number[where], self.gap[where], self.role[where], offsets)

    def cut(self, tokens: Array, budget: int) -> Units:
        """The longest beginning of each row whose phrases have at most ``budget`` tokens (tokens: int (phrases,))."""
        used = np.cumsum(tokens[self.number])
        before = np.concatenate([[0], used])[self.offsets[:-1]]
        keep = used - np.repeat(before, self.lengths) <= budget
        kept = np.concatenate([[0], np.cumsum(keep)])
        return Units(self.number[keep], self.gap[keep], self.role[keep], kept[self.offsets])

    def followed_by(self, other: Units) -> Units:
        """Row by row, these phrases and then the other's."""
        row = np.concatenate([np.repeat(np.arange(len(u)), u.lengths) for u in (self, other)])
        order = np.argsort(row, kind="stable")
        number, gap, role = (
            np.concatenate([getattr(self, name), getattr(other, name)])[order] for name in ("number", "gap", "role")
        )
        return Units(number, gap, role, self.offsets + other.offsets)


def said(batch: FeatureBatch, columns: Columns, params: BertParams, phrases: Phrases) -> Units:
    """Codes and texts with one value a row, such as ``age 45-54``; padding and unknown are not said."""
    numbers = np.full((len(batch), len(columns.said)), -1, np.int32)
    for i, name in enumerate(columns.said):
        entity, column = batch.stored(name)
        values = column.values[batch.row_of[entity]]
        if column.is_code:
            used, inverse = np.unique(values, return_inverse=True)
            texts = _names(batch.catalogue, column.dictionary, used, params)
            texts = ["" if code <= UNKNOWN else text for code, text in zip(used, texts, strict=True)]
        else:
            used, inverse = np.unique(np.array([_clean(value, params) for value in values], object), return_inverse=True)
            texts = list(used)
        title = name.replace("_", " ").replace(".", " ")
        number = phrases.add([f"{title} {text}" for text in texts])
        numbers[:, i] = np.where(np.array(texts, object) == "", -1, number)[inverse]
    here = numbers >= 0
    flat = numbers[here]
    offsets = np.concatenate([[0], np.cumsum(here.sum(1))]).astype(np.int64)
    return Units(flat, np.full(len(flat), -1, np.int32), np.full(len(flat), SAID, np.int8), offsets)


def behaviour(batch: FeatureBatch, columns: Columns, params: BertParams, phrases: Phrases) -> Units:
    """What the row's events say: days newest first, in each day event types and names newest first, repeated names once."""
    anchor = columns.items or columns.event_types
    if anchor is None:
        return _nothing(len(batch), params.words, phrases)
    entity, column = batch.stored(anchor)
    used, inverse = np.unique(batch.row_of[entity], return_inverse=True)
    block = batch.blocks[entity]
    most = MOST_EVENTS * params.max_tokens
    column = column.take(used).tail(most)
    assert column.offsets is not None
    row = np.repeat(np.arange(len(used)), column.lengths)
    if not len(row):
        return _nothing(len(batch), params.words, phrases)
    newest_first = column.offsets[:-1][row] + column.offsets[1:][row] - 1 - np.arange(len(row))

    def values(name: str | None) -> Array | None:
        return None if name is None else block[name].take(used).tail(most).values[newest_first]

    gap, gaps = _gaps(values(columns.times), len(row), params.words)
    verb, verbs = _coded(values(columns.event_types), len(row), batch, columns.event_types, params, verbs=True)
    name, names = _coded(values(columns.items), len(row), batch, columns.items, params, verbs=False)
    units = _ordered(row, (gap, gaps), (verb, verbs), (name, names), len(used), params, phrases)
    empty = np.flatnonzero(np.diff(units.offsets) == 0)
    if len(empty):
        units = units.followed_by(_nothing(len(used), params.words, phrases, empty))
    return units.take(inverse)


def written(units: Units, phrases: Sequence[str], words: Words) -> list[str]:
    """Each row's text as one string."""
    texts = []
    for start, stop in zip(units.offsets[:-1], units.offsets[1:], strict=True):
        text, last = "", -1
        for number, role in zip(units.number[start:stop].tolist(), units.role[start:stop].tolist(), strict=True):
            joint = "" if last < 0 else words.stop if role == HEADER else words.space if last == HEADER else words.comma
            text += joint + phrases[number]
            last = role
        texts.append((text + words.stop).strip())
    return texts


def _ordered(
    row: Array,
    gap: tuple[Array, list[str]],
    verb: tuple[Array, list[str]],
    name: tuple[Array, list[str]],
    rows: int,
    params: BertParams,
    phrases: Phrases,
) -> Units:
    """Merge events that say the same and put headers before names. Events come newest first, row by row; name 0 is no name."""
    words, days, kinds = params.words, len(gap[1]), len(verb[1])
    _, day_first, day = np.unique(row * days + gap[0], return_index=True, return_inverse=True)
    groups, first, group = np.unique((row * days + gap[0]) * kinds + verb[0], return_index=True, return_inverse=True)
    merged, named_first, times = np.unique(group * len(name[1]) + name[0], return_index=True, return_counts=True)
    owner, title = merged // len(name[1]), merged % len(name[1])
    order = np.lexsort((named_first, owner))
    order = order[title[order] > 0]
    owner, title, times = owner[order], title[order], np.minimum(times[order], 9)
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    shown = rank < params.names_per_day
    hidden = np.bincount(owner[~shown], minlength=len(groups))
    more = np.flatnonzero(hidden)

    opens = day_first[day[first]] == first
    lead = np.where(opens, gap[0][first] + 1, 0) * kinds + verb[0][first]
    texts, which = np.unique(lead, return_inverse=True)
    headers = [_header(["", *gap[1]][text // kinds], verb[1][text % kinds], words) for text in texts.tolist()]
    pairs, pair = np.unique(title[shown] * 10 + times[shown], return_inverse=True)
    said_names = [words.times.format(name=name[1][p // 10], n=p % 10) if p % 10 > 1 else name[1][p // 10] for p in pairs.tolist()]
    counts = np.where(hidden[more] < 10, hidden[more], hidden[more] // 10 * 10)

    number = np.concatenate([
        phrases.add(headers)[which],
        phrases.add(said_names)[pair],
        phrases.add([words.more.format(n=n) for n in counts.tolist()]),
    ])  # fmt: skip
    owners = np.concatenate([np.arange(len(groups)), owner[shown], more])
    within = np.concatenate([np.full(len(groups), -1), rank[shown], np.full(len(more), params.names_per_day)])
    role = np.repeat(np.array([HEADER, NAME], np.int8), [len(groups), len(number) - len(groups)])
    spoken = ~((role == HEADER) & (np.array(phrases.texts, object)[number] == ""))
    order = np.lexsort((within, first[owners]))
    order = order[spoken[order]]
    said_gap = np.where([bool(text) for text in gap[1]], phrases.add(gap[1]), -1).astype(np.int32)
    lengths = np.bincount(row[first[owners[order]]], minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Units(number[order], said_gap[gap[0][first[owners[order]]]], role[order], offsets)


def _header(gap: str, verb: str, words: Words) -> str:
    return f"{gap}{words.colon}{verb}".strip() if gap else verb


def _nothing(rows: int, words: Words, phrases: Phrases, only: Array | None = None) -> Units:
    lengths = np.ones(rows, np.int64) if only is None else np.bincount(only, minlength=rows)
    number = np.full(int(lengths.sum()), phrases.add([words.nothing])[0], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Units(number, np.full(len(number), -1, np.int32), np.full(len(number), HEADER, np.int8), offsets)


def _gaps(seconds: Array | None, count: int, words: Words) -> tuple[Array, list[str]]:
    """(number (m,), texts): how long ago each event was, in words; one empty text where times are not known."""
    if seconds is None:
        return np.zeros(count, np.int64), [""]
    days = np.maximum(np.nan_to_num(seconds.astype(np.float64), nan=0.0, posinf=1e9, neginf=0.0), 0.0) / DAY
    row = np.searchsorted([gap.below for gap in words.gaps], days, side="right")
    unit = np.array([*(gap.unit if "{n}" in gap.say else np.inf for gap in words.gaps), np.inf])[row]
    used, number = np.unique(row * 1e6 + np.minimum(days // unit, 999_999), return_inverse=True)
    says = [*(gap.say for gap in words.gaps), words.long_ago]
    return number, [says[int(key // 1e6)].format(n=int(key % 1e6)) for key in used]


def _coded(
    codes: Array | None, count: int, batch: FeatureBatch, name: str | None, params: BertParams, *, verbs: bool
) -> tuple[Array, list[str]]:
    """(number (m,), texts): what each code is called; number 0 is nothing to say."""
    if codes is None or name is None:
        return np.zeros(count, np.int64), [""]
    used, inverse = np.unique(codes, return_inverse=True)
    texts = _names(batch.catalogue, batch.stored(name)[1].dictionary, used, params)
    if verbs:
        words = params.words
        texts = [words.verbs.get(text, text.replace("_", " ")) for text in texts]
        texts = [words.unknown_verb if code == UNKNOWN else text for code, text in zip(used, texts, strict=True)]
    distinct = Phrases(["" ], {"": 0})  # fmt: skip
    return distinct.add(texts)[inverse].astype(np.int64), distinct.texts


def _names(catalogue: Catalogue, dictionary: str | None, codes: Array, params: BertParams) -> list[str]:
    """Display texts of codes; padding is empty, and unknown, blank or out of the dictionary is ``unknown_name``."""
    assert dictionary is not None
    size = catalogue.size(dictionary)
    names = catalogue.names[dictionary]
    unknown = params.words.unknown_name
    return [
        "" if code == PADDING else (_clean(names[code], params) or unknown) if UNKNOWN < code < size else unknown
        for code in codes.tolist()
    ]


def _clean(value: object, params: BertParams) -> str:
    return "" if value is None else " ".join(str(value).split())[: params.name_length].strip()
