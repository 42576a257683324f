"""Runs the application for one project until it is told to stop: on a loopback address, or anywhere once who asks must say who it is."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from zoo.errors import UsageError
from zoo.features import Features
from zoo.project import Project
from zoo.registry import parse
from zoo.service.access import Access
from zoo.service.app import app
from zoo.service.load import Limiter
from zoo.service.logs import logging_config
from zoo.service.protocol import Protocol
from zoo.service.settings import Settings
from zoo.service.telemetry import sending
from zoo.service.versions import Source, Versions, Watch

GRACE = 10
"""Seconds that running requests are given when the server is told to stop."""
COLLECTED = 20_000
"""New containers between two looks for cycles among them. What a batch makes ends with it, and at Python's 700 they took a fourteenth of
the time."""
KEYS = 2.0
"""Seconds between looks at the file of API keys, in a thread of its own: one that is taken out of it must not go on for as long as the
registry does not answer, or a version loads."""
ACCEPTED = 32
"""Connections accepted each time the event loop comes round: it takes one from each socket that listens, so the one is there as often."""

_log = logging.getLogger(__name__)


def serve(
    repo: Path | str,
    references: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    without: Sequence[str] = (),
    ready: Callable[[str, list[str]], None] | None = None,
) -> None:
    """Answer for these models (``churn``, ``churn@3``) over HTTP until Ctrl-C or SIGTERM; every one is loaded before it listens.

    host: a loopback address, or any of this machine once ``[service.auth]`` of ``zoo.toml`` says who may ask; anything else is a
    UsageError, as are a port that is taken and two versions of one model. port: 0 for any free one. ready: told the address,
    ``http://127.0.0.1:8000``, and the versions once it listens. Errors as in ``Predictor.load``.
    """
    if not _is_address(host):
        _loopback(host)
    project = Project.open(repo)
    settings = Settings.of(project)
    access = Access.of(settings)
    _check_tls(settings.tls)
    address = host if access is not None and _is_address(host) else _loopback(host)
    named = _by_model(references)
    with _bound(address, port) as listener, sending(), contextlib.closing(Features.open(project.root)) as features:
        source = Source(project, features, tuple(without))
        serving = {model: source.load(reference) for model, reference in named.items()}
        versions = Versions(serving, named, source, settings.canary, settings.shadow)
        if settings.canary or settings.shadow:
            versions.look()
        own = f"[{address}]" if ":" in address else address
        # a page elsewhere cannot know a key, so only a server without authentication must look at the name it is called by
        hosts = (own, *({"localhost", "127.0.0.1", "[::1]"} - {own})) if access is None else None
        api = app(
            versions,
            features,
            hosts=hosts,
            access=access,
            limiter=Limiter(settings.in_flight),
            read_timeout=settings.read_timeout,
        )
        certificate, key = settings.tls or (None, None)
        config = uvicorn.Config(
            api,
            http=Protocol,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
            lifespan="off",
            log_config=logging_config(as_json=not sys.stderr.isatty(), access=settings.access_log),
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )

        sys.setswitchinterval(0.001)  # what is refused must not wait long for predictions that are computed
        gc.collect()
        gc.freeze()  # else every full collection looks through all that was loaded, some 0.2 seconds in which nobody is answered
        gc.set_threshold(COLLECTED)
        listener.listen()
        served = [p.version.reference for p in versions.values()]
        url = f"{'https' if settings.tls else 'http'}://{own}:{listener.getsockname()[1]}"
        _log.info("%s at %s, Ctrl-C stops it", ", ".join(served), url)
        if ready is not None:
            ready(url, served)
        with contextlib.suppress(KeyboardInterrupt), _stopped_alike(), _watched(versions, access, settings.reload):
            uvicorn.Server(config).run(sockets=[listener, *(listener.dup() for _ in range(1, ACCEPTED))])


@contextlib.contextmanager
def _watched(versions: Versions, access: Access | None, reload: float) -> Iterator[None]:
    """The registry is looked at every ``reload`` seconds (0: never) in this block, and the file of keys every ``KEYS``."""
    with contextlib.ExitStack() as watches:
        if reload:
            watches.enter_context(Watch(versions.look, reload, "the registry's versions"))
        if access is not None:
            watches.enter_context(Watch(access.refresh, KEYS, "the file of API keys"))
        yield


@contextlib.contextmanager
def _stopped_alike() -> Iterator[None]:
    """SIGTERM in this block is what Ctrl-C is, a KeyboardInterrupt, unless this process does something of its own about it.

    uvicorn, once it has stopped, raises the signal that stopped it again, and by SIGTERM a process ends before anything is closed.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_tls(files: tuple[Path, Path] | None) -> None:
    """Raise UsageError where certificate and key cannot be served with: now, not after every model was loaded."""
    if files is None:
        return
    for name, file in zip(("certificate", "key"), files, strict=True):
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            raise UsageError(f"[service.tls] {name} {file} cannot be read: {error.strerror}; expected a file in PEM") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files, password="")  # none: nobody is there to be asked for one
    except (ssl.SSLError, ValueError) as error:
        told = getattr(error, "reason", None) or error
        raise UsageError(
            f"[service.tls] {files[0]} and {files[1]} are no certificate and its key, in PEM and without a passphrase: {told}"
        ) from error


def _loopback(host: str) -> str:
    """The address of a loopback host. Raises UsageError for any other."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UsageError(
            f"host {host!r} is no loopback address; expected 127.0.0.1, ::1 or localhost, for whoever reaches the service may push "
            "events. Say in [service.auth] of zoo.toml who may"
        )
    return address


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _by_model(references: Sequence[str]) -> dict[str, str]:
    """Model name -> the reference asked for."""
    named: dict[str, str] = {}
    for reference in references:
        model = parse(reference).model
        if model in named:
            raise UsageError(f"{named[model]!r} and {reference!r} are one model; this server answers for one version of each")
        named[model] = reference
    if not named:
        raise UsageError("no model named; expected at least one, as in: zoo serve churn")
    return named


def _bound(address: str, port: int) -> socket.socket:
    """A socket that holds the port and refuses callers until it listens."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {address} port {port}: {error.strerror}; choose another port") from error
    return listener
