"""``make bench-tasks``: behaviour, churn and campaign against the references of their rows; figures in docs/benchmarks/tasks.json."""

from __future__ import annotations

import figures
import tasks_autogluon
import tasks_behaviour
import tasks_ceiling
import tasks_churn
import tasks_finals
import tasks_purchases
import tasks_retail
import tasks_uplift

if __name__ == "__main__":
    figures.chosen(
        "tasks",
        {
            "T4": tasks_uplift.t4,
            "T5": tasks_uplift.t5,
            "T6": tasks_uplift.t6,
            "uplift-inner": tasks_uplift.inner,
            "T1": tasks_purchases.t1,
            "T1-ceiling": tasks_purchases.t1_ceiling,
            "T2": tasks_purchases.t2,
            "T3": tasks_retail.t3,
            "T7": tasks_behaviour.t7,
            "T7b": tasks_behaviour.t7b,
            "T7-ceiling": tasks_ceiling.t7_ceiling,
            "T8": tasks_behaviour.t8,
            "T9": tasks_autogluon.t9,
            "T9b": tasks_autogluon.t9b,
            "finals": tasks_finals.finals,
            "cdnow": tasks_churn.cdnow,
            "imbalance": tasks_behaviour.imbalance,
        },
        __doc__,
    )
