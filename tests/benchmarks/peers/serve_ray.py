"""The predictor as plain Python in Ray Serve: ``python serve_ray.py PORT``, until SIGTERM.

BENCH_ROOT is the project, BENCH_WORKERS how many processes answer.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import ray
from fastapi import Body, FastAPI
from ray import serve

from zoo.predictor import Predictor

app = FastAPI()


@serve.deployment(
    num_replicas=int(os.environ["BENCH_WORKERS"]),
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 0.5},
    logging_config={"enable_access_log": False},
)
@serve.ingress(app)
class Churn:
    def __init__(self, root: str) -> None:
        self.predictor = Predictor.load("churn", root)
        self.predictor.warm()

    @app.post("/predict")
    def predict(self, users: list[int] = Body(embed=True)) -> list[dict[str, Any]]:  # noqa: B008 - FastAPI's way
        answers: list[dict[str, Any]] = self.predictor.predict(users=users).to_pylist()
        return answers


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"port": int(sys.argv[1])}, logging_config={"enable_access_log": False})
    serve.run(Churn.bind(os.environ["BENCH_ROOT"]), route_prefix="/")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()
