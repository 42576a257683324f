"""Rows T9 and T9b: AutoGluon's tabular models on the same rows and features as the stack of churn and of campaign, and the same time.

The table that AutoGluon gets is what the stack's trees make of a batch, with the columns that other members read and the trees leave
out; what both leave out was chosen on rows before the test. What it holds out is whole households. Time is that of the
processor, so that what else runs on the machine does not count: AutoGluon's clock is made to count it, and its limit is what the stack
took from its features to its calibrated test scores, where nothing is reused from earlier runs. Both have one core. Probabilities come
back as Parquet.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from figures import QUICK, Figure
from measured import child, processor
from tasks_purchases import RESAMPLES, ROOT, Line, demo, fresh, honest, households

from zoo.contract import Array
from zoo.evaluation import compare, evaluate
from zoo.features import Features
from zoo.jobs import Processes
from zoo.manager import Plugins
from zoo.project import Project
from zoo.training import Trained, train
from zoo.vocabulary import Vocabulary

VERSION = "1.6.3"


def peer_environment() -> Path:
    """The interpreter of AutoGluon's environment, made the first time."""
    folder = ROOT / ".peers" / "autogluon"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        asked = f"autogluon.tabular[lightgbm,catboost,xgboost]=={VERSION}"
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", asked], check=True)
        (folder / "complete").touch()
    return folder / "bin/python"


@contextmanager
def one_core() -> Iterator[None]:
    """This process and those that it starts run on one core until the block ends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def t9() -> list[Figure]:
    """Churn at the demo's last cut."""
    from zoo.cli.demo import CUTS

    return _against("T9", "churn", {"test_start": CUTS[-1]})


def t9b() -> list[Figure]:
    """Campaign response of every test campaign, as T2 has it."""
    from zoo.cli.demo import CAMPAIGNS

    start, end = CAMPAIGNS
    return _against("T9b", "campaign", {"test_start": start, "test_end": end, "open_labels": True})


def _against(row: str, task: str, cut: dict[str, Any]) -> list[Figure]:
    python = peer_environment()
    project, _, found = demo()
    with fresh(project) as copy, one_core(), tempfile.TemporaryDirectory() as folder:
        return _both(row, task, cut, copy, found, python, Path(folder))


def _both(row: str, task: str, cut: dict[str, Any], project: Project, found: Plugins, python: Path, folder: Path) -> list[Figure]:
    features = Features.open(project.root)
    run, took, used = _trained(task, cut, project, found, features)
    columns = _tables(task, cut, project, found, features, run, folder)
    theirs = child([python, Path(__file__).with_name("autogluon_peer.py"), folder, max(used, 90) if QUICK else used])
    scores = pl.read_parquet(folder / "scores.parquet")["score"].to_numpy()
    more: dict[str, Any] = {"groups": run.groups, "resamples": RESAMPLES}
    stack = np.asarray(run.scores["stack"], np.float64)[:, 0]
    gap = compare(run.test.target, stack, scores, metric="log_loss", **more)
    lines = {name: Line([run], [each]) for name, each in run.scores.items()}
    loss = {name: _log_loss(run.test.target, each) for name, each in {"ours": stack, "theirs": scores}.items()}
    what = f"demo, {task}, {len(run.data):,} training and {len(run.test):,} test rows"
    peer = f"AutoGluon {theirs['version']} best_quality, {len(theirs['models'])} models, best {theirs['best']}"
    table = f"{columns} columns, households held out whole, one core for both, no torch in AutoGluon's environment"
    print(f"{task}: {loss}, {vars(gap)}, {used:.0f} s, {theirs}", file=sys.stderr, flush=True)
    return [
        Figure(
            id=row,
            what=f"{what}: log-loss of the stack ({table})",
            ours=loss["ours"],
            unit="nats",
            peer=loss["theirs"],
            peer_name=peer,
            seeds=(0,),
        ),
        Figure(
            id=row,
            what=f"{what}: log-loss of the stack less AutoGluon's (p {gap.p_value:.3f})",
            ours=gap.value,
            unit="nats",
            interval=(gap.low, gap.high),
            seeds=(0,),
            must="not worse: not above 0 beyond the interval",
            reached=gap.low <= 0,
            why="" if gap.low <= 0 else f"{loss['ours']:.4f} against {loss['theirs']:.4f}",
        ),
        Figure(
            id=row,
            what=f"{what}: training, every fit done, and scoring the test rows, in seconds of the processor, which are AutoGluon's limit "
            f"(by the clock of a machine with other work {took:.0f} and {theirs['seconds']:.0f})",
            ours=used,
            unit="s",
            peer=theirs["cpu_seconds"],
            peer_name=peer,
        ),
        *honest(row, what, lines, [run.record["best_member"]], bound=False),
    ]


def _trained(
    task: str, cut: dict[str, Any], project: Project, found: Plugins, features: Features
) -> tuple[Trained, float, float]:
    """The run, and what it took once its features were there until its test rows were scored: seconds, seconds of the processor."""
    marks = {}

    def say(done: float, text: str) -> None:
        if text in ("features", "evaluation"):
            marks[text] = time.perf_counter(), processor()
        print(f"{task} {done:.0%} {text}", file=sys.stderr, flush=True)

    members = {"members": ["gbdt"]} if QUICK else {}
    more: dict[str, Any] = {**cut, **members, "register": False, "progress": say}
    run = train(project, task, plugins=found, features=features, executor=Processes(1), **more)
    (begun, before), (ended, after) = marks["features"], marks["evaluation"]
    return run, ended - begun, after - before


def _tables(
    task: str, cut: dict[str, Any], project: Project, found: Plugins, features: Features, run: Trained, folder: Path
) -> int:
    """train.parquet and test.parquet for AutoGluon; how many columns of features they have."""
    from zoo_gbdt.layout import Layout
    from zoo_gbdt.params import GBDTParams
    from zoo_gbdt.table import table

    params = project.task(task).params
    read = {pattern for name, each in params.items() if name != "gbdt" for pattern in each.get("streams", ())}
    drop = tuple(pattern for pattern in params["gbdt"]["drop"] if pattern not in read)
    whose = households(run, project, features, found, task, cut["test_start"], cut.get("test_end"))
    vocabulary = Vocabulary.of(run.data)
    parts = {"train": run.data, "test": run.test}
    batches = {part: vocabulary.apply(data.batch.compact()) for part, data in parts.items()}
    layout = Layout.learn(batches["train"], GBDTParams(drop=drop))
    categories = set(layout.categorical())
    for part, data in parts.items():
        values = table(batches[part], layout)
        values[~np.isfinite(values)] = np.nan
        frame = pl.DataFrame(
            {
                name: _category(values[:, at]) if at in categories else pl.Series(values[:, at]).fill_nan(None)
                for at, name in enumerate(layout.names())
            }
        )
        frame = frame.with_columns(target=pl.Series(data.target.astype(np.int64)))
        if part == "train":
            frame = frame.with_columns(household=pl.Series(whose))
        frame.write_parquet(folder / f"{part}.parquet")
    return layout.width


def _category(values: Array) -> pl.Series:
    """A column of categories as text, null where there is none."""
    return pl.Series([None if value != value else f"c{value:.0f}" for value in values.tolist()], dtype=pl.String)


def _log_loss(target: Array, scores: Array) -> float:
    return evaluate(target, scores, metrics=["log_loss"], resamples=2)["log_loss"].value
