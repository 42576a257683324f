"""Every route of the router is refused to whoever may not use it, before anything of the request is read."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from credentials import AUDIENCE, ISSUER, PRIVATE, PUBLIC, ask, attacks, paths, token
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from shop import Shop
from test_service import opened, running
from typer.testing import CliRunner

from zoo.cli.app import app as command
from zoo.errors import FeatureError, RegistryError, UsageError
from zoo.service import app, server
from zoo.service.access import ADMIN, OPEN, PUSH, READ, Access, add_key, rules_of
from zoo.service.settings import Jwt
from zoo.service.versions import Source, Versions


@pytest.fixture(scope="module")
def guarded(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastAPI, httpx.Client, Path]]:
    """A service that asks for credentials: keys in a file, tokens of one issuer."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "public.pem").write_text(PUBLIC)
    keys = folder / "keys.json"
    add_key(keys, "first", [READ])
    predictors, features = opened(trained_shop.copy(folder / "shop"))
    access = Access(keys, Jwt(("RS256",), ISSUER, AUDIENCE, folder / "public.pem"))
    api = app(predictors, features, access=access)
    with running(api) as client:
        client.access = access  # type: ignore[attr-defined]
        yield api, client, keys


def test_every_route_refuses_every_credential_that_is_none(guarded: tuple[FastAPI, httpx.Client, Path]) -> None:
    api, client, _ = guarded
    routes = paths(api)
    assert {("POST", "/v1/events", PUSH), ("GET", "/v1/models", READ), ("POST", "/v1/reload", ADMIN)} <= set(routes)
    probes = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
    assert {(method, path) for method, path, role in routes if role == OPEN} == {
        (method, path) for path in probes for method in ("GET", "HEAD")
    }
    roles = {(method, path): role for method, path, role in routes}
    assert all(roles["HEAD", path] == role for method, path, role in routes if method == "GET")
    for method, path, role in [*routes, ("GET", "/nothing", "(no route)"), ("DELETE", "/v1/models", "(no route)")]:
        for what, authorization in attacks().items():
            response = ask(client, method, path, authorization)
            if role == OPEN:
                assert response.status_code == 200
            else:
                assert response.status_code == 401, (method, path, what)  # the broken body was not looked at
                assert response.headers["www-authenticate"] == "Bearer"


def test_every_route_refuses_other_roles_and_admits_its_own(guarded: tuple[FastAPI, httpx.Client, Path]) -> None:
    api, client, _ = guarded
    for method, path, role in paths(api):
        for held in ([], [READ], [PUSH], [ADMIN], ["root"], "admin"):
            response = ask(client, method, path, f"Bearer {token(roles=held)}")
            may = role == OPEN or (isinstance(held, list) and (role in held or ADMIN in held))
            assert (response.status_code == 403) is not may, (method, path, held)
            assert response.status_code != 401


def test_keys_open_what_their_roles_say_until_they_are_revoked(guarded: tuple[FastAPI, httpx.Client, Path]) -> None:
    _, client, keys = guarded
    key = add_key(keys, "reader", [READ])
    access: Access = client.access  # type: ignore[attr-defined]
    access.refresh()
    assert ask(client, "GET", "/v1/models", f"Bearer {key}").status_code == 200
    assert ask(client, "POST", "/v1/events", f"Bearer {key}").status_code == 403
    assert key not in keys.read_text()
    assert keys.stat().st_mode & 0o077 == 0
    another = add_key(keys, "reader", [READ])
    access.refresh()
    assert ask(client, "GET", "/v1/models", f"Bearer {key}").status_code == 401
    assert ask(client, "GET", "/v1/models", f"Bearer {another}").status_code == 200
    whole = keys.read_text()
    keys.write_text("{")
    with pytest.raises(UsageError, match="cannot be read as a file of API keys"):
        access.refresh()
    assert ask(client, "GET", "/v1/models", f"Bearer {another}").status_code == 200
    keys.write_text(whole)


def test_a_key_is_revoked_while_the_registry_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let, asked = threading.Event(), threading.Event()

    class Dead(Source):
        def registered(self, *_: Any) -> Any:
            asked.set()
            assert let.wait(60)
            raise RegistryError("it was dead")

    monkeypatch.setattr(server, "KEYS", 0.05)
    path = tmp_path / "keys.json"
    lost = f"Bearer {add_key(path, 'lost', [READ])}"
    access = Access(path, None)
    versions = Versions({}, {"churn": "churn"}, Dead(None, None))  # type: ignore[arg-type]
    try:
        with server._watched(versions, access, 0.001):
            assert asked.wait(30)
            assert access.refused(lost, READ) is None
            add_key(path, "lost", [READ])  # another in its place
            until = time.monotonic() + 30
            while access.refused(lost, READ) is None and time.monotonic() < until:
                time.sleep(0.01)
            let.set()
    finally:
        let.set()
    assert access.refused(lost, READ) is not None


def test_a_route_without_a_role_is_not_served() -> None:
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    api.get("/secret")(lambda: None)
    with pytest.raises(UsageError, match=r"route /secret declares the role None; unknown role None; choose one of: admin, open"):
        rules_of(api)


@pytest.mark.parametrize(
    ("algorithms", "text", "message"),
    [
        (("RS256", "HS256"), PUBLIC, "never both"),
        (("none",), PUBLIC, "never both"),
        (("HS256",), PUBLIC, "no secret for HS256"),
        (("HS256",), "short", "at least 32 random bytes"),
        (("RS256",), "s" * 40, "no public key in PEM"),
    ],
)
def test_settings_that_would_let_strangers_in_are_refused(
    tmp_path: Path, algorithms: tuple[str, ...], text: str, message: str
) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(UsageError, match=message):
        Access(None, Jwt(algorithms, ISSUER, AUDIENCE, tmp_path / "key"))


def test_a_shared_secret_works_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s" * 40 + "\n")
    access = Access(None, Jwt(("HS256",), ISSUER, AUDIENCE, tmp_path / "key"))
    assert access.refused(f"Bearer {token('s' * 40, 'HS256')}", ADMIN) is None
    assert access.refused(f"Bearer {token('t' * 40, 'HS256')}", ADMIN) is not None


def test_a_key_is_made_by_one_command(tmp_path: Path) -> None:
    (tmp_path / "zoo.toml").write_text('[service.auth]\nkeys = "own/keys.json"\n')
    done = CliRunner().invoke(command, ["--repo", str(tmp_path), "key", "shop", "--role", "read", "--role", "push", "--json"])
    made = json.loads(done.output)
    assert Access(tmp_path / "own" / "keys.json", None).refused(f"Bearer {made['key']}", PUSH) is None
    assert CliRunner().invoke(command, ["--repo", str(tmp_path), "key", "shop", "--role", "root"]).exit_code == 2


@pytest.mark.parametrize("between", [" ", "  ", "     "])
def test_spaces_between_scheme_and_credential_are_no_part_of_it(
    guarded: tuple[FastAPI, httpx.Client, Path], between: str
) -> None:
    api, client, keys = guarded
    key = add_key(keys, "spaced", [READ])
    api.state.admission.access.refresh()
    headers = {"Authorization": f"Bearer{between}{key}"}
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.get("/v1/models", headers={"Authorization": f"Bearer{between}{key[:-1]}"}).status_code == 401


@pytest.mark.parametrize("name", ["", " ", " reader", "two\nlines", "\x1b[31m", "n" * 201])
def test_a_key_needs_a_name_that_people_can_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(UsageError, match="expected who holds it"):
        add_key(path, name, [READ])
    assert not path.exists()
    path.write_text(json.dumps({"keys": [{"name": name, "sha256": "0" * 64, "roles": [READ]}]}))
    with pytest.raises(UsageError, match="a name has 1 to 200"):
        Access(path, None)


def test_a_key_is_revoked_by_one_command(tmp_path: Path) -> None:
    def zoo(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(command, ["--repo", str(tmp_path), "key", *words])
        return done.exit_code, " ".join(done.output.split())

    (tmp_path / "zoo.toml").write_text('[service.auth]\nkeys = "keys.json"\n')
    assert zoo("shop", "--revoke")[0] == 2  # there is no file
    assert [path.name for path in tmp_path.iterdir()] == ["zoo.toml"]
    made = {name: zoo(name, "--role", "read")[1] for name in ("shop", "other")}
    access = Access(tmp_path / "keys.json", None)
    code, said = zoo("shop", "--revoke")
    assert (code, "the key of shop is taken out" in said) == (0, True)
    access.refresh()
    assert [access.refused(f"Bearer {made[name]}", READ) is None for name in ("shop", "other")] == [False, True]
    code, said = zoo("shop", "--revoke")
    assert (code, "unknown key 'shop'; choose one of: other" in said) == (2, True)
    for words in ((), ("--role", "read", "--revoke")):
        code, said = zoo("shop", *words)
        assert (code, "one of them" in said) == (2, True)


def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    lost = f"Bearer {add_key(path, 'lost', [READ])}"
    access, seen = Access(path, None), path.stat()
    add_key(path, "lost", [READ])
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    access.refresh()
    assert access.refused(lost, READ) is not None


def test_a_file_of_keys_that_is_gone_is_told_once_and_the_former_keys_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "KEYS", 0.01)
    path = tmp_path / "keys.json"
    held = f"Bearer {add_key(path, 'held', [READ])}"
    access, looks = Access(path, None), threading.Semaphore(0)
    real = access.refresh

    def refresh() -> None:
        looks.release()
        real()

    monkeypatch.setattr(access, "refresh", refresh)
    path.unlink()
    with server._watched(Versions({}), access, 0):
        assert all(looks.acquire(timeout=30) for _ in range(5))
    (record,) = [each for each in caplog.records if "file of API keys" in each.message]
    assert "there is no file of API keys" in record.message
    assert "The keys read before still count" in record.message
    assert record.exc_info is None
    assert access.refused(held, READ) is None


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(PRIVATE.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(PRIVATE, hashes.SHA256())
    )
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(PRIVATE.private_bytes(serialization.Encoding.PEM, form, plain))
    return folder / "certificate.pem", folder / "key.pem"


def test_keys_that_are_made_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "own" / "keys.json"
    with ThreadPoolExecutor(16) as pool:
        made = dict(zip(range(32), pool.map(lambda n: add_key(path, f"k{n}", [READ]), range(32))))
    access = Access(path, None)
    assert [access.refused(f"Bearer {made[n]}", READ) for n in range(32)] == [None] * 32


def test_files_of_tls_that_cannot_be_served_with_are_named_before_models_are_loaded(tmp_path: Path) -> None:
    root = tmp_path / "empty"  # in which nothing could be loaded
    root.mkdir()
    certificate(root)
    toml = '[tasks.churn]\nmembers = ["gbdt"]\n[service.tls]\ncertificate = "certificate.pem"\nkey = "{}"\n'
    other = ec.generate_private_key(ec.SECP256R1())
    plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    (root / "other.pem").write_bytes(other.private_bytes(serialization.Encoding.PEM, form, plain))
    locked = serialization.BestAvailableEncryption(b"secret")
    (root / "locked.pem").write_bytes(PRIVATE.private_bytes(serialization.Encoding.PEM, form, locked))
    (root / "text.pem").write_text("no key")
    said = {
        "none.pem": r"\[service.tls\] key .*none.pem cannot be read: No such file",
        "text.pem": "are no certificate and its key",
    }
    said |= {"other.pem": "are no certificate and its key", "locked.pem": "without a passphrase"}
    for name, message in said.items():
        (root / "zoo.toml").write_text(toml.format(name))
        with pytest.raises(UsageError, match=message):
            server.serve(root, ["churn"], port=0)
    (root / "zoo.toml").write_text(toml.format("key.pem"))
    with pytest.raises(FeatureError, match=r"no feature_store\.yaml"):
        server.serve(root, ["churn"], port=0)


def test_the_server_speaks_tls_and_asks_who_it_is(trained_shop: Shop, tmp_path: Path) -> None:
    from test_service_runs import served_by_command

    shop = trained_shop.copy(tmp_path / "shop")
    certificate(shop.root)
    key = add_key(shop.root / "keys.json", "reader", [READ])
    with (shop.root / "zoo.toml").open("a") as file:
        file.write('\n[service.auth]\nkeys = "keys.json"\n[service.tls]\ncertificate = "certificate.pem"\nkey = "key.pem"\n')
    with contextlib.ExitStack() as idle, served_by_command(shop, host="0.0.0.0") as server:
        assert server.url.startswith("https://0.0.0.0:")
        url = server.url.replace("0.0.0.0", "localhost")
        context = ssl.create_default_context(cafile=str(shop.root / "certificate.pem"))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT if hasattr(ssl, "VERIFY_X509_STRICT") else -1
        with httpx.Client(base_url=url, verify=context, timeout=60) as client:
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
            assert client.get("/health/ready").status_code == 200
        name, port = url.removeprefix("https://").split(":")
        kept = idle.enter_context(context.wrap_socket(socket.create_connection((name, int(port))), server_hostname=name))
        kept.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
    assert "graceful shutdown exceeded" not in "".join(server.log)  # as if the idle connection were at work
    lines = [json.loads(line) for line in server.log if line.startswith("{")]
    assert {"method", "route", "status", "ms", "request_id"} <= next(
        line for line in lines if line["message"] == "request"
    ).keys()
    assert key not in "".join(server.log)
