"""Row T7, purchase: how far any model could get, what more users or weeks bring, and what was tried before the cut.

The ceiling and the learning curve look at the test part's labels on purpose; nothing is chosen by them. What was tried looks at rows before
the cut only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure
from tasks_behaviour import CUT, DEPTH, FOLDS, RESAMPLES, SHARED, WORKERS, Folds, opened, trials
from tasks_best import losses
from tasks_purchases import fitted, joined

from zoo.cache import Cache
from zoo.calibration import logits
from zoo.contract import Array, TrainingData
from zoo.evaluation.bootstrap import Difference, difference_of_means
from zoo.finals import Scores, choose
from zoo.fitting import Member
from zoo.folds import forward_chaining
from zoo.jobs import Processes
from zoo.manager import plugins
from zoo.stacking import OutOfFold, out_of_fold
from zoo.tasks.settings import duration, instant
from zoo.training import training_data
from zoo.vocabulary import Vocabulary

SETTINGS: Mapping[str, Any] = {"after": ["view", "cart"], "horizon": "7d"}
SMALL: Mapping[str, Any] = {
    "num_trees": 150,
    "learning_rate": 0.03,
    "num_leaves": 7,
    "min_data_in_leaf": 300,
    "lambda_l2": 20.0,
    "feature_fraction": 0.4,
    "num_threads": 1,
}
"""Of trees on sequences: decided on blocks before the cut."""
PARTS = 5
SHARES = (0.25, 0.5, 1.0)
"""Of the users before the cut that models are trained on."""
WEEKS = (4, 8)
"""The newest weeks before the cut that models are trained on, beside all of them."""
RECENT = "14d"
"""Labels of so long before a block say what the base rate is."""


@dataclass(frozen=True)
class Both:
    """Rows before the cut and test rows as one batch. past, now: their places. whose: int64 (n,), users. known_at: int64 (n,)."""

    data: TrainingData
    past: Array
    now: Array
    whose: Array
    known_at: Array

    @staticmethod
    def of(folder: Path) -> Both:
        features = opened(folder / "shop", SHARED / "retailrocket_mb/events.parquet")
        task, view = plugins().task("propensity"), features.reader.view()
        assert task.split is not None
        parts = task.split(view, SETTINGS, instant(CUT), None)
        pair = [part.take(np.arange(0, len(part), DEPTH)) for part in (parts.train, parts.test)]
        rows = joined(pair)
        places, whose = np.arange(len(rows)), np.unique(rows.keys["user_id"], return_inverse=True)[1]
        return Both(training_data(features, task, rows), places[: len(pair[0])], places[len(pair[0]) :], whose, rows.known_at)

    def asked(self, member: Member, train: Array, test: Array) -> Array:
        """Scores of some rows by a member fitted on others, float64 (test,)."""
        score: Array = fitted(member, self.data.take(train), self.data.take(test), {})[:, 0].astype(np.float64)
        return score

    def loss(self, score: Array, rows: Array) -> Array:
        return losses(self.data.target[rows], score[:, None])

    def less(self, a: Array, b: Array) -> Difference:
        """How much the loss of a differs from that of b on the test rows, users drawn."""
        return difference_of_means("log_loss", a, b, groups=self.whose[self.now], resamples=RESAMPLES)


def t7_ceiling() -> list[Figure]:
    """Purchase within 7 days of a cart or view."""
    with tempfile.TemporaryDirectory() as folder:
        both = Both.of(Path(folder))
        work = {"executor": Processes(WORKERS), "cache": Cache(Path(folder) / "cache")}
        past = both.data.take(both.past)
        folds = forward_chaining(past.time, both.known_at[both.past], FOLDS)
        windows = trials(past.batch, linear=False)["windows"]
        held = out_of_fold(windows, past, folds, **work)
        of_trials = {
            name: float(losses(past.target[held.rows], held.scores[held.rows, at]).mean()) for at, name in enumerate(held.members)
        }
        peer = next(each for each in windows if each.name == min(of_trials, key=lambda name: of_trials[name]))
        members = [Member("windows", peer.model, peer.params), Member("sequences", "gbdt", SMALL), Member("linear", "linear")]
        tried, rows = before(both, past, members, folds, work)
        print(of_trials, tried, flush=True)
    seen = ceiling(both, members)
    print({name: float(each.mean()) for name, each in seen.items()}, flush=True)
    first = seen["windows on the past"]
    apart = {name: both.less(each, first) for name, each in seen.items() if name != "windows on the past"}
    best = min(apart, key=lambda name: apart[name].value)
    honest = {name: each for name, each in apart.items() if name.endswith("on the past")}
    near = min(honest, key=lambda name: honest[name].value)
    curve = {f"{member.name}, {name}": value for member in members[:2] for name, value in learning(both, member).items()}
    what = f"retailrocket_mb from {CUT}, purchase within 7 days of a cart or view"
    users = len(np.unique(both.whose[both.now]))
    shown: dict[str, Any] = {
        "unit": "nats",
        "seeds": (0,),
        "peer": float(first.mean()),
        "peer_name": "windows, trained on the past",
    }
    return [
        Figure(
            id="T7 ceiling",
            what=f"{what}, {len(both.now):,} rows of {users} users: log-loss where models are trained on labels of four fifths of these "
            "users in these weeks, alone and beside the past, and asked of the rest, which no honest model may do ("
            + ", ".join(f"{name} {each.mean():.4f}" for name, each in seen.items())
            + "; less windows on the past: "
            + ", ".join(f"{name} {_said(each)}" for name, each in apart.items())
            + f"; the paired difference of {near} has the standard error {_error(apart[near]):.4f}, so p < 0.01 asks for a lead of "
            f"{2.58 * _error(apart[near]):.4f}, {2.58 * _error(apart[near]) / first.mean():.0%} of the peer's loss)",
            ours=float(seen[best].mean()),
            interval=(float(first.mean() + apart[best].low), float(first.mean() + apart[best].high)),
            **shown,
        ),
        Figure(
            id="T7 learning curve",
            what=f"{what}: log-loss by share of the users before the cut and by the newest weeks that models are trained on ("
            + ", ".join(f"{name} {value:.4f}" for name, value in curve.items())
            + ")",
            ours=curve["sequences, 100% of users"],
            **shown,
        ),
        Figure(
            id="T7 tried",
            what=f"{what}, before the cut: log-loss on {rows:,} rows of later blocks, fitted on those before ("
            + ", ".join(f"{name} {value:.4f}" for name, value in tried.items())
            + "; trials of windows on all blocks: "
            + ", ".join(f"{value:.4f}" for value in of_trials.values())
            + ")",
            ours=min(tried.values()),
            unit="nats",
            seeds=(0,),
            peer=tried["windows"],
            peer_name="windows",
        ),
    ]


def ceiling(both: Both, members: Sequence[Member]) -> dict[str, Array]:
    """Losses of the test rows by model and by what it was trained on; and of the mean of the models' logits."""
    users = both.whose.max() + 1
    part = (np.random.default_rng(0).permutation(users) % PARTS)[both.whose[both.now]]
    scores: dict[str, dict[str, Array]] = {}
    for name, more in (("the past", both.past), ("these weeks", both.past[:0]), ("the past and these weeks", both.past)):
        for member in members:
            score = np.zeros(len(both.now))
            for held in range(PARTS):
                inside, rows = np.flatnonzero(part == held), np.r_[more, both.now[part != held]]
                if name == "the past":
                    inside, rows = np.arange(len(both.now)), both.past
                if name != "the past" or not held:
                    score[inside] = both.asked(member, rows, both.now[inside])
            scores.setdefault(name, {})[member.name] = score
            print(name, member.name, float(both.loss(score, both.now).mean()), flush=True)
        together = np.mean([logits(each) for each in scores[name].values()], axis=0)
        scores[name]["mean of logits"] = 1 / (1 + np.exp(-together))
    return {f"{line} on {name}": both.loss(score, both.now) for name, by in scores.items() for line, score in by.items()}


def learning(both: Both, member: Member) -> dict[str, float]:
    """Mean loss of the test rows by what of the past a model was trained on."""
    order, out = np.random.default_rng(0).permutation(both.whose.max() + 1), {}
    for share in SHARES:
        rows = both.past[order[both.whose[both.past]] < share * len(order)]
        out[f"{share:.0%} of users"] = float(both.loss(both.asked(member, rows, both.now), both.now).mean())
    for weeks in WEEKS:
        rows = both.past[
            both.data.time[both.past] >= instant(CUT) - duration(f"{7 * (weeks + 1)}d")
        ]  # the newest has no labels yet
        out[f"{weeks} weeks"] = float(both.loss(both.asked(member, rows, both.now), both.now).mean())
    return out


def before(
    both: Both, past: TrainingData, members: Sequence[Member], folds: Folds, work: dict[str, Any]
) -> tuple[dict[str, float], int]:
    """Log-loss on later blocks before the cut: of members, of every final model, and of the mean shifted to the newest base rate."""
    oof = out_of_fold(members, past, folds, **work)
    level = Scores(oof, past, both.known_at[both.past], both.whose[both.past], Vocabulary.of(past))
    made, blocks = choose(level), level.blocks()
    later = np.concatenate([rows for _, rows in blocks])
    out = {name: float(losses(past.target[later], oof.scores[later, at]).mean()) for at, name in enumerate(oof.members)}
    out |= {f"stack: {name}": value for name, value in made.record["log_loss"].items()}
    mean = logits(oof.scores[:, :, 0]).mean(axis=1)
    for name, span in (("the newest two weeks", duration(RECENT)), ("all weeks", past.time.max())):
        shifted = np.concatenate([mean[rows] + shift(level, mean, oof, rows, int(span)) for _, rows in blocks])
        p = 1 / (1 + np.exp(-shifted))
        out[f"mean of logits, its level that of {name}"] = float(losses(past.target[later], p[:, None]).mean())
    return out, len(later)


def shift(level: Scores, eta: Array, oof: OutOfFold, rows: Array, span: int) -> float:
    """What makes the mean probability of earlier rows, of so long before, that of their labels."""
    begin = level.data.time[rows].min()
    told = np.flatnonzero((oof.fold >= 0) & (level.known_at <= begin))
    told = told[level.data.time[told] >= level.data.time[told].max() - span]
    low, high = -5.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        above = (1 / (1 + np.exp(-(eta[told] + middle)))).mean() > level.data.target[told].mean()
        low, high = (low, middle) if above else (middle, high)
    return (low + high) / 2


def _said(each: Difference) -> str:
    return f"{each.value:+.4f} ({each.low:+.4f} to {each.high:+.4f}, p {each.p_value:.3f})"


def _error(each: Difference) -> float:
    """The standard error that an interval tells of."""
    return (each.high - each.low) / 3.92


if __name__ == "__main__":
    for figure in t7_ceiling():
        print(figure, flush=True)
