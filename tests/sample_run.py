"""What training and `zoo uplift` keep of a run, in small: for tests of reports."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.contract import Target
from zoo.evaluation.kept import TestScores

HOSTILE = "<script>alert('x')</script>&\"'"


def rows(n: int = 400, seed: int = 0) -> TestScores:
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.05, 0.95, n)
    target = (rng.random(n) < p).astype(np.float64)
    scores = {"good": p, "poor": np.full(n, 0.5), "mean": (p + 0.5) / 2, "stack": p}
    columns = {name: each[:, None] for name, each in scores.items()}
    return TestScores.of(target, np.arange(n) // 2, np.arange(n), columns, Target("binary"))


def line(auc: float, **more: Any) -> dict[str, Any]:
    loss = 1.3 - auc
    metrics = {"auc": auc, "log_loss": loss}
    between = {f"{name}_interval": [value - 0.02, value + 0.02] for name, value in metrics.items()}
    return {**metrics, **between, "seconds": 1.5, **more}


def apart(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "interval": [low, high], "p_value": 0.01}


def against(log_loss: tuple[float, float, float], auc: tuple[float, float, float] | None = None) -> dict[str, Any]:
    """How a line differs from the stack: value, low and high, by metric."""
    return {"log_loss": apart(*log_loss)} | ({"auc": apart(*auc)} if auc else {})


def record(**more: Any) -> dict[str, Any]:
    """What training keeps, in small."""
    return {
        "task": "churn",
        "rows": 900,
        "test_rows": 400,
        "train": ["2024-01-01", "2024-04-01"],
        "test": ["2024-05-01", "2024-05-01"],
        "members": {
            "good": line(0.8, fold_seconds=3.0, differences=against((0.01, -0.01, 0.03), (-0.01, -0.03, 0.01))),
            "poor": line(0.5, fold_seconds=0.1, differences=against((0.31, 0.27, 0.35), (-0.31, -0.35, -0.27))),
        },
        "mean": line(0.79, differences=against((0.02, 0.0, 0.04))),
        "stack": line(0.81),
        "best_member": "good",
        "base_rate": 0.5,
        "slices": {
            "history: no event": {
                "rows": 30,
                "metric": "log_loss",
                "value": 0.6,
                "value_interval": [0.5, 0.7],
                "best_member": "good",
            }
            | {
                "difference": 0.1,
                "difference_interval": [0.05, 0.15],
                "worse": True,
                "base_rate": 0.4,
                "mean_score": 0.5,
                "auc": None,
            },
            "history: 1 event": {
                "rows": 370,
                "metric": "log_loss",
                "value": 0.5,
                "value_interval": [0.4, 0.6],
                "best_member": "poor",
            }
            | {
                "difference": -0.1,
                "difference_interval": [-0.2, 0.0],
                "worse": False,
                "base_rate": 0.4,
                "mean_score": 0.5,
                "auc": 0.7,
            },
        },
        "importance": {
            "members": {"good": 1.2, "poor": 0.1},
            "features": {
                "good": {"how": "TreeSHAP", "rows": 200, "columns": {"recency": 0.7, HOSTILE: 0.2}},
                "poor": {"how": "not measured: a row takes 9.0 s", "rows": 0, "columns": {}},
            },
        },
        "weights": {"rows": [100, 200], "shares": {"good": [0.6, 0.9], "poor": [0.4, 0.1]}},
        "drift": {
            "recency": {"psi": 0.4, "ks": 0.3, "missing": [0.0, 0.1]},
            "spend": {"psi": 0.01, "ks": 0.02, "missing": [0.0, 0.0]},
        },
        "guards": [
            {"guard": "overlap", "fine": True, "seen": "no row is on both sides", "advice": ""},
            {"guard": "canary", "fine": True, "seen": "not tried: there is no fold", "advice": "", "tried": False},
            {"guard": "target-like features", "fine": False, "seen": f"tells the label: {HOSTILE}", "advice": "leave it out"},
        ],
        "command": "zoo train churn --test-start 2024-05-01",
        **more,
    }


EVERY = ["leaderboard", "calibration", "gain", "lift", "slices", "weights", "costs", "importance-members", "importance", "drift"]


def trial() -> dict[str, Any]:
    """A record with uplift curves and policies."""
    qini = {"value": 0.07, "interval": [0.05, 0.09]}
    board = {
        "chosen": "T-gbdt",
        "lines": {"T-gbdt": {"qini": qini}, "response": {"qini": qini, "difference": apart(-0.01, -0.02, 0.0)}},
        "curve": {name: {"contacted": [0, 50, 100], "gain": [0, 8, 10]} for name in ("chosen", "perfect")},
    }
    values = {"Mens to all": {"value": qini}, "best arm for each": {"value": qini}}
    return {"uplift": {"Womens": board}, "policy": {"values": values}}
