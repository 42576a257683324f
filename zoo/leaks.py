"""Guards against leaks: what would show if a row knew its label, each with what it saw and what to do about it.

They look at labelled rows and features; they do not know what a stack is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import sqrt

import numpy as np

from zoo.cache import Cache
from zoo.contract import silent
from zoo.evaluation.bootstrap import difference_of_means
from zoo.evaluation.classes import class_losses
from zoo.evaluation.columns import single
from zoo.evaluation.metrics import Ranked, auc
from zoo.fitting import Fit, Member, PluginSource, load_fitted, run_fits, seen
from zoo.jobs import Executor, Serial
from zoo.plugin import PADDING, Array, Artefact, Column, Examples, Explains, FeatureBatch, Progress, Split, TrainingData
from zoo.vocabulary import Vocabulary

TARGET_LIKE = 0.98
"""A single feature of this AUC is named."""
FEWEST = 10
"""Rows of each class without which an AUC says nothing."""
SAMPLE = 20_000
"""Rows that guards look at, at most."""
FITS = 3
"""Fits that the guards take."""
PATIENCE = 60.0
"""Seconds that one fit of the guards may take unasked: a slower member is fitted on fewer rows."""
LEAST = 1_000
"""Rows to fit on below which a model learns little but noise."""
SURE = 3.29
"""Standard deviations: one chance in two thousand on one side."""
CANARY = "canary"
"""The random column."""
STRONG = 0.5
"""A random column that moves scores by this share of what the strongest feature does is as good as chosen."""


@dataclass(frozen=True)
class Finding:
    """What one guard saw. fine: nothing to do; else ``advice`` says what. tried: whether it looked at all; ``seen`` says why not."""

    guard: str
    fine: bool
    seen: str
    advice: str = ""
    tried: bool = True


def untried(guard: str, why: str) -> Finding:
    return Finding(guard, True, f"not tried: {why}", tried=False)


def look(rows: Split, data: TrainingData, test: TrainingData) -> list[Finding]:
    """The guards that cost next to nothing; data, test: the split's rows with features."""
    if data.kind.kind == "ranking":  # a row without a label of its own tells of nothing later
        rows = replace(rows, train=rows.train.take(np.flatnonzero(rows.train.target != PADDING)))
    return [newer(data.batch, test.batch), overlap(rows), target_like(data)]


def newer(*batches: FeatureBatch) -> Finding:
    """No event that a row's features hold is at or after the row's own time."""
    late = sum(int((batch.newest >= batch.as_of).sum()) for batch in batches)
    rows = sum(map(len, batches))
    if not late:
        return Finding("newer features", True, f"none of {rows:,} rows sees an event at or after its own time")
    return Finding(
        "newer features",
        False,
        f"{late:,} of {rows:,} rows see an event at or after their own time",
        "declare the views of the task's feature service without include_equal, and give file-backed views a timestamp_field that "
        "says when a value became known",
    )


def overlap(rows: Split) -> Finding:
    """No row is on both sides, and no training label tells of the time after its own user's test row."""
    train, test = _keys(rows.train, rows.test)
    both = int(np.isin(test, train).sum())
    if both:
        return Finding(
            "overlap",
            False,
            f"{both:,} of {len(test):,} test rows are training rows too: the same keys at the same time",
            "part them in the task's split: a row belongs to one side",
        )
    first = {name: values[:1] for name, values in rows.train.keys.items()}
    user = next(iter(first), None)
    if user is None:
        return untried("overlap", "rows have no key")
    who, here = _codes(rows.train.keys[user], rows.test.keys[user])
    size = int(max(who.max(initial=-1), here.max(initial=-1))) + 1
    begins = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(begins, here, rows.test.time)
    late = rows.train.known_at > begins[who]
    if late.any():
        return Finding(
            "overlap",
            False,
            f"{int(late.sum()):,} of {len(who):,} training labels became known only after a test row of the same {user}, the first at "
            f"{_instant(int(rows.train.known_at[late].min()))}",
            "let the task's split keep only training rows whose known_at is at or before the first test row",
        )
    shared = len(np.intersect1d(who, here))
    return Finding(
        "overlap",
        True,
        f"no row is on both sides; {shared:,} of {len(np.unique(here)):,} {user} of the test have earlier rows in training",
    )


def target_like(data: TrainingData) -> Finding:
    """No single feature tells the label by itself: an AUC above ``TARGET_LIKE`` is named."""
    if data.kind.kind not in ("binary", "multiclass"):
        return untried("target-like features", f"the target is {data.kind.kind}")
    found = single_features(data)
    named = {name: value for name, value in found.items() if value > TARGET_LIKE}
    if not found:
        return untried("target-like features", f"fewer than {FEWEST} rows of a class")
    if not named:
        name, value = max(found.items(), key=lambda each: each[1])
        return Finding("target-like features", True, f"the strongest single feature is {name}, AUC {value:.3f}")
    listed = ", ".join(f"{name} (AUC {value:.4f})" for name, value in sorted(named.items(), key=lambda each: -each[1])[:5])
    return Finding(
        "target-like features",
        False,
        f"by itself tells the label: {listed}{', ...' if len(named) > 5 else ''}",
        "see whether it is written after the label is known (a status, a closing date, a total that is updated later); if so, leave it out "
        "of the feature service, or out of a member with drop in zoo.toml",
    )


def single_features(data: TrainingData) -> dict[str, float]:
    """Feature -> its AUC for the label, the larger of both directions and of all classes; empty where a class has too few rows.

    A sequence counts by its length, newest value and mean; a code by the share of its label among other rows.
    """
    data = _sample(data)
    classes = [1] if data.kind.width == 1 else range(data.kind.width)
    targets = [(data.target == k).astype(np.float64) for k in classes]
    targets = [each for each in targets if FEWEST <= each.sum() <= len(each) - FEWEST]
    out: dict[str, float] = {}
    for target in targets:
        for name, column in single(data.batch).items():
            value = _auc(target, _shares(column.values, target) if column.is_code else column.values)
            out[name] = max(out.get(name, 0.0), value, 1 - value)
    return out


@dataclass(frozen=True)
class Runs:
    """How the guards' fits, ``FITS`` of them, are run."""

    source: PluginSource
    executor: Executor = Serial()  # noqa: RUF009 - it holds nothing
    cache: Cache | None = None
    progress: Progress = silent

    def of(self, fit: Fit, data: TrainingData, done: int) -> Artefact:
        """The result of one fit, before which ``done`` of them are."""

        def say(_: float, text: str) -> None:
            self.progress((done + 1) / FITS, text)

        [result] = run_fits([fit], data, self.source, self.executor, self.cache, say)
        return result.artefact

    def scored(self, member: Member, data: TrainingData, train: Array, scored: Array, done: int) -> Array:
        """float32 (n, k): scores of the rows ``scored`` by the member fitted on the rows ``train``."""
        scores: Array = self.of(Fit(f"{member.name}, a guard against leaks", member, train, scored), data, done).arrays["scores"]
        return scores


def fits(
    members: Sequence[Member],
    data: TrainingData,
    folds: Sequence[tuple[Array, Array]],
    groups: Array,
    seconds: Mapping[str, float],
    *,
    anyhow: bool = False,
    source: PluginSource,
    executor: Executor = Serial(),  # noqa: B008 - it holds nothing
    cache: Cache | None = None,
    progress: Progress = silent,
) -> list[Finding]:
    """The guards that fit a member: the one that is quickest, on a sample of the last fold's rows.

    groups: (n,), whom each row is of. seconds: of all folds, by member. The sample holds ``SAMPLE`` rows, or as many as a fit of
    ``PATIENCE`` seconds takes, unless ``anyhow``; where these are fewer than ``LEAST``, nothing is tried.
    """
    member = min(members, key=lambda each: seconds.get(each.name, np.inf))
    names = ("shuffled labels", "canary")
    if not folds or data.kind.kind not in ("binary", "multiclass"):
        why = "there is no fold" if not folds else f"the target is {data.kind.kind}"
        return [untried(name, why) for name in names]
    each = seconds.get(member.name, np.inf) / max(1, sum(len(train) for train, _ in folds))  # seconds a row
    most = SAMPLE if anyhow or each * SAMPLE <= PATIENCE else int(PATIENCE / each)
    if most < min(LEAST, len(folds[-1][0])):
        why = f"in {PATIENCE:.0f} s the quickest member, {member.name}, learns from {most:,} rows; to wait longer: zoo train --check-leaks"
        return [untried(name, why) for name in names]
    rng = np.random.default_rng(0)
    train, scored = (np.sort(rng.permutation(part)[:most]) for part in folds[-1])
    data, groups = data.take(np.concatenate([train, scored])), groups[np.concatenate([train, scored])]
    data = replace(data, batch=data.batch.compact())
    train, scored = np.arange(len(train)), np.arange(len(train), len(data))
    runs = Runs(source, executor, cache, progress)
    found = [shuffled(member, data, train, scored, runs), canary(member, data, train, scored, groups, runs)]
    if most >= min(SAMPLE, len(folds[-1][0])):
        return found
    short = f"; on {len(train):,} of {len(folds[-1][0]):,} rows, as many as it learns from in {PATIENCE:.0f} s"
    return [replace(each, seen=each.seen + short) if each.tried else each for each in found]


def shuffled(member: Member, data: TrainingData, train: Array, scored: Array, runs: Runs) -> Finding:
    """A member fitted on labels dealt anew must not tell those of the rows that it scores, dealt anew too, better than chance."""
    rng = np.random.default_rng(1)
    target = data.target.copy()
    for part in (train, scored):
        target[part] = target[rng.permutation(part)]
    dealt = replace(data, target=target)
    scores = runs.scored(member, dealt, train, scored, 0)
    kind = 0 if data.kind.width == 1 else int(np.bincount(target[scored].astype(np.int64)).argmax())
    truth = target[scored] if data.kind.width == 1 else (target[scored] == kind).astype(np.float64)
    ones = float(truth.sum())
    zeros = len(truth) - ones
    if min(ones, zeros) < FEWEST:
        return untried("shuffled labels", f"fewer than {FEWEST} rows of a class")
    value, spread = _auc(truth, scores[:, kind]), sqrt((ones + zeros + 1) / (12 * ones * zeros))
    told = f"{member.name} on shuffled labels has AUC {value:.3f}; chance is 0.5, {SURE * spread:.3f} at most above it"
    if value <= 0.5 + SURE * spread:
        return Finding("shuffled labels", True, told)
    return Finding(
        "shuffled labels",
        False,
        told,
        f"the labels of scored rows reach {member.name}: look for state that its plugin keeps between fits, and for rows that are in both "
        "sides of a fold (zoo_folds)",
    )


def canary(member: Member, data: TrainingData, train: Array, scored: Array, groups: Array, runs: Runs) -> Finding:
    """A random column must neither lower the loss of a member nor be among what moves its scores most."""
    model, _ = member.resolve(runs.source.load(), data.kind)
    beside = replace(data, batch=data.batch.with_block(CANARY, {CANARY: Column(np.random.default_rng(2).normal(size=len(data)))}))
    if CANARY not in beside.batch.select(model.plugin.spec.inputs):
        return untried("canary", f"{member.name} reads only {', '.join(model.plugin.spec.inputs)}")
    plain = runs.scored(member, data, train, scored, 1)
    fit = Fit(f"{member.name} beside a random column", member, train)
    fitted = load_fitted(model.plugin, runs.of(fit, beside, 2))
    vocabulary = Vocabulary.of(beside.take(train))
    batch = seen(beside.batch.take(scored), vocabulary, model.plugin.spec.inputs)
    losses = [_losses(data.target[scored], each) for each in (fitted.predict(batch), plain)]
    gain = difference_of_means("log_loss", *losses, groups=groups[scored])
    reach = (gain.high - gain.low) / 2 * SURE / 1.96
    told = f"beside a random column the log-loss of {member.name} changes by {gain.value:+.5f} (up to {reach:.5f} is chance)"
    if gain.value < -reach:
        return Finding(
            "canary",
            False,
            told,
            "a column of noise cannot help: compare on more rows, and look for rows that are in both sides of a fold (zoo_folds)",
        )
    if not isinstance(fitted, Explains):
        return Finding("canary", True, told)
    moved = fitted.explain(batch)
    strength = dict(zip(moved.names, np.abs(moved.values).mean(axis=(0, 1)), strict=True))
    own = strength.pop(CANARY, 0.0)
    name, most = max(strength.items(), key=lambda each: each[1], default=("(none)", 0.0))
    below = sum(each <= own for each in strength.values())
    told += f"; {below} of {len(strength)} columns move its scores no more than the random one does"
    if own <= STRONG * most:
        return Finding("canary", True, told)
    return Finding(
        "canary",
        False,
        f"{told}, which does so {own / most if most else 1:.0%} as much as the strongest, {name}",
        f"{member.name} learns noise: give it more rows or fewer leaves, or leave out columns that say nothing",
    )


def _losses(target: Array, scores: Array) -> Array:
    return class_losses(target, np.concatenate([1 - scores, scores], axis=1) if scores.shape[1] == 1 else scores)


def _auc(target: Array, values: Array) -> float:
    ranked, _ = Ranked.of(target, np.where(np.isnan(values), -np.inf, values))
    return float(auc(ranked, np.ones((1, len(target))))[0])


def _sample(data: TrainingData) -> TrainingData:
    if len(data) <= SAMPLE:
        return data
    return data.take(np.sort(np.random.default_rng(0).permutation(len(data))[:SAMPLE]))


def _shares(codes: Array, target: Array) -> Array:
    """float64 (n,): the label's share among rows of the same code in the other half, one row of the overall share added."""
    half, size, share = np.random.default_rng(0).permutation(len(codes)) % 2, int(codes.max(initial=0)) + 1, target.mean()
    out = np.empty(len(codes))
    for own in (0, 1):
        other, here = half != own, half == own
        ones, count = np.bincount(codes[other], target[other], size), np.bincount(codes[other], minlength=size)
        out[here] = ((ones + share) / (count + 1))[codes[here]]
    return out


def _codes(a: Array, b: Array) -> tuple[Array, Array]:
    number = np.unique(np.concatenate([a, b]), return_inverse=True)[1]
    return number[: len(a)], number[len(a) :]


def _keys(a: Examples, b: Examples) -> tuple[Array, Array]:
    """int64: one number for each distinct keys and time, alike on both sides."""
    parts = [_codes(a.keys[name], b.keys[name]) for name in a.keys] + [_codes(a.time, b.time)]
    table = np.stack([np.concatenate(each) for each in parts], axis=1)
    number = np.unique(table, axis=0, return_inverse=True)[1].ravel()
    return number[: len(a)], number[len(a) :]


def _instant(time: int) -> str:
    return datetime.fromtimestamp(time / 1e6, UTC).isoformat(sep=" ", timespec="seconds")
