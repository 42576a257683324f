"""HTTP over a Predictor: routes, limits and error bodies. It knows no model and no store; what it answers is the predictor's."""

from zoo.service.app import app
from zoo.service.server import serve

__all__ = ["app", "serve"]
