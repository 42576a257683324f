"""From the log to labelled rows, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import hookimpl

if TYPE_CHECKING:
    from zoo.contract import Task


@hookimpl
def zoo_tasks() -> list[Task]:
    from zoo.tasks import behaviour, campaign, churn, propensity, recommendation  # numpy, which listing plugins need not import

    return [behaviour.TASK, campaign.TASK, churn.TASK, propensity.TASK, recommendation.TASK]
