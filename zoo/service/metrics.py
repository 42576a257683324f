"""What Prometheus reads at ``/metrics``: requests, times, refusals and versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from zoo.errors import UnknownIdError, UsageError
from zoo.predictor import Predictor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The counts of one application. Those with labels are functions of them, which remember: to look a label up takes a refusal's time."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = own
        self.requests = cache(Counter("zoo_requests", "Requests answered", ("route", "status"), registry=own).labels)
        self.seconds = cache(Histogram("zoo_request_seconds", "Time to answer", ("route",), buckets=BUCKETS, registry=own).labels)
        self.answers = cache(
            Counter("zoo_answers", "Answers of a version, and its errors", ("version", "outcome"), registry=own).labels
        )
        self.refused = cache(Counter("zoo_refused", "Requests refused before work began", ("reason",), registry=own).labels)
        self.running = Gauge("zoo_requests_running", "Requests worked on", registry=own)
        self.versions = Gauge("zoo_model_version", "Number of the version that answers", ("model",), registry=own)

    @contextmanager
    def of(self, predictor: Predictor) -> Iterator[None]:
        """Count what this predictor answers in the block, or fails to; requests that cannot be meant are nobody's failure."""
        outcome = "error"
        try:
            yield
            outcome = "answered"
        except (UsageError, UnknownIdError):
            outcome = "refused"
            raise
        finally:
            self.answers(predictor.version.reference, outcome).inc()

    def text(self, predictors: Mapping[str, Predictor]) -> bytes:
        for name, predictor in predictors.items():
            self.versions.labels(name).set(predictor.version.number)
        return generate_latest(self._registry)
