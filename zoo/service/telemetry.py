"""Where the service's spans go: to an OpenTelemetry collector, if its standard environment variables name one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.errors import UsageError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Environment variables, either of which turns spans on; the exporter reads them and the rest of ``OTEL_*`` itself."""


@contextmanager
def sending() -> Iterator[bool]:
    """Send spans (OTLP over HTTP) in this block; what waits at its end is sent then. Whether any are sent.

    Raises UsageError where the environment asks for it and the packages are not installed.
    """
    asked = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if asked is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield False
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(f"{asked} asks for spans, but {error.name} is not installed: pip install 'feature-zoo[otel]'") from error
    from opentelemetry import trace

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "feature-zoo"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield True
    finally:
        provider.shutdown()
