"""Rows T4 to T6: whom an e-mail changes, on a public randomised trial, over ten times two halves.

Each half is trained on and tested on the other. Learners are chosen by cross-fitting within the training half, by the same functions that
``zoo uplift`` calls; the test half is scored once by what was chosen, and by the references. Nothing else is chosen.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from figures import QUICK, Figure

from zoo.contract import Array
from zoo.evaluation.bootstrap import estimate_of, resampled
from zoo.evaluation.uplift import best_arms, qini, weighted_qini, weighted_value
from zoo.fitting import Member
from zoo.manager import plugins
from zoo.uplift.choice import FOLDS, SAFE, STAYS, Candidate, candidates, choose, cross_fitted, dealt, fit, qinis
from zoo.uplift.trial import Trial, read_table, trial_of

ROOT = Path(__file__).parents[2]
FILE = Path("/work/shared/data/hillstrom_email/campaign.parquet")
NONE, MENS, WOMENS = "No E-Mail", "Mens E-Mail", "Womens E-Mail"
OUTCOMES = ("visit", "conversion", "spend")
SEEDS = tuple(range(2 if QUICK else 10))
RESAMPLES = 50 if QUICK else 500
LINEAR = Member("linear", "linear")
ORDER = f"{STAYS}:{LINEAR.name}"
TREES = Member(
    "gbdt", "gbdt", {"num_trees": 60, "num_leaves": 4, "learning_rate": 0.05, "min_data_in_leaf": 200, "num_threads": 1}
)
"""Small trees: effects are a tenth of the outcome's spread."""


def those(*of_trees: str) -> list[Candidate]:
    """What is chosen among: every learner over the linear model, and the cheap ones over trees."""
    trees = [each for each in candidates([TREES], of_trees) if each.member is not None]
    return [*candidates([LINEAR]), *trees]


@dataclass(frozen=True)
class Half:
    """One test half: its rows, the scores of each line (n, arms - 1), and what was chosen on the other half."""

    rows: Array
    scores: dict[str, Array]
    chosen: str


def trial(outcome: str, *arms: str) -> Trial:
    table = read_table(FILE).filter(pl.col("segment").is_in([NONE, *arms]))
    without = ["user_id", *(name for name in OUTCOMES if name != outcome)]
    return trial_of(table, "segment", outcome, NONE, without)[0]


def halves(rows: Trial, column: int, stays: str, lines: tuple[str, ...], of: list[Candidate]) -> list[Half]:
    """Every test half. column: of the inner values, which is chosen by (an arm's Qini, or -1 for the policy's value). stays: see
    ``choose``."""
    found, out = plugins(), []
    for seed in SEEDS:
        half = dealt(rows, 2, np.random.default_rng([seed, 11]))
        for side in (0, 1):
            train, test = np.flatnonzero(half != side), np.flatnonzero(half == side)
            inner = cross_fitted(of, rows.take(train), repeats=1, seed=seed)
            chosen = choose({name: each[:, column] for name, each in inner.items()}, stays).chosen
            wanted = {chosen, *lines}
            wanted |= {part for each in of if each.name in wanted for part in each.parts}
            fitted = fit([each for each in of if each.name in wanted], rows.take(train), found)
            batch = rows.batch.take(test)
            scores = {name: fitted[name](batch) for name in lines} | {"ours": fitted[chosen](batch)}
            out.append(Half(test, scores, chosen))
            print(f"seed {seed}, half {side + 1}: {chosen}", flush=True)
    return out


def mean_over(made: list[Half], count: int, compute: Callable[[Half, str], Callable[[Array], Array]], line: str) -> Array:
    """float64 (1 + resamples,): a figure's mean over the halves, on the rows and on customers drawn again (the same for all lines)."""
    of = [(half.rows, compute(half, line)) for half in made]
    return resampled(lambda weight: np.mean([each(weight[:, rows]) for rows, each in of], axis=0), count, None, RESAMPLES, 0)


def names_of(made: list[Half]) -> str:
    chosen, counts = np.unique([half.chosen for half in made], return_counts=True)
    return ", ".join(f"{name} {count}" for count, name in sorted(zip(counts, chosen), reverse=True))


def ordered(row: str, arm: str, must: float, peer: str, others: tuple[str, ...], of_trees: tuple[str, ...]) -> Figure:
    """Qini of visits, one arm against none."""
    rows = trial("visit", arm)
    lines = (peer, *others)
    made = halves(rows, 0, ORDER, lines, those(*of_trees))

    def compute(half: Half, line: str) -> Callable[[Array], Array]:
        return weighted_qini(rows.outcome[half.rows], half.scores[line][:, 0], rows.arm[half.rows].astype(np.float64))

    samples = {line: mean_over(made, len(rows), compute, line) for line in ("ours", *lines)}
    spread = {
        line: np.std([qini(rows.outcome[h.rows], h.scores[line][:, 0], rows.arm[h.rows]) for h in made]) for line in samples
    }
    ours, apart = estimate_of(samples["ours"]), estimate_of(samples["ours"] - samples[peer])
    reached = ours.value >= must
    return Figure(
        id=row,
        what=f"hillstrom_email, visit, {arm} against none: Qini over {len(SEEDS)} x 2 halves (less {peer}: {apart.value:.4f}, "
        f"95 % {apart.low:.4f} to {apart.high:.4f} over customers; "
        + ", ".join(f"{line} {each[0]:.4f} +- {spread[line]:.4f}" for line, each in samples.items())
        + f"; chosen within the training halves: {names_of(made)})",
        ours=ours.value,
        peer=float(samples[peer][0]),
        peer_name=peer,
        lower_is_better=False,
        unit="Qini",
        interval=(ours.low, ours.high),
        seeds=SEEDS,
        must=f"{must:.3f}",
        reached=reached,
        why=""
        if reached
        else f"the interval over customers is {ours.low:.3f} to {ours.high:.3f}, wider than what parts any two learners here",
    )


def t4() -> list[Figure]:
    """Visits, Womens e-mail against none."""
    return [ordered("T4", WOMENS, 0.072, "t:linear", ("t:gbdt", "rule"), ("s", "t")), definition()]


def t5() -> list[Figure]:
    """Visits, Mens e-mail against none."""
    return [ordered("T5", MENS, 0.034, "response:linear", ("t:linear", "rule"), ("response", "s", "t"))]


def t6() -> list[Figure]:
    """Conversions of three arms: what the chosen policy is worth, against the Mens e-mail to all."""
    rows = trial("conversion", MENS, WOMENS)
    of = [each for each in candidates([LINEAR]) if each.learner != "response"]
    made = halves(rows, -1, SAFE, (), of)
    mens = rows.arms.index(MENS)

    def compute(half: Half, line: str) -> Callable[[Array], Array]:
        policy = np.full(len(half.rows), mens) if line == "mens" else best_arms(half.scores[line])
        return weighted_value(rows.outcome[half.rows], rows.arm[half.rows], policy)

    samples = {line: mean_over(made, len(rows), compute, line) for line in ("ours", "mens")}
    ours, peer = estimate_of(samples["ours"]), estimate_of(samples["mens"])
    apart = estimate_of(samples["ours"] - samples["mens"])
    to_mens = np.mean([(best_arms(half.scores["ours"]) == mens).mean() for half in made])
    reached = apart.value >= -1e-12
    return [
        Figure(
            id="T6",
            what=f"hillstrom_email, three arms, conversions a row by the chosen policy, over {len(SEEDS)} x 2 halves (less {MENS} to all: "
            f"{apart.value:.5f}, 95 % {apart.low:.5f} to {apart.high:.5f} over customers; {to_mens:.0%} of rows are given {MENS}; "
            f"chosen within the training halves: {names_of(made)})",
            ours=ours.value,
            peer=peer.value,
            peer_name=f"{MENS} to all",
            lower_is_better=False,
            unit="conversions a row",
            interval=(ours.low, ours.high),
            seeds=SEEDS,
            must="not below",
            reached=reached,
            why=""
            if reached
            else f"the paired difference has the interval {apart.low:.5f} to {apart.high:.5f}, which holds zero",
        )
    ]


INNER = tuple(range(100, 101 if QUICK else 103))
"""Seeds of other halves, for what T4 and T5 could come to: nothing is chosen by these rows."""
SHARES = (0.25, 0.5, 1.0, 2.0)
"""Of a half's customers that are cross-fitted; 2: all customers of the trial."""


def inner() -> list[Figure]:
    """What every learner reaches by cross-fitting among the same customers, with how many, and on customers that it has seen."""
    out, found = [], plugins()
    for row, arm in (("T4", WOMENS), ("T5", MENS)):
        rows, of = trial("visit", arm), candidates([LINEAR])
        made: dict[float, list[dict[str, float]]] = {share: [] for share in SHARES}
        seen: list[dict[str, float]] = []
        for seed in INNER:
            half = dealt(rows, 2, np.random.default_rng([seed, 7]))
            for side in (0, 1):
                train = np.random.default_rng(seed).permutation(np.flatnonzero(half == side))
                for share in SHARES[:-1]:
                    made[share].append(_means(of, rows.take(train[: round(share * len(train))]), seed))
                own = rows.take(train)
                seen.append({name: qinis(own, each(own.batch))[0] for name, each in fit(of, own, found).items()})
            made[SHARES[-1]].append(_means(of, rows, seed))
            print(row, seed, made[SHARES[-1]][-1], flush=True)
        mean = {share: _mean(each) for share, each in made.items()}
        half, more, own = mean[1.0], mean[2.0], _mean(seen)
        best = max(half, key=lambda name: half[name])
        size = len(rows) / 2 * (1 - 1 / FOLDS)
        curve = ", ".join(
            f"{name} {' '.join(f'{mean[share][name]:.4f}' for share in SHARES)}"
            for name in dict.fromkeys((best, ORDER, "t:linear", "rule"))
        )
        top = max(more, key=lambda name: more[name])
        out.append(
            Figure(
                id=f"{row} inner",
                what=f"hillstrom_email, visit, {arm} against none, within halves of seeds {INNER[0]} to {INNER[-1]}: Qini "
                "on held-out fifths, the best of "
                + ", ".join(f"{name} {value:.4f}" for name, value in sorted(half.items(), key=lambda each: -each[1]))
                + f"; fitted on {', '.join(f'{share * size:,.0f}' for share in SHARES)} customers: {curve}, and the best of all learners "
                f"on the most, {top} {more[top]:.4f}; of the very customers fitted on: {ORDER} {own[ORDER]:.4f}, t:linear "
                f"{own['t:linear']:.4f}",
                ours=half[best],
                peer=half["t:linear"],
                peer_name="t:linear",
                lower_is_better=False,
                unit="Qini",
                seeds=INNER,
            )
        )
    return out


def _means(of: list[Candidate], rows: Trial, seed: int) -> dict[str, float]:
    """By candidate its mean Qini over held-out fifths."""
    return {name: float(each[:, 0].mean()) for name, each in cross_fitted(of, rows, repeats=1, seed=seed).items()}


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in values])) for name in values[0]}


def definition() -> Figure:
    """Our Qini coefficient against scikit-uplift's, in an environment of its own folder."""
    folder = ROOT / ".peers" / "scikit-uplift"
    if not folder.exists():
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "scikit-uplift==0.5.1"]
        subprocess.run(install, check=True)
    rng = np.random.default_rng(0)
    table = np.stack([rng.integers(0, 2, 5000), np.round(rng.normal(size=5000), 1), rng.integers(0, 2, 5000)])
    code = (
        "import json, sys; import numpy as np; from sklift.metrics import qini_auc_score; "
        "y, u, t = np.array(json.load(sys.stdin)); print(repr(float(qini_auc_score(y.astype(int), u, t.astype(int)))))"
    )
    import json
    import os

    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    told = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(table.tolist()),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    gap = abs(qini(*table) - float(told.stdout))
    return Figure(
        what="Qini coefficient of 5,000 rows with ties: distance to scikit-uplift 0.5.1's qini_auc_score",
        ours=gap,
        unit="Qini",
        must="0",
        reached=gap < 1e-9,
        why="the definitions differ" if gap >= 1e-9 else "",
    )
