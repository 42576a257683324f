"""AutoGluon on a table of features, in an environment of its own (no zoo in it).

``python autogluon_peer.py FOLDER SECONDS``: FOLDER holds what ``tasks_autogluon.py`` writes, train.parquet and test.parquet: features,
``target`` and, of training rows, ``household``, which is no feature: its rows stay together where rows are held out. SECONDS of the
processor are its limit. The test rows' probabilities go to FOLDER/scores.parquet; one JSON line says what was fitted and what it took.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from measured import processor


def own_clock() -> None:
    """From here on clocks count what this process takes of the processor: other work on the machine then costs it nothing of its limit."""
    begun = time.time()
    time.time = lambda: begun + time.process_time()
    time.perf_counter = time.process_time


def main(folder: Path, seconds: float) -> None:
    begun = time.monotonic()
    own_clock()
    from autogluon.tabular import TabularPredictor

    train, test = (pd.read_parquet(folder / f"{part}.parquet") for part in ("train", "test"))
    before = processor()
    own = {"path": str(folder / "models"), "learner_kwargs": {"ignored_columns": ["household"]}}
    predictor = TabularPredictor("target", problem_type="binary", eval_metric="log_loss", **own)
    whole = {"validation_structure": {"group_on": "household"}}
    predictor.fit(train, presets="best_quality", time_limit=seconds, num_cpus=1, num_gpus=0, **whole)
    used = processor() - before
    scores = predictor.predict_proba(test.drop(columns="target"))[1]
    pd.DataFrame({"score": scores.to_numpy()}).to_parquet(folder / "scores.parquet")
    found = {"models": predictor.model_names(), "best": predictor.model_best, "version": version("autogluon.tabular")}
    print(json.dumps({"seconds": time.monotonic() - begun, "cpu_seconds": used, **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
