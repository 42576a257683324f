"""Learners of uplift over any model of the zoo that takes a binary target: what a treatment changes, by features.

Each fits rows of two arms (0 and 1) and gives a function of features: the outcome with treatment less that without, float64 (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from zoo.contract import silent
from zoo.fitting import Member, checked, seen
from zoo.linear import columns_of, sigmoid, table_of
from zoo.manager import Plugins
from zoo.plugin import PADDING, Array, Column, FeatureBatch, Target, TrainingData
from zoo.uplift.averaged import interactions
from zoo.uplift.rules import Score
from zoo.uplift.trial import Trial
from zoo.vocabulary import Vocabulary

FALLBACK = "linear"
"""Learns amounts where a member takes binary targets only."""
CROSS = 5
"""Parts of the rows for what must not be fitted on the row that it corrects."""


@dataclass(frozen=True)
class Base:
    """A member as learners use it: fit some rows, score any."""

    member: Member
    plugins: Plugins

    def fit(
        self, batch: FeatureBatch, target: Array, *, binary: bool = True, weight: Array | None = None, seed: int = 0
    ) -> Score:
        """Expected target by features. Where the member takes no amounts and they are asked for, the model ``linear`` does it."""
        kind = Target("binary" if binary else "value")
        member = replace(self.member, seed=self.member.seed + seed)
        if kind.kind not in self.plugins.model(member.model).plugin.spec.targets and not binary:
            member = Member(FALLBACK, FALLBACK, seed=member.seed)
        model, params = member.resolve(self.plugins, kind)
        vocabulary, inputs = Vocabulary.fit(batch), model.plugin.spec.inputs
        weight = np.ones(len(target)) if weight is None else weight
        rows = TrainingData(seen(batch, vocabulary, inputs), target.astype(np.float64), weight, batch.as_of, kind)
        fitted = model.plugin.fit(rows, params=params, seed=member.seed, progress=silent)

        def score(batch: FeatureBatch) -> Array:
            known = seen(batch, vocabulary, inputs)
            return checked(fitted.predict(known), len(batch), kind, member.name)[:, 0].astype(np.float64)

        return score


def single(rows: Trial, base: Base) -> Score:
    """S-learner (Künzel et al., 2019): one model with the treatment among its features, asked with it and without.

    Beside the treatment stand the features of treated rows as columns of their own, so that a linear model can tell other effects.
    """
    model = base.fit(_with_treatment(rows.batch, rows.arm), rows.outcome, binary=rows.binary)

    def score(batch: FeatureBatch) -> Array:
        ones = np.ones(len(batch), np.int64)
        effect: Array = model(_with_treatment(batch, ones)) - model(_with_treatment(batch, 0 * ones))
        return effect

    return score


def two(rows: Trial, base: Base) -> Score:
    """T-learner: a model of the treated rows less one of the others."""
    treated, others = (base.fit(part.batch, part.outcome, binary=rows.binary) for part in _parts(rows))
    return lambda batch: treated(batch) - others(batch)


def cross(rows: Trial, base: Base) -> Score:
    """X-learner (Künzel et al., 2019): each row's effect by the other arm's model, learnt for either arm and mixed by the arms' shares."""
    treated, others = _parts(rows)
    of_treated, of_others = (base.fit(part.batch, part.outcome, binary=rows.binary) for part in (treated, others))
    one = base.fit(treated.batch, treated.outcome - of_others(treated.batch), binary=False)
    other = base.fit(others.batch, of_treated(others.batch) - others.outcome, binary=False)
    share = len(treated) / len(rows)
    return lambda batch: share * other(batch) + (1 - share) * one(batch)


def doubly_robust(rows: Trial, base: Base) -> Score:
    """DR-learner (Kennedy, 2023): a regression on the two models' difference, corrected by inverse propensity where they erred.

    The two models of a row are fitted on the other parts of the rows.
    """
    part = np.random.default_rng(base.member.seed).permutation(len(rows)) % CROSS
    share, pseudo = rows.arm.mean(), np.zeros(len(rows))
    for number in range(CROSS):
        inside, outside = np.flatnonzero(part != number), np.flatnonzero(part == number)
        held = rows.take(outside)
        treated, others = (base.fit(p.batch, p.outcome, binary=rows.binary)(held.batch) for p in _parts(rows.take(inside)))
        wrong = np.where(held.arm == 1, (held.outcome - treated) / share, -(held.outcome - others) / (1 - share))
        pseudo[outside] = treated - others + wrong
    return base.fit(rows.batch, pseudo, binary=False)


def transformed(rows: Trial, base: Base) -> Score:
    """Class transformation (Jaskowski and Jaroszewicz, 2012): how likely the outcome is what the arm wants it to be.

    Rows are weighed as if both arms were as large. Amounts are transformed by inverse propensity instead (Athey and Imbens, 2016).
    """
    share = rows.arm.mean()
    of_arm = np.where(rows.arm == 1, share, 1 - share)
    if not rows.binary:
        return base.fit(rows.batch, rows.outcome * np.where(rows.arm == 1, 1, -1) / of_arm, binary=False)
    model = base.fit(rows.batch, (rows.outcome == rows.arm).astype(np.float64), weight=0.5 / of_arm)
    return lambda batch: 2 * model(batch) - 1


def response(rows: Trial, base: Base) -> Score:
    """No uplift at all: the outcome of treated rows, which is what is often used in its place."""
    treated, _ = _parts(rows)
    return base.fit(treated.batch, treated.outcome, binary=rows.binary)


def shrunk(rows: Trial, base: Base) -> Score:
    """One effect for all on the scale of a model of the outcome, changed by as few variables as the rows insist on.

    The outcome, on the scale of logits where it is 0 or 1, is a straight line in how likely it is anyhow (by a model of both arms that
    was not fitted on the row; Kent et al., 2020, "The PATH statement") and in the treatment. Each column of the model ``linear``, and
    that likelihood itself, may change the line of the treatment, by coefficients that ``interactions`` keeps small. Where nothing does,
    rows come in the order of a response model.
    """
    part = np.random.default_rng(base.member.seed).permutation(len(rows)) % CROSS
    likely = np.zeros(len(rows))
    for number in range(CROSS):
        inside, outside = np.flatnonzero(part != number), np.flatnonzero(part == number)
        model = base.fit(rows.batch.take(inside), rows.outcome[inside], binary=rows.binary)
        likely[outside] = model(rows.batch.take(outside))
    model, share, columns = base.fit(rows.batch, rows.outcome, binary=rows.binary), rows.arm.mean(), columns_of(rows.batch)

    def told(likely: Array, batch: FeatureBatch) -> Array:
        p = np.clip(likely, 1e-4, 1 - 1e-4)
        first = (np.log(p) - np.log1p(-p) if rows.binary else likely)[:, None]
        return np.concatenate([first, table_of(batch, columns)], axis=1) if columns else first

    raw = told(likely, rows.batch)
    mean, scale = raw.mean(axis=0), raw.std(axis=0)
    varies = scale > 1e-9
    widths = [1, *(each.table(rows.batch.column(each.name)).shape[1] for each in columns)]
    variable = np.unique(np.repeat(np.arange(len(widths)), widths)[varies], return_inverse=True)[1]

    def standard(raw: Array) -> Array:
        return np.asarray((raw - mean)[:, varies] / scale[varies])

    def anyhow(raw: Array) -> Array:
        return np.asarray((raw[:, 0] - mean[0]) / max(scale[0], 1e-9))

    line, change = interactions(standard(raw), variable, anyhow(raw), rows.arm - share, rows.outcome, binary=rows.binary)

    def score(batch: FeatureBatch) -> Array:
        raw = told(model(batch), batch)
        effect = line[1] + standard(raw) @ change
        if not rows.binary:
            return np.asarray(effect)
        middle = line[0] * anyhow(raw) + line[2]
        return np.asarray(sigmoid(middle + (1 - share) * effect) - sigmoid(middle - share * effect))

    return score


LEARNERS: Mapping[str, Callable[[Trial, Base], Score]] = MappingProxyType(
    {"shrunk": shrunk, "response": response, "class": transformed, "s": single, "t": two, "x": cross, "dr": doubly_robust}
)
"""Name -> learner."""


def _parts(rows: Trial) -> tuple[Trial, Trial]:
    return rows.take(np.flatnonzero(rows.arm == 1)), rows.take(np.flatnonzero(rows.arm == 0))


def _with_treatment(batch: FeatureBatch, arm: Array) -> FeatureBatch:
    """The batch with ``treated``, and ``treated:NAME`` for each feature that is a value: as it is where treated, else nothing."""
    block = {"treated": Column(arm.astype(np.float64))}
    for name in batch.names:
        column = batch.stored(name)[1]
        if column.is_sequence or column.is_text:
            continue
        values = batch.column(name).values
        nothing = PADDING if column.is_code else np.nan
        kept = np.where(arm == 1, values, nothing)
        block[f"treated:{name}"] = Column(kept.astype(np.int32 if column.is_code else np.float64), dictionary=column.dictionary)
    return batch.with_block("treatment", block)
