"""Spans of OpenTelemetry: where the time of an answer goes. Without an SDK in the process nothing is made.

A span follows work into threads, as ``zoo.deadline.Threads`` runs it in the caller's context. It says names of members, services and
versions and numbers of rows, and of an error its type; never whom an answer is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, ProxyTracerProvider, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["Span", "failed", "heard", "serving", "span", "trace_id"]

_tracer = trace.get_tracer("zoo")
_nothing = nullcontext(INVALID_SPAN)
_caller = TraceContextTextMapPropagator()


def span(name: str, facts: Mapping[str, str | int]) -> AbstractContextManager[Span]:
    """A part of an answer, within the part that surrounds it. An exception that leaves the block marks it as failed."""
    # the API alone would take some twenty microseconds to make a span that nobody keeps
    return _kept(name, facts) if heard() else _nothing


def serving(name: str, headers: Mapping[str, str], facts: Mapping[str, str | int]) -> AbstractContextManager[Span]:
    """A whole request, part of its caller's trace where ``traceparent`` among its headers names one (W3C Trace Context)."""
    return _kept(name, facts, _caller.extract(headers), SpanKind.SERVER) if heard() else _nothing


def failed(span: Span, why: str) -> None:
    """Mark what a span stands for as failed."""
    span.set_status(Status(StatusCode.ERROR, why))


def trace_id(span: Span) -> str | None:
    """32 hexadecimal digits; None where nobody keeps the span."""
    return trace.format_trace_id(span.get_span_context().trace_id) if span.is_recording() else None


def heard() -> bool:
    """Whether this process keeps spans."""
    return not isinstance(trace.get_tracer_provider(), ProxyTracerProvider)


@contextmanager
def _kept(
    name: str, facts: Mapping[str, str | int], within: Context | None = None, kind: SpanKind = SpanKind.INTERNAL
) -> Iterator[Span]:
    # an error's own text may name people
    quiet = partial(_tracer.start_as_current_span, record_exception=False, set_status_on_exception=False)
    with quiet(name, context=within, kind=kind, attributes=facts) as made:
        try:
            yield made
        except Exception as error:
            failed(made, type(error).__name__)
            raise
