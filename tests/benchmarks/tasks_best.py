"""A stack beside its best member, by log-loss: the member that was best before the test, and the one that these very rows show to be best.

The first is what could have been used in the stack's stead. The second is known in hindsight only, and the best of several on a sample is
partly a lucky one, so its interval holds for all members at once (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from figures import QUICK, Figure

from zoo.contract import Array
from zoo.evaluation.bootstrap import difference_of, resampled
from zoo.evaluation.classes import class_losses

RESAMPLES = 200 if QUICK else 10_000
LEVEL = 0.05


def probabilities(scores: Array) -> Array:
    """(n, k) of classes, of (n, 1) too."""
    return np.concatenate([1 - scores, scores], axis=1) if scores.shape[1] == 1 else scores


def losses(target: Array, scores: Array) -> Array:
    return class_losses(target, probabilities(scores))


def beside_best(
    row: str,
    what: str,
    loss: Mapping[str, Array],
    members: Sequence[str],
    before: Array,
    groups: Array,
    cuts: Array | None = None,
    why: str = "",
) -> list[Figure]:
    """Two figures: the log-loss of the stack less that of its best member, before the test and in hindsight.

    loss: by line, ``stack`` and the members among them, that of each test row (n,). before: (n,), of each row the member that had the least
    loss on the rows that its stack learnt from. groups: (n,), users, drawn as a whole. cuts: (n,), where there are several test cuts, whose
    mean counts. why: of a bound that is missed.
    """
    parts = [np.arange(len(groups))] if cuts is None else [np.flatnonzero(cuts == each) for each in np.unique(cuts)]
    names, which = np.unique(before, return_inverse=True)
    then = np.choose(which, [loss[name] for name in names.tolist()])

    def less(other: Array) -> tuple[Array, list[float]]:
        """On the rows and on users drawn again, (1 + resamples,); and of each cut."""
        apart = loss["stack"] - other

        def compute(weight: Array) -> Array:
            by_cut = [weight[:, rows] @ apart[rows] / weight[:, rows].sum(axis=1) for rows in parts]
            mean: Array = np.mean(by_cut, axis=0)
            return mean

        return resampled(compute, len(apart), groups, RESAMPLES), [float(apart[rows].mean()) for rows in parts]

    def figure(text: str, samples: Array, level: float, must: str = "") -> Figure:
        found = difference_of("log_loss", samples)
        low, high = np.percentile(samples[1:], [50 * level, 100 - 50 * level])
        reached = bool(low <= 0) if must else None
        return Figure(
            id=row,
            what=f"{what}: log-loss of the stack less that of {text}; p {found.p_value:.3f})",
            ours=found.value,
            unit="nats",
            interval=(float(low), float(high)),
            seeds=(0,),
            must=must,
            reached=reached,
            why="" if reached is not False else why or "what was chosen before the test is not what is best after it",
        )

    samples, by_cut = less(then)
    told = ", ".join(f"{value:+.5f}" for value in by_cut)
    blocks = f"; by cut {told}, with the cuts as blocks {_blocks(by_cut)}" if len(by_cut) > 1 else ""
    first = figure(
        f"its best member before the test ({', '.join(names.tolist())}{blocks}",
        samples,
        LEVEL,
        "not above 0 beyond the interval",
    )
    every = {name: less(loss[name])[0] for name in members}
    best = max(every, key=lambda name: every[name][0])
    second = figure(
        f"the member that is best on these very rows, {best} (known in hindsight only; the interval holds for all {len(every)} members at "
        "once: " + ", ".join(f"{name} {each[0]:+.5f}" for name, each in every.items()),
        every[best],
        LEVEL / len(every),
    )
    return [first, second]


def _blocks(values: Sequence[float]) -> str:
    """The t-interval of the mean of a few blocks: what moves all rows of one cut together does not look like chance to users drawn."""
    from scipy.stats import t

    reach = t.ppf(1 - LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"95 % {np.mean(values) - reach:+.5f} to {np.mean(values) + reach:+.5f}"
