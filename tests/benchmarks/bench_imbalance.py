"""What each option against rare classes and popular items did: on the demo's log, all rows before the cuts that its tasks are tested on.

Binary: will a household redeem a coupon within a week (rows at weekly cuts). Ranking: the next product bought. One seed each; nothing is
chosen by these figures. The demo's data must be there (`make demo`), or a project over them is named by ZOO_DEMO.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from figures import QUICK, Figure, chosen

from zoo.contract import Array, TrainingData
from zoo.evaluation.metrics import Ranked, average_precision, ece, log_loss
from zoo.evaluation.ranking import ndcg, slices
from zoo.features import Features
from zoo.fitting import Member
from zoo.manager import plugins
from zoo.tasks import propensity, recommendation
from zoo.tasks.settings import instant
from zoo.training import training_data

ROOT = Path(os.environ.get("ZOO_DEMO", Path(__file__).parents[2] / "feature_repo"))
BINARY = {"every": "7d", "active": "28d", "horizon": "7d", "event_type": "coupon_redeemed", "start": "2017-03-01"}
CUT, END = "2017-07-08", "2017-08-25"
RANKING = {"event_type": "purchase", "protocol": "time_cut", "validation": "14d", "test_start": "2017-08-15"}
USERS = 200 if QUICK else 2_000
"""Test rows of the ranking, the first ones."""
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "class_weight = balanced": {"class_weight": "balanced"},
    "negatives = 0.2": {"negatives": 0.2},
    "focal = 2": {"focal": 2.0},
    "negatives = 0.2, focal = 2": {"negatives": 0.2, "focal": 2.0},
}
MODELS: dict[str, dict[str, Any]] = {
    "gbdt": {"num_trees": 50 if QUICK else 200},
    "gru": {"streams": ("visit_*",), "max_length": 30, "epochs": 1 if QUICK else 3},
}
NETWORK = {
    "loss": "sampled",
    "hidden": 64,
    "learning_rate": 0.003,
    "event_types": True,
    "gaps": True,
    "tokens": 3_200,
    "epochs": 4,
}


OF_NETWORKS: dict[str, dict[str, Any]] = {
    "loss = sampled": {},
    "negatives = 64": {"negatives": 64},
    "loss = gbce": {"loss": "gbce"},
    "label_smoothing = 0.1": {"label_smoothing": 0.1},
    "item_weight = 0.5": {"item_weight": 0.5},
    "popularity_prior = 0.5": {"popularity_prior": 0.5},
    "popularity_prior = 1": {"popularity_prior": 1.0},
}
"""Of networks that rank. The catalogue is too large for the softmax over all of it."""


def network(model: str, more: dict[str, Any]) -> dict[str, Any]:
    """The parameters of ``gru`` or ``gpt``, as ``bench_recommend.py`` has them for shops."""
    chosen = {**NETWORK, **({"epochs": 1} if QUICK else {}), **more}
    if model == "gru":
        return {"ranking": chosen}
    return {**{name: value for name, value in chosen.items() if name != "hidden"}, "learning_rate": 0.002}


RANKERS: dict[str, dict[str, dict[str, Any]]] = {
    "covisit": {f"normalise = {each:g}": {"normalise": each} for each in (0.0, 0.3, 0.7)},
    **{model: {name: network(model, more) for name, more in OF_NETWORKS.items()} for model in ("gru", "gpt")},
}
"""By model and option its parameters; the first option of each is the neutral one."""
PARTS = ("head items", "middle items", "tail items")
METRICS: dict[str, tuple[Callable[[Ranked], Array], bool]] = {
    "average precision": (lambda rows: average_precision(rows, np.ones((1, len(rows.score)))), False),
    "log-loss": (lambda rows: log_loss(rows, np.ones((1, len(rows.score)))), True),
    "log-loss of the rare class": (lambda rows: log_loss(rows, rows.target[None]), True),
    "log-loss of the frequent class": (lambda rows: log_loss(rows, 1 - rows.target[None]), True),
    "calibration error": (lambda rows: ece(rows, np.ones((1, len(rows.score)))), True),
}
"""And whether less is better."""


def binary(features: Features) -> Iterator[Figure]:
    """Average precision, log-loss, that of each class, and calibration error of every option; the peer is the model as it is."""
    task = replace(propensity.TASK, feature_service="churn")
    parts = propensity.split(features.reader.view(), BINARY, instant(CUT), instant(END))
    train, test = (training_data(features, task, part) for part in (parts.train, parts.test))
    print(f"{len(train):,} training rows, {train.target.mean():.2%} positive; {len(test):,} later ones, {test.target.mean():.2%}")
    for model, own in MODELS.items():
        plain: dict[str, float] = {}
        for option, more in OPTIONS.items():
            scores = fitted(model, {**own, **more}, train).predict(test.batch)[:, 0].astype(np.float64)
            rows, _ = Ranked.of(test.target, scores)
            for name, (metric, lower) in METRICS.items():
                value = float(metric(rows)[0])
                peer = plain.setdefault(name, value)
                what = f"{name}, {model}, {option} ({len(train):,} rows, {train.target.mean():.1%} positive)"
                yield Figure(
                    what=what, ours=value, unit=name, peer=peer, peer_name=f"{model} as it is", lower_is_better=lower, seeds=(0,)
                )


def fitted(model: str, params: dict[str, Any], train: TrainingData) -> Any:
    plugin = plugins().models[model].plugin
    given = plugin.spec.params().model_validate(params)
    return plugin.fit(train, params=given, seed=0, progress=lambda *_: None)


def ranking(features: Features, model: str) -> Iterator[Figure]:
    """NDCG@10 on head, middle and tail items, and how well a network's softmax is calibrated; the peer is the option's neutral value."""
    from zoo.recommender import FIRST, HISTORY, fit_recommender

    parts = recommendation.split(features.reader.view(), RANKING)
    train, test = (training_data(features, recommendation.TASK, part) for part in (parts.train, parts.validation))
    test = test.take(np.arange(min(USERS, len(test))))
    plain: dict[str, float] = {}
    for option, params in RANKERS[model].items():
        name = f"{model}, {option}"
        recommender = fit_recommender([Member(model, model, params, 0)], train)
        found = next(iter(recommender.rankings(test, exclude_seen=False).values()))
        batch, target = recommender.seen(test.batch), recommender.known(test.batch.catalogue).target(test)
        of = slices(batch.column(HISTORY).lengths, target, recommender.counts_of(batch).popularity)
        gain: Array = ndcg(found.rank)

        def figure(what: str, said: str, value: float, unit: str, lower: bool, name: str = name) -> Figure:
            first = f"{model}, {next(iter(RANKERS[model]))}"
            kept = {"peer": plain.setdefault(what, value), "peer_name": first, "lower_is_better": lower, "seeds": (0,)}
            return Figure(what=f"{what}, {name} ({said})", ours=value, unit=unit, **kept)

        for part in PARTS:
            value = float(gain[of[part]].mean())
            yield figure(f"NDCG@10 on {part}", f"{int(of[part].sum()):,} rows", value, "NDCG@10", lower=False)
        if model == "covisit":  # its scores are no logits
            continue
        known = np.asarray(target) >= FIRST
        chance, kept = softmax(recommender, batch), np.flatnonzero(known)
        own = chance[kept, np.asarray(target)[kept].astype(np.int64)]
        yield figure("log-loss among all items", f"{len(kept):,} rows", float(-np.log(own).mean()), "log-loss", lower=True)
        every = np.arange(chance.shape[1])
        whose = slices(np.ones(len(every), np.int64), every, recommender.counts_of(batch).popularity)
        for part in PARTS:
            told, seen = float(chance[kept][:, whose[part]].sum(axis=1).mean()), float(of[part][kept].mean())
            said = f"{told:.3f} told, {seen:.3f} of the rows"
            yield figure(f"probability of {part} apart from their share", said, abs(told - seen), "share", lower=True)


def softmax(recommender: Any, batch: Any) -> Array:
    """float64 (n, codes): probabilities of a network's only scores, 0 for what is no item."""
    parts = []
    for stage in recommender.stages(batch, exclude_seen=False):
        [scores] = stage.scores.values()
        whole = np.where(stage.hidden, -np.inf, scores.astype(np.float64))
        parts.append(np.exp(whole - whole.max(axis=1, keepdims=True)))
        parts[-1] /= parts[-1].sum(axis=1, keepdims=True)
    return np.concatenate(parts)


def shown(figures: Iterator[Figure]) -> list[Figure]:
    """All of them, each shown once it is there."""
    out = []
    for figure in figures:
        print(f"{figure.what}: {figure.ours:.4f}", flush=True)
        out.append(figure)
    return out


if __name__ == "__main__":
    chosen(
        "imbalance",
        {
            "binary": lambda: shown(binary(Features.open(ROOT))),
            **{model: partial(lambda model: shown(ranking(Features.open(ROOT), model)), model) for model in RANKERS},
        },
        __doc__,
    )
