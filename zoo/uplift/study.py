"""A trial from its rows to a tested choice: which learner, how good on rows that took no part in choosing, what policies are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.contract import silent
from zoo.errors import UsageError
from zoo.evaluation import compare
from zoo.evaluation.bootstrap import Difference, Estimate
from zoo.evaluation.uplift import best_arms, compare_qini, evaluate_qini, policy_values, qini_curve
from zoo.fitting import Member, PluginSource
from zoo.jobs import Executor
from zoo.plugin import Array, Progress
from zoo.uplift.choice import HERE, SAFE, STAYS, Candidate, Choice, Effects, candidates, choose, cross_fitted, dealt, fit
from zoo.uplift.learners import Base
from zoo.uplift.trial import Trial

LEAST = 50
"""Rows that each arm needs at least."""
SOME = 10
"""Outcomes other than 0 among them: fewer are in no part of a cross-fitting."""
RESPONSE = "response:"
SURE = 0.05
"""Chance, at most, of being told that a trial is none although it is one, over all its arms and all models that try."""
DRAWN = 100
"""Resamples for each arm and model, at least: of fewer no p value can be as small as its share of ``SURE``."""


@dataclass(frozen=True)
class Study:
    """record: JSON-ready. policy: the candidate whose best arms are taken, fitted on all rows."""

    record: dict[str, Any]
    policy: Effects


@dataclass(frozen=True)
class Randomised:
    """How well features tell who was treated, on held-out rows: by arm and by the model that tries, the AUC and the p value of its being
    0.5. Where one is above 0.5, with ``SURE`` shared out among all arms and models (Bonferroni), treatment looks not given at random."""

    auc: Mapping[str, Mapping[str, tuple[Estimate, float]]]

    @property
    def told(self) -> dict[str, tuple[str, Estimate]]:
        """Arm -> the model that tells best, and its AUC."""
        out = {}
        for arm, by in self.auc.items():
            above = {name: auc for name, (auc, p) in by.items() if auc.value > 0.5 and self._by_chance(p) < SURE}
            if above:
                out[arm] = max(above.items(), key=lambda each: each[1].value)
        return out

    @property
    def warning(self) -> str:
        """Empty where there is nothing to warn of."""
        if not self.told:
            return ""
        seen = "; ".join(f"{arm}: AUC {auc} of {name}" for arm, (name, auc) in self.told.items())
        least = min(self._by_chance(self.auc[arm][name][1]) for arm, (name, _) in self.told.items())
        return (
            f"treatment looks not given at random: features tell who was treated ({seen}; 0.5 tells nothing, and chance alone "
            f"shows as much in at most {least:.1%} of randomised trials). If it was not, uplift, Qini and policy values below are "
            "differences between unlike customers. Leave out columns that became known after the treatment, ask how rows came by their "
            "arm, or run a randomised trial"
        )

    def _by_chance(self, p: float) -> float:
        """How often, at most, any arm and model of a randomised trial has such a p value."""
        return min(1.0, p * sum(len(by) for by in self.auc.values()))


def randomised(rows: Trial, bases: Sequence[Base], *, folds: int = 5, seed: int = 0, resamples: int = 500) -> Randomised:
    """Whether treatment can be predicted from features: each arm against the first, every row scored by models of other rows.

    bases: each tries, for what a straight line does not see trees may.
    """
    found, resamples = {}, max(resamples, DRAWN * (len(rows.arms) - 1) * len(bases))
    for arm in range(1, len(rows.arms)):
        pair = rows.against(arm)
        whose = np.arange(len(pair)) if pair.users is None else np.unique(pair.users, return_inverse=True)[1]
        part = (np.random.default_rng([seed, arm]).permutation(whose.max() + 1) % folds)[whose]
        treated, chance, by = pair.arm.astype(np.float64), np.zeros(len(pair)), {}
        for base in bases:
            score = np.zeros(len(pair))
            for number in range(folds):
                inside, outside = np.flatnonzero(part != number), np.flatnonzero(part == number)
                model = base.fit(pair.batch.take(inside), treated[inside])
                score[outside] = model(pair.batch.take(outside))
            how: dict[str, Any] = {"groups": pair.users, "cuts": part, "resamples": resamples, "seed": seed}
            apart = compare(treated, score, chance, metric="auc", **how)  # that of equal scores is 0.5 in every resample
            by[base.member.name] = Estimate(0.5 + apart.value, 0.5 + apart.low, 0.5 + apart.high), apart.p_value
        found[rows.arms[arm]] = by
    return Randomised(found)


def study(
    rows: Trial,
    members: Sequence[Member],
    *,
    budget: int | None = None,
    of_rows: int | None = None,
    declared: bool | None = None,
    seed: int = 0,
    resamples: int = 1000,
    source: PluginSource = PluginSource(),  # noqa: B008 - frozen and empty
    executor: Executor = HERE,
    progress: Progress = silent,
) -> Study:
    """Choose on one half of the rows, test on the other, then fit what was chosen on all.

    budget: of ``of_rows`` rows that are to be decided on (None: of all these), how many may be contacted; choice and test are within the
    same share of their rows. declared: what the caller says of the
    treatment; False is warned of like a failed test. Raises UsageError for arms of too few rows.
    """
    for arm, name in enumerate(rows.arms):
        if (count := int((rows.arm == arm).sum())) < LEAST:
            raise UsageError(f"arm {name!r} has {count} rows; expected at least {LEAST}, or leave it out")
        if (some := int(np.count_nonzero(rows.outcome[rows.arm == arm]))) < SOME:
            raise UsageError(
                f"arm {name!r} has {some} rows with an outcome; expected at least {SOME}: wait for more, or leave it out"
            )
    plugins, of = source.load(), candidates(members)
    check = randomised(rows, [Base(member, plugins) for member in members], seed=seed)
    half = dealt(rows, 2, np.random.default_rng([seed, 7]))
    train, test = (rows.take(np.flatnonzero(half == side)) for side in (0, 1))
    share = None if budget is None else min(1.0, budget / max(1, len(rows) if of_rows is None else of_rows))
    values = cross_fitted(
        of, train, seed=seed, share=share, source=source, executor=executor, progress=lambda d, t: progress(0.8 * d, t)
    )
    arms = range(1, len(rows.arms))
    stays = f"{STAYS}:{members[0].name}"
    picked = [choose({name: each[:, arm - 1] for name, each in values.items()}, stays) for arm in arms]
    # what is likely of the treated is no effect: it orders rows, and would contact everybody
    worths = {name: each[:, -1] for name, each in values.items() if not name.startswith(RESPONSE)}
    policy = choose(worths, SAFE if share is None else stays)  # within a budget, one arm to all is an order at random
    progress(0.8, "test")
    fitted = fit(of, train, plugins)
    scores = {name: each(test.batch) for name, each in fitted.items()}
    board = {rows.arms[arm]: _board(test, arm, scores, picked[arm - 1], resamples, seed) for arm in arms}
    allowed = None if share is None else round(share * len(test))
    worth = _policies(train, test, scores[policy.chosen], allowed, resamples, seed)
    warning = check.warning or ("the caller says that treatment was not given at random" if declared is False else "")
    record = {
        "kind": "uplift",
        "rows": len(train),
        "test_rows": len(test),
        "arms": {name: int((rows.arm == arm).sum()) for arm, name in enumerate(rows.arms)},
        "features": list(rows.batch.names),
        "randomised": {
            "declared": declared,
            "auc": {
                arm: {name: {**_estimate(auc), "p_value": _finite(p)} for name, (auc, p) in by.items()}
                for arm, by in check.auc.items()
            },
        },
        "warning": warning,
        "uplift": board,
        "policy": {"chosen": policy.chosen, "budget": budget, "share": share, "values": worth},
    }
    progress(0.9, "fitting on all rows")
    return Study(record, fit(_with_parts(of, policy.chosen), rows, plugins)[policy.chosen])


def _with_parts(of: Sequence[Candidate], name: str) -> list[Candidate]:
    parts = {part for each in of if each.name == name for part in each.parts}
    return [each for each in of if each.name in {name} | parts]


def _board(test: Trial, arm: int, scores: Mapping[str, Array], choice: Choice, resamples: int, seed: int) -> dict[str, Any]:
    """Every candidate on the test rows of one arm and the first, with the curve of the chosen one and of the perfect order."""
    pair = np.flatnonzero((test.arm == arm) | (test.arm == 0))
    outcome, treated = test.outcome[pair], (test.arm[pair] == arm).astype(np.float64)
    how: dict[str, Any] = {"groups": None if test.users is None else test.users[pair], "resamples": resamples, "seed": seed}
    lines = {}
    for name, each in scores.items():
        line: dict[str, Any] = {"qini": _estimate(evaluate_qini(outcome, each[pair, arm - 1], treated, **how))}
        line["chosen_on"] = {"qini": float(np.nanmean(choice.values[name])), "against_chosen": list(choice.better[name])}
        if name != choice.chosen:
            chosen = scores[choice.chosen][pair, arm - 1]
            line["difference"] = _difference(compare_qini(outcome, each[pair, arm - 1], chosen, treated, **how))
        lines[name] = line
    curves = {"chosen": scores[choice.chosen][pair, arm - 1], "perfect": outcome * (2 * treated - 1)}
    thin = {name: qini_curve(outcome, each, treated).thinned() for name, each in curves.items()}
    everybody = {name: np.full(len(pair), float(name)) for name in ("0", "1")}
    effect = policy_values(outcome, treated.astype(np.int64), everybody, against="0", **how)["1"][1]
    assert effect is not None
    return {
        "chosen": choice.chosen,
        "rows": len(pair),
        "effect": _finite(effect.value),
        "effect_interval": [_finite(effect.low), _finite(effect.high)],
        "lines": lines,
        "curve": {name: {"contacted": c.contacted.tolist(), "gain": c.gain.tolist()} for name, c in thin.items()},
    }


def _policies(
    train: Trial, test: Trial, effects: Array, budget: int | None, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Policies on the test rows, each with the one it is held ``against``: the arm to all that was best in training; within a budget
    that of contacts to as many rows drawn at random, for to contact more is no policy there."""
    to_all = {f"{name} to all": np.full(len(test), arm) for arm, name in enumerate(train.arms)}
    worth = [float(train.outcome[train.arm == arm].mean()) for arm in range(len(train.arms))]
    how: dict[str, Any] = {"groups": test.users, "resamples": resamples, "seed": seed}
    policies, against = {**to_all, "best arm for each": best_arms(effects)}, f"{train.arms[int(np.argmax(worth))]} to all"
    found = policy_values(test.outcome, test.arm, policies, against=against, **how)
    out = {name: _policy(*each, against, int((policies[name] > 0).sum())) for name, each in found.items()}
    if budget is not None:
        within = best_arms(effects, budget)
        count, arm = int((within > 0).sum()), 1 + int(np.argmax(worth[1:]))
        drawn = np.zeros((len(test), len(train.arms)))
        drawn[:, [0, arm]] = 1 - count / len(test), count / len(test)
        at_random = f"{train.arms[arm]} to as many at random"
        policies = {at_random: drawn, "best arm within the budget": within}
        found = policy_values(test.outcome, test.arm, policies, against=at_random, **how)
        out |= {name: _policy(*each, at_random, count) for name, each in found.items()}
    return out


def _policy(value: Estimate, apart: Difference | None, against: str, contacted: int) -> dict[str, Any]:
    line = {"value": _estimate(value), "contacted": contacted}
    return line if apart is None else {**line, "against": against, "difference": _difference(apart)}


def _estimate(each: Estimate) -> dict[str, Any]:
    return {"value": _finite(each.value), "interval": [_finite(each.low), _finite(each.high)]}


def _difference(each: Difference) -> dict[str, Any]:
    return {"value": _finite(each.value), "interval": [_finite(each.low), _finite(each.high)], "p_value": _finite(each.p_value)}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
