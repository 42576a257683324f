"""Where the service's spans go: to an OpenTelemetry collector, if its standard environment variables name one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.errors import UsageError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Environment variables, either of which turns spans on; the exporter reads them and the rest of ``OTEL_*`` itself."""

PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"
PATIENCE = 5.0
"""Seconds that a collector may take."""


@contextmanager
def sending() -> Iterator[bool]:
    """Send spans (OTLP over HTTP) in this block; what waits at its end is sent then. Whether any are sent.

    Raises UsageError where the environment asks for another protocol, or for spans and the packages are not installed.
    """
    asked = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if asked is None or off:
        yield False
        return
    for name in PROTOCOLS:
        if os.environ.get(name, SPOKEN) != SPOKEN:
            raise UsageError(f"{name} is {os.environ[name]!r}; zoo serve speaks {SPOKEN} to a collector, usually at port 4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(f"{asked} asks for spans, but {error.name} is not installed: pip install 'feature-zoo[otel]'") from error
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), TracerProvider):  # whoever runs this process sends spans already
        yield True
        return
    found = Resource.create()
    nameless = str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    provider = TracerProvider(resource=found.merge(Resource({SERVICE_NAME: "feature-zoo"})) if nameless else found)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=PATIENCE)))
    trace.set_tracer_provider(provider)
    try:
        yield True
    finally:
        # the provider stays the process's, for it can be set only once; a collector that does not answer holds nobody up for long
        provider.force_flush(int(PATIENCE * 1_000))
