"""``[service]`` of ``zoo.toml``, checked: how often versions are looked for, who may ask, TLS, and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import UsageError, choices
from zoo.project import FILE, Project
from zoo.service.problems import READ_TIMEOUT

_NUMBERS: dict[str, tuple[type, float, float, str]] = {
    "reload": (float, 0, 86_400, "seconds between looks, 0 for none, at most 86400"),
    "in_flight": (int, 1, 65_536, "a whole number of requests from 1 to 65536"),
    "read_timeout": (float, 0, 86_400, "seconds, 0 for any time, at most 86400"),
}
"""Key of ``[service]`` -> kind of number, least, most, and both in words."""
_AUTH = {"keys", "jwt"}
_JWT: dict[str, type] = {"algorithms": list, "issuer": str, "audience": str, "key": str}
_TLS = ("certificate", "key")


@dataclass(frozen=True)
class Jwt:
    """``[service.auth.jwt]``. key: a file with the issuer's public key (PEM), or with the shared secret of HS algorithms."""

    algorithms: tuple[str, ...]
    issuer: str
    audience: str
    key: Path


@dataclass(frozen=True)
class Settings:
    """reload: seconds between looks at the registry, 0 for never. in_flight: most requests worked on at once.
    read_timeout: seconds that a caller may take to send the head of a request, and its body; 0 for any time.

    canary: model -> the share of its requests, more than 0 and less than 1, that its version named ``canary`` answers. shadow: model ->
    the share, up to 1, of which its version named ``shadow`` is asked a copy.
    keys, jwt: who may ask; authentication is on where one of them is given. tls: certificate and key files.
    """

    reload: float = 2.0
    in_flight: int = 128
    read_timeout: float = READ_TIMEOUT
    access_log: bool = True
    keys: Path | None = None
    jwt: Jwt | None = None
    tls: tuple[Path, Path] | None = None
    canary: Mapping[str, float] = field(default_factory=dict)
    shadow: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Project) -> Settings:
        """Raises UsageError for unknown keys and values of another kind."""
        table: dict[str, Any] = dict(project.service)
        auth, tls = _table(project, table.pop("auth", {}), "auth"), _table(project, table.pop("tls", {}), "tls")
        canary, shadow = (_shares(project, table.pop(name, {}), name) for name in ("canary", "shadow"))
        _known(project, table, "service", (*_NUMBERS, "access_log", "auth", "canary", "shadow", "tls"))
        for key, (kind, least, most, expected) in _NUMBERS.items():
            value = table.get(key, least)
            number = isinstance(value, (int, kind)) and not isinstance(value, bool)
            if not number or not least <= value <= most:  # NaN is neither
                raise UsageError(f"{project.root / FILE}: [service] {key} is {value!r}; expected {expected}")
        if not isinstance(table.get("access_log", True), bool):
            raise UsageError(f"{project.root / FILE}: [service] access_log is {table['access_log']!r}; expected true or false")
        _known(project, auth, "service.auth", _AUTH)
        keys = auth.get("keys")
        if keys is not None and not isinstance(keys, str):
            raise UsageError(f"{project.root / FILE}: [service.auth] keys is {keys!r}; expected the path of a file")
        jwt = _jwt(project, auth["jwt"]) if "jwt" in auth else None
        _known(project, tls, "service.tls", _TLS)
        if tls and set(tls) != set(_TLS):
            raise UsageError(f"{project.root / FILE}: [service.tls] needs both certificate and key, files in PEM")
        files = (project.root / tls["certificate"], project.root / tls["key"]) if tls else None
        return cls(**table, keys=None if keys is None else project.root / keys, jwt=jwt, tls=files, canary=canary, shadow=shadow)


def _shares(project: Project, given: Any, name: str) -> Mapping[str, float]:
    """Shares by model, of ``[service.NAME]``; a canary's is less than 1."""
    table = _table(project, given, name)
    _known(project, table, f"service.{name}", project.tasks)
    for model, share in table.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1 or (share, name) == (1, "canary"):
            raise UsageError(
                f"{project.root / FILE}: [service.{name}] {model} is {share!r}; expected a share of the requests, as in 0.05"
            )
    return table


def _jwt(project: Project, given: Any) -> Jwt:
    table = _table(project, given, "auth.jwt")
    _known(project, table, "service.auth.jwt", _JWT)
    for key, kind in _JWT.items():
        if not isinstance(table.get(key), kind) or not table[key]:
            raise UsageError(f"{project.root / FILE}: [service.auth.jwt] {key} is {table.get(key)!r}; expected {kind.__name__}")
    return Jwt(tuple(map(str, table["algorithms"])), table["issuer"], table["audience"], project.root / table["key"])


def _table(project: Project, value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{project.root / FILE}: service.{name} is {value!r}; expected a table [service.{name}]")
    return value


def _known(project: Project, table: Mapping[str, Any], name: str, valid: Any) -> None:
    for key in table:
        if key not in valid:
            raise UsageError(f"{project.root / FILE}: {choices(f'key in [{name}]', key, valid)}")
