"""Rows T7 and T8: what visitors do next and whether they buy, on real logs, against LightGBM on windows tuned with equal effort.

The peer is LightGBM through the plugin ``gbdt``, given the windows (numbers a user) and no sequences. Both sides have as many trials, drawn
alike and judged by log-loss on training rows held out; the stack then combines the chosen models, that of the peer among them. Test rows
are looked at once, at the end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import QUICK, Figure
from tasks_best import beside_best, losses

from zoo.cache import Cache
from zoo.calibration import IDENTITY
from zoo.contract import Array, FeatureBatch, Task, TrainingData
from zoo.evaluation import compare, evaluate
from zoo.evaluation.bootstrap import difference_of_means, estimates_of_means
from zoo.features import Features
from zoo.finals import Scores, choose
from zoo.fitting import Member
from zoo.folds import forward_chaining
from zoo.jobs import Processes
from zoo.manager import plugins
from zoo.stacking import Ensemble, fit_members, out_of_fold, plain_mean, stack
from zoo.tasks.settings import duration, instant
from zoo.training import training_data
from zoo.vocabulary import Vocabulary

SHARED = Path("/work/shared/data")
CUT = "2015-08-15"
FOLDS = 3
"""Blocks of time before the cut that choices are made on."""
TRIALS = 2 if QUICK else 6
"""A side. The stack's are shared by its members."""
RESAMPLES = 200 if QUICK else 10_000
DEPTH = 50 if QUICK else 1
"""Rows of which one is kept in the quick form."""
WORKERS = 2
Folds = Sequence[tuple[Array, Array]]


@dataclass(frozen=True)
class Result:
    """Scores of the test rows by line, (n, k) each, and what was chosen. validation: log-loss of the chosen ones before the cut. said: what
    combines them.
    """

    scores: dict[str, Array]
    test: TrainingData
    groups: Array
    chosen: dict[str, Member]
    validation: dict[str, float]
    said: str

    @property
    def crowded(self) -> float:
        """Share of the test rows that the ten users with most of them have."""
        return float(np.sort(np.bincount(self.groups))[-10:].sum() / len(self.groups))


def opened(folder: Path, events: Path) -> Features:
    """A project made by ``zoo init`` over these events, applied and ingested."""
    zoo = [sys.executable, "-m", "zoo"]
    subprocess.run([*zoo, "init", str(folder), "--events", str(events)], check=True, stdout=subprocess.DEVNULL)
    for command in (["apply"], ["ingest", str(events)]):
        subprocess.run([*zoo, "--repo", str(folder), *command], check=True, stdout=subprocess.DEVNULL)
    return Features.open(folder)


def drawn(count: int, seed: int, **fixed: Any) -> list[dict[str, Any]]:
    """Parameters of LightGBM: the plugin's own first, then drawn."""
    rng = np.random.default_rng(seed)
    out: list[dict[str, Any]] = [dict(fixed)]
    while len(out) < count:
        trees, rate = [(150, 0.06), (300, 0.03), (300, 0.06), (400, 0.03)][rng.integers(4)]
        out.append(
            {
                **fixed,
                "num_trees": trees,
                "learning_rate": rate,
                "num_leaves": int(rng.choice([7, 15, 31])),
                "min_data_in_leaf": int(rng.choice([20, 100, 300])),
                "feature_fraction": float(rng.choice([0.2, 0.4, 0.7])),
                "lambda_l2": float(rng.choice([1.0, 5.0, 20.0])),
            }
        )
    return out


def trials(batch: FeatureBatch, linear: bool) -> dict[str, list[Member]]:
    """What each line may be: the peer's trials, and as many of the stack's other members together."""
    sequences = tuple(name for name in batch.names if batch.stored(name)[1].is_sequence)
    nets = [{"epochs": 3}, {"epochs": 3, "hidden": 64, "pooling": "mean_last"}][: max(1, TRIALS // 3)]
    lines = {
        "windows": [Member(f"windows-{i}", "gbdt", p) for i, p in enumerate(drawn(TRIALS, 0, drop=sequences, num_threads=1))],
        "gru": [Member(f"gru-{i}", "gru", p) for i, p in enumerate(nets)],
        "linear": [Member("linear-0", "linear")] if linear else [],
    }
    rest = TRIALS - len(lines["gru"]) - len(lines["linear"])
    lines["gbdt"] = [Member(f"gbdt-{i}", "gbdt", p) for i, p in enumerate(drawn(rest, 1, num_threads=1))]
    return {name: members for name, members in lines.items() if members}


def chosen(
    data: TrainingData, folds: Folds, work: dict[str, Any], linear: bool = False
) -> tuple[dict[str, Member], dict[str, float]]:
    """The trial of each line with the least log-loss on held-out rows of all folds, and that loss. linear: whether there is such a line."""
    lines = trials(data.batch, linear)
    every = [member for members in lines.values() for member in members]
    held = out_of_fold(every, data, folds, **work)
    target = data.target[held.rows]
    loss = {name: float(losses(target, held.scores[held.rows, at]).mean()) for at, name in enumerate(held.members)}
    print({name: round(value, 5) for name, value in loss.items()}, flush=True)
    best = {name: min(members, key=lambda member: loss[member.name]) for name, members in lines.items()}
    return {name: replace(member, name=name) for name, member in best.items()}, {n: loss[m.name] for n, m in best.items()}


def stacked(
    picked: dict[str, Member],
    data: TrainingData,
    folds: Folds,
    test: FeatureBatch,
    work: dict[str, Any],
    known_at: Array | None = None,
    whose: Array | None = None,
) -> tuple[dict[str, Array], str]:
    """Test scores of the members and of their stack, and what combines them.

    known_at, whose: int64 (n,), when a row's label is known and whose it is; the final model, members and calibration are then chosen on
    later blocks as ``zoo train`` does. Without them, where folds part users and not times, the default final model is taken.
    """
    members, vocabulary, curve = list(picked.values()), Vocabulary.of(data), IDENTITY
    oof = out_of_fold(members, data, folds, **work)
    stay, said = oof.members, "logistic"
    if known_at is None:
        final = stack(oof, data)
    else:
        made = choose(Scores(oof, data, known_at, whose, vocabulary))
        final, curve, stay = made.final, made.calibrator, made.members
        said = f"final model {made.record['chosen']} of {', '.join(stay)}, calibration {made.record['calibration']['chosen']}"
        print(made.record, flush=True)
    whole = Ensemble(tuple(fit_members(members, data, **work)), final, vocabulary, data.kind, curve)
    scores = whole.member_scores(test)
    kept = [at for at, name in enumerate(picked) if name in stay]
    ensemble = replace(whole, members=tuple(whole.members[at] for at in kept))
    out = {name: scores[:, at] for at, name in enumerate(picked)} | {"mean": plain_mean(scores)}
    return out | {"stack": ensemble.combine(test, scores[:, kept])}, said


def cut_result(features: Features, task: Task, settings: dict[str, Any], cache: Path) -> Result:
    """A task tested from the cut on, with what was chosen before it."""
    view = features.reader.view()
    task = task.resolved(view, settings)
    assert task.split is not None
    rows = task.split(view, settings, instant(CUT), None)
    train, test = (part.take(np.arange(0, len(part), DEPTH)) for part in (rows.train, rows.test))
    data, later = training_data(features, task, train), training_data(features, task, test)
    work = {"executor": Processes(WORKERS), "cache": Cache(cache)}
    folds = forward_chaining(train.time, train.known_at, FOLDS)
    # on several blocks: a trial that is best on one of them may fail on the next; the plain model learns no classes
    picked, held_out = chosen(data, folds, work, linear=data.kind.kind == "binary" and not QUICK)
    whose, groups = (np.unique(part.keys["user_id"], return_inverse=True)[1] for part in (train, test))
    scores, said = stacked(picked, data, folds, later.batch, work, train.known_at, whose)
    return Result(scores, later, groups, picked, held_out, said)


def relative(result: Result, what: str) -> list[Figure]:
    """The stack's log-loss beside the peer's, with the paired test over users, and beside its best member's."""
    target = result.test.target
    loss = {name: losses(target, scores) for name, scores in result.scores.items()}
    ours, peer = loss["stack"], loss["windows"]
    given: dict[str, Any] = {"groups": result.groups, "resamples": RESAMPLES}
    difference = difference_of_means("log_loss", ours, peer, **given)
    means = estimates_of_means(loss, result.groups, resamples=200)
    print({name: str(each) for name, each in means.items()}, difference, result.chosen, flush=True)
    reached = difference.value < 0 and difference.p_value < 0.01
    low, high = difference.low, difference.high
    best = min(result.validation, key=lambda name: result.validation[name])
    first = Figure(
        id="T7" if what.startswith("purchase") else "T7 next action",
        what=f"retailrocket_mb from {CUT}, {what}: log-loss of {len(target):,} rows of {result.groups.max() + 1:,} users "
        f"(stack less peer: {difference.value:.4f}, 95 % {low:.4f} to {high:.4f}, p {difference.p_value:.4f}; "
        + ", ".join(f"{name} {each.mean():.4f}" for name, each in loss.items())
        + f"; {result.said})",
        ours=float(ours.mean()),
        peer=float(peer.mean()),
        peer_name=f"LightGBM on windows, {TRIALS} trials a side",
        unit="nats",
        interval=(float(peer.mean() + low), float(peer.mean() + high)),
        seeds=(0,),
        must="lower, p < 0.01",
        reached=reached,
        why=""
        if reached
        else f"the interval of the paired difference is {low:.4f} to {high:.4f}: ten of {result.groups.max() + 1} users have "
        f"{result.crowded:.0%} of the test rows, and the order of what was chosen before the cut ("
        + ", ".join(f"{name} {value:.4f}" for name, value in result.validation.items())
        + ") is not that after it",
    )
    before, where = np.repeat(best, len(target)), f"retailrocket_mb from {CUT}, {what}"
    return [first, *beside_best(first.id, where, loss, list(result.validation), before, result.groups)]


def t7() -> list[Figure]:
    """Purchase within 7 days of a cart or view."""
    return retailrocket("propensity", "purchase within 7 days of a cart or view", {"after": ["view", "cart"], "horizon": "7d"})


def t7b() -> list[Figure]:
    """The next action within a day."""
    return retailrocket("behaviour", "next action within a day", {"horizon": "1d"})


def retailrocket(task: str, what: str, settings: dict[str, Any]) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        features = opened(Path(folder) / "shop", SHARED / "retailrocket_mb/events.parquet")
        return relative(cut_result(features, plugins().task(task), settings, Path(folder) / "cache"), what)


def t8() -> list[Figure]:
    """Purchase later in the session, at each event; users are dealt to five parts, each scored by models of the others."""
    with tempfile.TemporaryDirectory() as folder:
        features = opened(Path(folder) / "shop", SHARED / "rees46_sample/events.parquet")
        task, view = plugins().task("propensity"), features.reader.view()
        rows = task.examples(view, {"horizon": "session", "after": ["view", "cart"]}, view.start(), (view.end or 0) + 2)
        data = training_data(features, task, rows)
        users = np.unique(rows.keys["user_id"], return_inverse=True)[1]
        part = np.random.default_rng(0).permutation(users.max() + 1)[users] % 5
        work = {"executor": Processes(WORKERS), "cache": Cache(Path(folder) / "cache")}
        members = ("windows", "gbdt", "gru")
        scores, before = {name: np.zeros(len(data)) for name in (*members, "stack")}, np.full(len(data), members[0])
        for number in range(1 if QUICK else 5):
            inside, outside = np.flatnonzero(part != number), np.flatnonzero(part == number)
            own, inner = data.take(inside), part[inside]
            folds = [(np.flatnonzero(inner != k), np.flatnonzero(inner == k)) for k in np.unique(inner)]
            picked, held_out = chosen(own, folds[:1], work)
            before[outside] = min(held_out, key=lambda name: held_out[name])
            made, _ = stacked(picked, own, folds, data.batch.take(outside), work)
            for name, score in scores.items():
                score[outside] = made[name][:, 0]
    target = data.target
    difference = compare(
        target, scores["stack"], scores["windows"], metric="average_precision", groups=users, resamples=min(RESAMPLES, 2000)
    )
    value = {
        name: evaluate(target, each, groups=users, metrics=["average_precision", "log_loss"], resamples=500)
        for name, each in scores.items()
    }
    print({name: {m: str(e) for m, e in each.items()} for name, each in value.items()}, difference, flush=True)
    ours, peer = (value[name]["average_precision"] for name in ("stack", "windows"))
    buyers, reached = len(np.unique(users[target > 0])), difference.value > 0
    loss = {name: losses(target, each[:, None]) for name, each in scores.items()}
    what = "rees46_sample, purchase later in the session at each view or cart"
    return [
        Figure(
            id="T8",
            what=f"{what}: average precision of {len(target):,} rows, "
            f"{int(target.sum())} of them before a purchase, by {buyers} buyers; users in 5 parts "
            f"(stack less peer: {difference.value:.4f}, 95 % {difference.low:.4f} to {difference.high:.4f}, p {difference.p_value:.3f}; "
            + ", ".join(f"{name} {each['average_precision'].value:.4f}" for name, each in value.items())
            + ")",
            ours=ours.value,
            peer=peer.value,
            peer_name=f"LightGBM on windows, {TRIALS} trials a side",
            lower_is_better=False,
            unit="average precision",
            interval=(ours.low, ours.high),
            seeds=(0,),
            must="better",
            reached=reached,
            why=""
            if reached
            else f"with {buyers} buyers the paired difference has the interval {difference.low:.3f} to {difference.high:.3f}",
        ),
        *beside_best("T8", what, loss, members, before, users),
    ]


KEPT = 0.1
"""Of the negatives, where they are sampled down."""


def imbalance() -> list[Figure]:
    """What class weights and negative sampling do to a rare label: purchase within ten minutes of a view, all rows before the cut."""
    settings = {"after": ["view"], "horizon": "10m"}
    with tempfile.TemporaryDirectory() as folder:
        features = opened(Path(folder) / "shop", SHARED / "retailrocket_mb/events.parquet")
        task, view = plugins().task("propensity"), features.reader.view()
        begin = instant(CUT) - duration("28d")
        assert task.split is not None
        rows = task.split(view, settings, begin, instant(CUT) - duration("10m"))
        train, test = (part.take(np.arange(0, len(part), DEPTH)) for part in (rows.train, rows.test))
        data, later = training_data(features, task, train), training_data(features, task, test)
    few = np.flatnonzero((data.target > 0) | (np.random.default_rng(0).random(len(data)) < KEPT))
    asked: dict[str, tuple[dict[str, Any], Array]] = {
        "plain": ({}, np.arange(len(data))),
        "classes weighed alike": ({"class_weight": "balanced"}, np.arange(len(data))),
        "a tenth of the negatives": ({}, few),
    }
    score = {}
    for name, (params, kept) in asked.items():
        part = data.take(kept)
        (fitted,) = fit_members([Member("gbdt", "gbdt", {"num_threads": 1, **params})], part)
        known = Vocabulary.of(part).apply(later.batch.compact())
        score[name] = fitted.fitted.predict(known)[:, 0].astype(np.float64)
    p = score["a tenth of the negatives"]
    score["a tenth of the negatives, prior corrected"] = p * KEPT / (p * KEPT + 1 - p)
    share = float(data.target.mean())
    q = score["classes weighed alike"]  # odds as if both classes were as frequent
    score["classes weighed alike, prior corrected"] = q * share / (q * share + (1 - q) * (1 - share))
    groups = np.unique(test.keys["user_id"], return_inverse=True)[1]
    out = []
    for name, each in score.items():
        found = evaluate(
            later.target, each, groups=groups, metrics=["average_precision", "log_loss"], resamples=min(RESAMPLES, 1000)
        )
        for metric in ("log_loss", "average_precision"):
            out.append(
                Figure(
                    what=f"imbalance, {metric}, {name} ({100 * later.target.mean():.1f} % positives of {len(test):,} rows before {CUT})",
                    ours=found[metric].value,
                    unit="nats" if metric == "log_loss" else "average precision",
                    lower_is_better=metric == "log_loss",
                    interval=(found[metric].low, found[metric].high),
                    seeds=(0,),
                )
            )
    return out


if __name__ == "__main__":
    for figure in {"t7": t7, "t7b": t7b, "t8": t8, "i": imbalance}[sys.argv[1]]():
        print(figure, flush=True)
