"""Rows P1, P2, P5 and P16: what the predictor adds to its members, lists over Redis, trees for one row, and offline against served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from figures import QUICK, Figure
from predict_faults import server
from predict_service import USERS, project, quantile

HOUR = 3_600_000_000
CUT = "2017-12-01"
"""The demo's, so that its folds are not fitted again."""


def _alternately(calls: list[Callable[[int], Any]], number: int) -> list[list[float]]:
    """Seconds of each call, in turn, so that all meet the same machine; the first fiftieth does not count."""
    seen: list[list[float]] = [[] for _ in calls]
    for n in range(number + number // 50 + 1):
        for call, times in zip(calls, seen):
            began = time.perf_counter()
            call(n)
            times.append(time.perf_counter() - began)
    return [times[-number:] for times in seen]


def p1() -> list[Figure]:
    """One user, embedded, against the sum of the members' raw inference with features in hand.

    Of all five members, under the plain mean, in which each has weight; and of the demo's stack, which leaves out those without.
    """
    from zoo.predictor import Predictor

    with project(cache=True) as root:
        figures = [
            replace(each, id=f"{each.id}c", must="", reached=None) for each in _beside_members(Predictor.load("churn", root))
        ]
        settings = root / "zoo.toml"
        settings.write_text(settings.read_text().replace("[tasks.churn]\n", '[tasks.churn]\nfinal = "mean"\n', 1))
        command = [sys.executable, "-m", "zoo", "--repo", str(root), "train", "churn", "--test-start", CUT, "--json"]
        trained = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        five = Predictor.load(f"churn@{trained['version']}", root)
        assert len(five.members) == 5, five.members
        return _beside_members(five) + figures


def _beside_members(predictor: Any) -> list[Figure]:
    number = 300 if QUICK else 10_000
    predictor.warm()
    ensemble, users = predictor.ensemble, USERS[:500]
    ready = []
    for user in users:
        predictor.predict(users=[user])  # bert keeps the state of each text, which is then there for both sides
        batch = ensemble.vocabulary.apply(predictor.features.online(predictor.service, {"user_id": [user]}))
        ready.append([(member.fitted, batch.select(member.inputs)) for member in ensemble.members])

    def raw(n: int) -> None:
        for fitted, batch in ready[n % len(users)]:
            fitted.predict(batch)

    whole, members = _alternately([lambda n: predictor.predict(users=[users[n % len(users)]]), raw], number)
    figures = []
    for id, q, name in (("P1", 0.5, "p50"), ("P1b", 0.99, "p99")):
        ours, peer = quantile(whole, q) * 1e3, quantile(members, q) * 1e3
        figures.append(
            Figure(
                id=id,
                what=f"predict one user, {len(predictor.members)} members, embedded, {name} of {number}",
                ours=ours,
                unit="ms",
                peer=peer,
                peer_name="sum of the members' raw inference",
                within=True,
                must="within 1.5 times",
                reached=ours <= 1.5 * peer,
                why=f"{ours:.2f} against {peer:.2f} ms: {ours - peer:.2f} ms for features, final model and answer",
            )
        )
    return figures


def p2() -> list[Figure]:
    """A list of 100 items over Redis on one core: candidates of all members, each with all members' scores, through the final model."""
    from zoo.features import Features
    from zoo.predictor import Predictor
    from zoo.project import Project
    from zoo.registry import Registry

    number = 100 if QUICK else 2_000
    with project() as root, server() as restart:
        with Registry.of(Project.open(root)) as registry:
            known = "recommendation" in registry.models()
        for command in () if known else ("train recommendation", "promote recommendation@1"):  # the demo has none
            subprocess.run([sys.executable, "-m", "zoo", "--repo", root, *command.split()], check=True, stdout=sys.stderr)
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})  # threads and servers that begin from here on, too
        try:
            settings = (root / "feature_store.yaml").read_text().partition("online_store:")[0]
            store = f'online_store:\n  type: zoo.stores.RedisEventOnlineStore\n  connection_string: "127.0.0.1:{restart()}"\n'
            (root / "feature_store.yaml").write_text(settings + store)
            Features.open(root).materialize()
            predictor = Predictor.load("recommendation", root)
            predictor.warm()
            (times,) = _alternately([lambda n: predictor.recommend([USERS[n % 1_000]], 100)], number)
        finally:
            os.sched_setaffinity(0, cores)
        chosen = predictor.ensemble.reranker.chosen  # type: ignore[union-attr]
        items = predictor.ensemble.vocabulary.size("item_id")
    late, typical = quantile(times, 0.99) * 1e3, quantile(times, 0.5) * 1e3
    told = f"{', '.join(predictor.members)} over {items:,} items, second stage {chosen}"
    return [
        Figure(
            id="P2",
            what=f"rank 100 candidates and more over Redis, all members, one core, p99 ({told})",
            ours=late,
            unit="ms",
            must="15 ms",
            reached=late <= 15,
            why=f"p50 {typical:.1f} ms; {told}",
        )
    ]


def p5() -> list[Figure]:
    """One row through LightGBM: the single-row path against ``Booster.predict``, and whether they say the same."""
    from zoo_gbdt.table import table

    from zoo.predictor import Predictor

    number = 500 if QUICK else 20_000
    with project() as root:
        predictor = Predictor.load("churn", root)
        ensemble: Any = predictor.ensemble
        member = next(m for m in ensemble.members if m.model == "gbdt")
        batch = ensemble.vocabulary.apply(predictor.features.online(predictor.service, {"user_id": USERS[:500]}))
        rows = table(batch.select(member.inputs), member.fitted.layout)
    booster, single = member.fitted.boosters[0], member.fitted._single[0]
    away = max(
        float(np.abs(single.ask(rows[n : n + 1]) - booster.predict(rows[n : n + 1], num_threads=1)).max())
        for n in range(len(rows))
    )
    ours, peer = _alternately(
        [
            lambda n: single.ask(rows[n % 500 : n % 500 + 1]),
            lambda n: booster.predict(rows[n % 500 : n % 500 + 1], num_threads=1),
        ],
        number,
    )
    a, b = quantile(ours, 0.5) * 1e6, quantile(peer, 0.5) * 1e6
    told = f"{booster.num_trees()} trees, {booster.num_feature()} columns"
    return [
        Figure(
            id="P5",
            what=f"LightGBM, one row, p50 ({told})",
            ours=a,
            unit="us",
            peer=b,
            peer_name="Booster.predict",
            must="2 times faster",
            reached=2 * a <= b,
            why=told,
        ),
        Figure(
            id="P5b",
            what="largest difference to Booster.predict of 500 rows",
            ours=away,
            unit="",
            must="at most 1e-12",
            reached=away <= 1e-12,
            why=told,
        ),
    ]


def p16() -> list[Figure]:
    """A million rows, offline (history in batches) against served (the online store): households at many instants after the log."""
    from zoo.predictor import Predictor

    goal = int(os.environ.get("BENCH_ROWS", "20_000" if QUICK else "1_000_000"))
    with project() as root:
        predictor = Predictor.load("churn", root)
        predictor.warm()
        users = predictor.everyone()
        begin = predictor.features.reader.now()
        scores = ("score", *predictor.members)
        rows, away, other, step = 0, dict.fromkeys(scores, 0.0), 0, 0
        while rows < goal:
            at = begin + step * 6 * HOUR
            served = predictor.predict(users, at=at)
            done = 0
            for table in predictor.predict_batches(users, at=at):
                part = served.slice(done, len(table))
                done += len(table)
                for name in scores:
                    away[name] = max(away[name], float(np.abs(np.asarray(table[name]) - np.asarray(part[name])).max()))
                for name in ("user_id", "newest_event_age", "known", "missing"):
                    other += not table[name].equals(part[name])
            rows, step = rows + len(users), step + 1
            if step % 20 == 0:
                print(f"{rows:,} rows, {away}", flush=True)
    worst = max(away.values())
    told = f"{len(users):,} households at {step} instants, 6 hours apart, from the log's end on; columns that differ: {other}"
    return [
        Figure(
            id="P16",
            what=f"largest difference of a score of {rows:,} rows, offline against served ({told})",
            ours=worst,
            unit="probability",
            must="equal (fp32 within 1e-5)",
            reached=worst <= 1e-5 and not other,
            why=str(away),
        )
    ]
