"""The predictor as plain Python in BentoML: ``bentoml serve serve_bentoml:Churn`` with BENCH_ROOT, the project, and BENCH_WORKERS."""

from __future__ import annotations

import os
from typing import Any

import bentoml

from zoo.predictor import Predictor


@bentoml.service(workers=int(os.environ["BENCH_WORKERS"]), threads=4, logging={"access": {"enabled": False}})
class Churn:
    def __init__(self) -> None:
        self.predictor = Predictor.load("churn", os.environ["BENCH_ROOT"])
        self.predictor.warm()

    @bentoml.api
    def predict(self, users: list[int]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self.predictor.predict(users=users).to_pylist()
        return answers
