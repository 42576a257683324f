"""The predictor as plain Python in MLflow: this file is the model ("models from code"), with BENCH_ROOT, the project.

``python serve_mlflow.py FOLDER`` writes the model's folder, for ``mlflow models serve``.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import mlflow
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Churn(PythonModel):
    def load_context(self, context: Any) -> None:
        from zoo.predictor import Predictor

        self.predictor = Predictor.load("churn", os.environ["BENCH_ROOT"])
        self.predictor.warm()

    def predict(self, context: Any, model_input: list[int], params: Any = None) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self.predictor.predict(users=model_input).to_pylist()
        return answers


if __name__ == "__main__":
    mlflow.pyfunc.save_model(sys.argv[1], python_model=__file__, pip_requirements=[])
else:
    set_model(Churn())
