"""How good scores are, and how sure that is: metrics with bootstrap intervals, paired differences, the leaderboard."""

from zoo.evaluation.bootstrap import Difference, Estimate, compare, evaluate
from zoo.evaluation.leaderboard import Row, leaderboard
from zoo.evaluation.metrics import METRICS, Metric

__all__ = ["METRICS", "Difference", "Estimate", "Metric", "Row", "compare", "evaluate", "leaderboard"]
