"""OpenTelemetry: a collector gets an answer's parts within the caller's trace, without a word about whom it was about."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from shop import Shop
from test_degradation import LET, churn, fail, late, misshapen, no_number, with_faults
from test_service_runs import served_by_command

from zoo.errors import UsageError
from zoo.predictor import Predictor
from zoo.service.telemetry import sending
from zoo.spans import span, trace_id

__all__ = ["churn"]  # a fixture

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
USER = 1_000_003
"""Nobody's number that could stand in a span for another reason."""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A collector's address, and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()


def sent(bodies: list[bytes]) -> list[Any]:
    """The spans of one process, as they began."""
    found = []
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"] == ["feature-zoo"]
            found += [each for scope in resource.scope_spans for each in scope.spans]
    return sorted(found, key=lambda each: each.start_time_unix_nano)  # batches may come in any order


def test_a_collector_gets_the_parts_of_an_answer_in_the_callers_trace(
    trained_shop: Shop, tmp_path: Path, collector: tuple[str, list[bytes]]
) -> None:
    url, bodies = collector
    copy = trained_shop.copy(tmp_path / "shop")
    asked = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-deadline-ms": "60000"}
    with served_by_command(copy, OTEL_EXPORTER_OTLP_ENDPOINT=url) as server, httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/predict", json={"model": "churn", "users": [USER]}, headers=asked).status_code == 200
        assert client.post("/v1/predict", json={"model": "churn", "users": ["x"]}, headers=asked).status_code == 422
        assert client.post("/v1/none", headers={"traceparent": "nonsense"}).status_code == 404
    spans = sent(bodies)
    roots = [each for each in spans if each.kind == 2]  # of a server
    assert [each.name for each in roots] == ["POST /v1/predict", "POST /v1/predict", "(any) (none)"]
    assert [each.trace_id.hex() == TRACE for each in roots] == [True, True, False]
    assert [each.parent_span_id.hex() for each in roots] == [CALLER, CALLER, ""]
    codes = [{a.key: a.value.int_value for a in each.attributes}["http.response.status_code"] for each in roots]
    assert codes == [200, 422, 404]
    parts = [each for each in spans if each.parent_span_id == roots[0].span_id]
    named = sorted((each.name, *(a.value.string_value for a in each.attributes if a.key == "zoo.member")) for each in parts)
    assert named == [("zoo.combine",), ("zoo.features",), ("zoo.member", "gbdt"), ("zoo.member", "gru")]
    assert all(roots[0].start_time_unix_nano <= each.start_time_unix_nano <= each.end_time_unix_nano for each in parts)
    assert str(USER).encode() not in b"".join(bodies)
    assert USER not in [a.value.int_value for each in spans for a in each.attributes]
    requests = [line for line in map(json.loads, server.log) if line["logger"] == "zoo.access"]
    named = [line["trace_id"] for line in requests]
    assert (
        len(named) >= 2
    )  # a line is written after its answer: the last one's when the server is stopped, others behind the next
    left = [each.trace_id.hex() for each in roots]
    for each in named:
        left.remove(each)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of this test, as they end."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # the process's own provider can be set only once
    monkeypatch.setattr("zoo.spans._tracer", provider.get_tracer("zoo"))
    monkeypatch.setattr("zoo.spans.heard", lambda: True)
    return exporter


def test_a_part_that_failed_says_the_kind_of_error_and_not_its_text(kept: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="42"), span("zoo.member", {"zoo.member": "gru"}):
        raise ValueError("user 42 is unknown")
    (found,) = kept.get_finished_spans()
    assert (found.status.is_ok, found.status.description, found.events) == (False, "ValueError", ())


@pytest.mark.parametrize(
    ("fault", "why"), [(fail, "ZeroDivisionError"), (late, "late"), (no_number, "no number"), (misshapen, "PluginError")]
)
def test_a_member_that_is_lost_is_marked(fault: Any, why: str, churn: Predictor, kept: InMemorySpanExporter) -> None:
    LET.clear()
    answer = with_faults(churn, fault, "gru").predict(users=[1], deadline=0.8)
    LET.set()
    assert answer["missing"].to_pylist() == [["gru"]]
    said: dict[str, str | None] = {}
    until = time.monotonic() + 30
    while len(said) < 2 and time.monotonic() < until:  # one that was late ends after the answer
        ended = [(dict(each.attributes or {}), each.status.description) for each in kept.get_finished_spans()]
        said = {str(facts["zoo.member"]): status for facts, status in ended if "zoo.member" in facts}
        time.sleep(0.01)
    assert said == {"gbdt": None, "gru": why}


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_a_protocol_that_is_not_spoken_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv(name, "grpc")
    with pytest.raises(UsageError, match=f"{name} is 'grpc'; zoo serve speaks http/protobuf"), sending():
        pass


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_spans_are_turned_off_as_the_standard_says(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(name, value)
    with sending() as are:
        assert not are


def test_without_a_collector_nothing_is_made() -> None:
    with span("zoo.member", {"zoo.member": "gru"}) as part:
        assert not part.is_recording()
        assert trace_id(part) is None


def test_what_the_environment_asks_for_and_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with (
        pytest.raises(UsageError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT asks for spans.* pip install 'feature-zoo\[otel\]'"),
        sending(),
    ):
        pass
