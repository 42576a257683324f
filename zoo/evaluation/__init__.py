"""How good scores are, and how sure that is: metrics with bootstrap intervals, paired differences, the leaderboard."""

from zoo.evaluation.bootstrap import Difference, Estimate, compare, evaluate
from zoo.evaluation.classes import class_leaderboard, class_losses
from zoo.evaluation.leaderboard import Row, leaderboard
from zoo.evaluation.metrics import METRICS, Metric

__all__ = [
    "METRICS",
    "Difference",
    "Estimate",
    "Metric",
    "Row",
    "class_leaderboard",
    "class_losses",
    "compare",
    "evaluate",
    "leaderboard",
]
