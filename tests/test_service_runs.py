"""The service under load, past deadlines, as Prometheus and Open Inference Protocol clients meet it, and as a process."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from shop import Shop
from test_service import opened, running

from zoo.service import app
from zoo.service.load import LEAST, SOON, Limiter
from zoo.traces import Traces


@dataclass
class Server:
    url: str
    log: list[str] = field(default_factory=list)


@contextmanager
def served_by_command(
    shop: Shop, host: str = "127.0.0.1", stop: signal.Signals = signal.SIGINT, **environment: str
) -> Iterator[Server]:
    """``zoo serve churn`` in a process of its own; its log is whole after the block.

    stop: what ends it. environment: variables beside this process's.
    """
    code = f"from zoo.service import serve; serve({str(shop.root)!r}, ['churn'], {host!r}, 0)"
    more = {**os.environ, **environment}
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=more) as process:
        assert process.stderr is not None
        try:
            server = Server("")
            for line in process.stderr:
                server.log.append(line)
                if found := re.search(r"at (https?://[\d.]+:\d+)", line):
                    server.url = found[1]
                    break
            yield server
            process.send_signal(stop)
            server.log += process.stderr.readlines()
            assert process.wait() == 0
        finally:
            process.kill()


@dataclass(frozen=True)
class Held:
    """A predictor that answers when it is let go."""

    real: Any
    begun: threading.Semaphore
    let: threading.Event

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def answer(self, *args: Any, **named: Any) -> Any:
        self.begun.release()
        self.let.wait()
        return self.real.answer(*args, **named)


@pytest.fixture(scope="module")
def parts(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return opened(trained_shop.copy(tmp_path_factory.mktemp("runs") / "shop"))


def counts(client: httpx.Client) -> dict[str, float]:
    """What Prometheus reads. The counts belong to the process where Feast was imported first, so only differences say something."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


BODY = {"model": "churn", "users": [1]}


def test_what_is_too_much_is_refused_at_once_and_the_rest_is_answered(parts: Any) -> None:
    predictors, features = parts
    held = Held(predictors["churn"], threading.Semaphore(0), threading.Event())
    with running(app({"churn": held}, features, limiter=Limiter(2))) as client, ThreadPoolExecutor(2) as pool:  # type: ignore[dict-item]
        before = counts(client)
        first = [pool.submit(httpx.post, f"{client.base_url}/v1/predict", json=BODY, timeout=60) for _ in range(2)]
        for _ in range(2):
            assert held.begun.acquire(timeout=30)
        refused = client.post("/v1/predict", json=BODY)
        assert (refused.status_code, refused.json()["error"]["type"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        infer = client.post("/v2/models/churn/infer", json={})
        assert (infer.status_code, type(infer.json()["error"])) == (503, str)
        assert client.get("/health/live").status_code == 200  # probes are never refused for load
        held.let.set()
        assert [each.result().status_code for each in first] == [200, 200]
        assert client.post("/v1/predict", json=BODY).status_code == 200
        after = counts(client)
        assert after['zoo_refused_total{reason="overloaded"}'] - before.get('zoo_refused_total{reason="overloaded"}', 0) == 2
        answered = 'zoo_requests_total{route="/v1/predict",status="200"}'
        assert after[answered] - before.get(answered, 0) == 3
        assert after['zoo_model_version{model="churn"}'] == 1


def test_a_deadline_is_kept_whatever_the_work_does(parts: Any) -> None:
    predictors, features = parts
    held = Held(predictors["churn"], threading.Semaphore(0), threading.Event())
    with running(app({"churn": held}, features)) as client:  # type: ignore[dict-item]
        late = client.post("/v1/predict", json=BODY, headers={"X-Deadline-Ms": "50"})
        assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline")
        held.let.set()
        assert client.post("/v1/predict", json=BODY, headers={"X-Deadline-Ms": "60000"}).status_code == 200
        for wrong in ("0", "-1", "soon", "600001", "1.5", "9" * 30):
            response = client.post("/v1/predict", json=BODY, headers={"X-Deadline-Ms": wrong})
            assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_deadline")


def test_requests_are_named_in_answers(parts: Any) -> None:
    with running(app(*parts)) as client:
        assert client.get("/health/live", headers={"X-Request-Id": "r-1"}).headers["x-request-id"] == "r-1"
        assert re.fullmatch("[0-9a-f]{32}", client.get("/health/live", headers={"X-Request-Id": "a b"}).headers["x-request-id"])


def test_the_limit_comes_down_under_congestion_and_goes_up_again() -> None:
    limiter = Limiter(40, limit=40)
    for _ in range(20):
        assert limiter.enter()
    limiter.leave(SOON * 2)
    assert limiter.limit == 36
    limiter.leave(SOON * 2)
    assert limiter.limit == 36  # one moment of congestion counts once
    limiter.leave(SOON * 100, work=False)
    limiter.limit = float(LEAST)
    assert limiter.running > LEAST
    assert not limiter.enter()
    limiter.leave(SOON / 2)
    assert limiter.limit > LEAST
    limiter.leave(SOON / 2)
    limiter.mean = 1.0
    assert not limiter.enter(within=0.5)
    assert limiter.enter(within=2)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_ends_what_it_began(trained_shop: Shop, tmp_path: Path, stop: signal.Signals) -> None:
    shop = trained_shop.copy(tmp_path / "shop")
    with (shop.root / "zoo.toml").open("a") as file:
        file.write("\n[traces]\nkeep = 500\n")
    traces, body = Traces(shop.root / "data" / "traces.db", 500), json.dumps(BODY).encode()
    head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    with (
        socket.socket() as caller,
        closing(sqlite3.connect(traces.path, isolation_level=None, check_same_thread=False)) as writer,
    ):
        with served_by_command(shop, stop=stop) as server:
            writer.execute("BEGIN IMMEDIATE")  # traces wait until it ends
            first = httpx.post(f"{server.url}/v1/predict", json=BODY, timeout=60).json()["answers"][0]["id"]
            caller.connect(("127.0.0.1", httpx.URL(server.url).port))
            caller.settimeout(60)
            caller.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            assert caller.recv(1_000).startswith(b"HTTP/1.1 100")  # it waits for the body
            rest = threading.Timer(1, lambda: (caller.sendall(body), writer.execute("ROLLBACK")))
            rest.start()
        rest.join()
        answer = b"".join(iter(lambda: caller.recv(100_000), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    second = json.loads(answer.partition(b"\r\n\r\n")[2])["answers"][0]["id"]
    for id in (first, second):
        assert traces.find(id)["model"] == "churn@1"


SLOW = """
import sys, time
from zoo.features import Features
from zoo.predictor import Predictor
from zoo.service import server

def slow(*_, **__):
    print("begun", file=sys.stderr, flush=True)
    time.sleep(600)

real = Predictor.answer
Features.append, server.GRACE = slow, 1
Predictor.answer = lambda own, table, **more: slow() if len(table) > 64 else real(own, table, **more)
server.serve(sys.argv[1], ["churn"], port=0)
"""


def test_a_server_that_is_told_to_stop_does_not_wait_for_what_goes_on_beyond_its_grace(trained_shop: Shop) -> None:
    event = {"event_id": "e", "user_id": 1, "event_type": "view", "timestamp": "2024-05-01T00:00:00Z"}
    many: Any = {"model": "churn", "users": [1] * 65}
    asked: list[tuple[str, Any]] = [("/v1/events", {"events": [event]}), ("/v1/predict", many)]
    command = [sys.executable, "-c", SLOW, str(trained_shop.root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, ThreadPoolExecutor() as pool:
        assert process.stderr is not None
        try:
            url = next(found[1] for line in process.stderr if (found := re.search(r"at (http://[\d.]+:\d+)", line)))
            answers = [pool.submit(httpx.post, f"{url}{path}", json=body, timeout=120) for path, body in asked]
            begun = itertools.islice((line for line in process.stderr if line == "begun\n"), len(asked))
            assert len([*begun]) == len(asked)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert "timeout graceful shutdown exceeded" in process.stderr.read()
            for answer in answers:
                assert answer.exception() is not None or answer.result().status_code >= 500
        finally:
            process.kill()


def tensor(*users: int, **more: Any) -> dict[str, Any]:
    return {"name": "user_id", "shape": [len(users)], "datatype": "INT64", "data": list(users), **more}


def test_the_open_inference_protocol_answers_as_v1_does(parts: Any) -> None:
    predictors, features = parts
    with running(app(predictors, features)) as client:
        assert client.get("/v2").json()["name"] == "feature-zoo"
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        for path in ("/v2/models/churn", "/v2/models/churn/versions/1"):
            metadata = client.get(path).json()
            assert metadata["inputs"] == [{"name": "user_id", "datatype": "INT64", "shape": [-1]}]
            assert client.get(f"{path}/ready").json() == {"name": "churn", "ready": True}
            body = {"id": "r-1", "inputs": [tensor(5, 999_999)]}
            answer = client.post(f"{path}/infer", json=body).raise_for_status().json()
            outputs = {each["name"]: each for each in answer["outputs"]}
            assert (answer["id"], answer["model_name"], answer["model_version"]) == ("r-1", "churn", "1")
            described = [(o["name"], o["datatype"], len(o["shape"])) for o in metadata["outputs"]]
            assert described == [(o["name"], o["datatype"], len(o["shape"])) for o in answer["outputs"]]
            v1 = client.post("/v1/predict", json={"model": "churn", "users": [5, 999_999]}).json()["answers"]
            assert outputs["score"]["data"] == [each["score"] for each in v1]
            assert outputs["member:gru"]["data"] == [each["members"]["gru"] for each in v1]
            assert outputs["known"]["data"] == [True, False]
            assert outputs["newest_event_age"]["data"] == [v1[0]["newest_event_age"], -1.0]
        for datatype in (f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)):
            for data, shape in (([5, 6], [2]), ([5, 6], [2, 1]), ([[5], [6]], [2, 1]), ([5.0, 6], [2])):
                body = {"inputs": [{**tensor(5), "datatype": datatype, "data": data, "shape": shape}]}
                answer = client.post("/v2/models/churn/infer", json=body).raise_for_status().json()
                v1 = client.post("/v1/predict", json={"model": "churn", "users": [5, 6]}).json()["answers"]
                assert answer["outputs"][0]["data"] == pytest.approx([each["score"] for each in v1], abs=1e-6)
        some = {"inputs": [tensor(5, shape=[1, 1])], "outputs": [{"name": "score"}], "parameters": {"at": "2024-04-01T00:00:00Z"}}
        (only,) = client.post("/v2/models/churn/infer", json=some).json()["outputs"]
        assert (only["name"], only["shape"]) == ("score", [1])


def test_tensors_need_not_be_announced_as_json_and_binary_ones_are_refused(parts: Any) -> None:
    content, path = json.dumps({"inputs": [tensor(5)]}), "/v2/models/churn/infer"
    with running(app(*parts)) as client:
        unnamed, announced = client.post(path, content=content), client.post(path, json={"inputs": [tensor(5)]})
        assert "content-type" not in unnamed.request.headers
        assert unnamed.raise_for_status().json() == announced.json()
        assert client.post(path, content=content, headers={"Content-Type": "text/plain"}).status_code == 415
        assert client.post("/v1/events", content=b'{"events": []}').status_code == 415
        binary = client.post(path, content=content + "\0" * 8, headers={"Inference-Header-Content-Length": str(len(content))})
    assert (binary.status_code, list(binary.json())) == (415, ["error"])
    assert "binary_data=False" in binary.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("nothing/infer", {"inputs": [tensor(1)]}, 404, "unknown model"),
        ("churn/versions/9/infer", {"inputs": [tensor(1)]}, 404, "unknown version of churn"),
        ("churn/infer", {"inputs": [tensor(1, shape=[2])]}, 422, "expected [n] or [n, 1]"),
        ("churn/infer", {"inputs": [tensor(1, shape=[1, 2])]}, 422, "expected [n] or [n, 1]"),
        ("churn/infer", {"inputs": [tensor(1, datatype="BYTES")]}, 422, "of BYTES holds 1"),
        ("churn/infer", {"inputs": [tensor(300, datatype="UINT8")]}, 422, "of UINT8 holds 300"),
        ("churn/infer", {"inputs": [tensor(-1, datatype="UINT64")]}, 422, "of UINT64 holds -1"),
        ("churn/infer", {"inputs": [tensor(2**63, datatype="UINT64")]}, 422, "at most 64 bits"),
        ("churn/infer", {"inputs": [tensor(1.5)]}, 422, "of INT64 holds 1.5"),
        ("churn/infer", {"inputs": [tensor(2.0**53 + 2)]}, 422, "of INT64 holds"),
        ("churn/infer", {"inputs": [tensor([1, 2], shape=[1, 1])]}, 422, "nested otherwise than the shape"),
        ("churn/infer", {"inputs": [tensor([1], [2], shape=[2])]}, 422, "nested otherwise than the shape"),
        ("churn/infer", {"inputs": [tensor([1], 2, shape=[2, 1])]}, 422, "nested otherwise than the shape"),
        ("churn/infer", {"inputs": [tensor([[1]], shape=[1, 1])]}, 422, "inputs.0.data"),
        ("churn/infer", {"inputs": [tensor(1), tensor(1)]}, 422, "two inputs have one name"),
        ("churn/infer", {"inputs": [tensor(1, name="user")]}, 422, "unknown input 'user'"),
        ("churn/infer", {"inputs": [tensor(1)], "outputs": [{"name": "x"}]}, 422, "unknown output 'x'"),
        ("churn/infer", {"inputs": [tensor(1)], "parameters": {"at": 1}}, 422, "expected ISO 8601"),
        ("churn/infer", {"inputs": [tensor(1)], "parameters": {"at": "noon"}}, 422, "expected ISO 8601"),
        ("churn/infer", {"inputs": []}, 422, "at least 1 item"),
    ],
)
def test_tensors_that_cannot_be_meant_are_refused(parts: Any, path: str, body: Any, status: int, message: str) -> None:
    with running(app(*parts)) as client:
        response = client.post(f"/v2/models/{path}", json=body)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert json.loads(response.text).keys() == {"error"}
