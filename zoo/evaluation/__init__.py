"""How good scores are, and how sure that is: metrics with bootstrap intervals, paired differences, the leaderboard."""

from zoo.evaluation.bootstrap import Difference, Estimate, compare, evaluate
from zoo.evaluation.calibration import Bin, calibration, reliability
from zoo.evaluation.classes import class_leaderboard, class_losses
from zoo.evaluation.leaderboard import Row, leaderboard
from zoo.evaluation.metrics import METRICS, Metric
from zoo.evaluation.thresholds import Decision, decision, threshold_of_capacity, threshold_of_costs

__all__ = [
    "METRICS",
    "Bin",
    "Decision",
    "Difference",
    "Estimate",
    "Metric",
    "Row",
    "calibration",
    "class_leaderboard",
    "class_losses",
    "compare",
    "decision",
    "evaluate",
    "leaderboard",
    "reliability",
    "threshold_of_capacity",
    "threshold_of_costs",
]
