"""From a FeatureBatch to what the network reads: texts composed, cut and tokenised, their frozen states found, batches padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from zoo.plugin import Array, FeatureBatch, PluginError, gather
from zoo_bert.columns import Columns
from zoo_bert.encoder import Encoder
from zoo_bert.network import Rows
from zoo_bert.states import Kind, States, Tell
from zoo_bert.text import Phrases, Units, behaviour, said, written

if TYPE_CHECKING:
    from zoo_bert.params import BertParams


@dataclass(frozen=True)
class Inputs:
    """n rows of states. states: float16 (m, d), the distinct ones. where: int32 flat, into states; gap: int32 flat, into gaps, -1 without.

    offsets: int64 (n + 1,). gaps: float16 (g, d). numbers: float32 (n, w).
    """

    states: Array
    where: Array
    gap: Array
    offsets: Array
    gaps: Array
    numbers: Array

    @property
    def lengths(self) -> Array:
        return np.diff(self.offsets)

    def rows(self, chosen: Array) -> Rows:
        """These rows, padded to the longest of them; only the states that they use come along."""
        start, lengths = self.offsets[:-1][chosen], self.lengths[chosen]
        within = np.arange(max(1, lengths.max(initial=0)))
        here = within < lengths[:, None]
        flat = (start[:, None] + within)[here]
        used, where = np.unique(self.where[flat], return_inverse=True)
        places, gaps = np.full(here.shape, -1, np.int64), np.full(here.shape, -1, np.int64)
        places[here], gaps[here] = where, self.gap[flat]
        return Rows(*(torch.from_numpy(part) for part in (self.states[used], places, self.gaps, gaps, self.numbers[chosen])))


@dataclass(frozen=True)
class Reader:
    """Reads batches as the parameters and columns of one fitted model say."""

    encoder: Encoder
    states: States
    columns: Columns
    params: BertParams

    @classmethod
    def make(cls, encoder: Encoder, columns: Columns, params: BertParams) -> Reader:
        """Raises PluginError where whole texts would be longer than the encoder reads."""
        if params.unit == "text" and params.max_tokens + params.said_tokens > encoder.longest:
            raise PluginError(
                f"max_tokens={params.max_tokens} and said_tokens={params.said_tokens} make texts longer than the {encoder.longest} tokens "
                "that this encoder reads; lower them, or use unit='phrase'"
            )
        kind: Kind = "tokens" if params.trained_layers else "pooled"
        return cls(encoder, States(encoder, kind, encoder.frozen_layers, params.cache_mb), columns, params)

    @property
    def longest(self) -> int:
        return longest(self.params)

    def units(self, batch: FeatureBatch) -> tuple[Units, Phrases]:
        """What each row says, cut to its budget of tokens."""
        phrases, params = Phrases(), self.params
        about, events = said(batch, self.columns, params, phrases), behaviour(batch, self.columns, params, phrases)
        before, after = self.encoder.special()
        joints = params.unit == "text"  # commas and stops are tokens of a whole text, and are not said in phrases read alone
        tokens = np.array([len(one) - before - after + joints for one in self.encoder.tokens(phrases.texts)])
        return about.cut(tokens, params.said_tokens).followed_by(events.cut(tokens, params.max_tokens)), phrases

    def texts(self, batch: FeatureBatch) -> list[str]:
        """What each row's text reads."""
        units, phrases = self.units(batch)
        return written(units, phrases.texts, self.params.words)

    def read(self, batch: FeatureBatch, tell: Tell | None = None) -> Inputs:
        """Texts that repeat within the batch, or were read before, are not encoded again."""
        units, phrases = self.units(batch)
        texts, number, gap, offsets = phrases.texts, units.number, units.gap, units.offsets
        first, trim = False, (0, 0)
        if self.params.unit == "text":
            whole = Phrases()
            number, offsets = whole.add(written(units, texts, self.params.words)), np.arange(len(batch) + 1)
            texts, gap = whole.texts, np.full(len(batch), -1, np.int32)
        elif self.params.trained_layers:
            first, trim = True, self.encoder.special()
        used = np.unique(np.concatenate([number, gap[gap >= 0]]))
        parts = self._states([texts[i] for i in used], trim, tell)
        if first:  # the special tokens alone: their first state stands where the first token of a whole text would
            parts.append(self._states([""], (0, 0), None)[0][:1])
        start, lengths = _runs(parts)
        number = np.searchsorted(used, number)
        if first:
            number, gap = np.insert(number, offsets[:-1], len(used)), np.insert(gap, offsets[:-1], -1)
            offsets = offsets + np.arange(len(offsets))
        where, ends = gather(np.arange(lengths.sum()), start[number], lengths[number])
        said_gaps = np.unique(gap[gap >= 0])
        means = [parts[i].astype(np.float32).mean(0) for i in np.searchsorted(used, said_gaps)]
        gaps = np.array(means, np.float16).reshape(len(means), self.encoder.size)
        gap = np.where(gap >= 0, np.searchsorted(said_gaps, gap), -1)
        return Inputs(
            np.concatenate(parts), where, np.repeat(gap, lengths[number]), ends[offsets], gaps, self.columns.matrix(batch)
        )

    def _states(self, texts: Sequence[str], trim: tuple[int, int], tell: Tell | None) -> list[Array]:
        states = self.states.of([one[: self.longest] for one in self.encoder.tokens(texts)], tell)
        return [part[trim[0] : len(part) - trim[1]] for part in states]


def longest(params: BertParams) -> int:
    """Most states of a row: both budgets, and room for special tokens."""
    return params.max_tokens + params.said_tokens + 4


def _runs(parts: Sequence[Array]) -> tuple[Array, Array]:
    lengths = np.array([len(part) for part in parts], np.int64)
    return np.cumsum(lengths) - lengths, lengths
