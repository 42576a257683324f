"""Who may ask for what: each route declares a role, and a bearer token or an API key must hold it before anything else is looked at."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from zoo.errors import UsageError, choices
from zoo.events.lock import file_lock
from zoo.service.problems import Refusal
from zoo.service.settings import Jwt, Settings

OPEN, READ, PUSH, ADMIN = "open", "read", "push", "admin"
ROLES = (OPEN, READ, PUSH, ADMIN)
"""``open``: anyone, for probes that hold no secret. ``admin`` may do everything."""
PREFIX = "zoo_"
"""What API keys begin with, so that one that leaked is recognised, and no key is taken for a token."""
SYMMETRIC = {"HS256", "HS384", "HS512"}
ASYMMETRIC = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
LONGEST = 8_192
"""Characters of a credential."""
LONGEST_NAME = 200
"""Characters of a key's name."""
SHORTEST_SECRET = 32
"""Bytes of a shared secret."""


def needs(role: str) -> dict[str, Any]:
    """What a route's ``openapi_extra`` says: the role that it asks for."""
    return {"x-role": role, **({} if role == OPEN else {"security": [{"bearer": []}]})}


@dataclass(frozen=True)
class Rule:
    """One route. path: its template, as in OpenAPI."""

    route: Route
    path: str
    methods: frozenset[str]
    role: str


def rules_of(api: FastAPI) -> tuple[Rule, ...]:
    """Every route of the router with its role. Raises UsageError for one that declares none, so that it cannot be served unguarded."""
    found = []
    for route in api.router.routes:
        role = (getattr(route, "openapi_extra", None) or {}).get("x-role")
        path = getattr(route, "path", repr(route))
        if not isinstance(route, Route) or role not in ROLES:
            raise UsageError(f"route {path} declares the role {role!r}; {choices('role', role, ROLES)}")
        found.append(Rule(route, path, frozenset(route.methods or ()), role))
    return tuple(found)


class Rules:
    """Finds the route that a request means, without reading more than its method and path."""

    def __init__(self) -> None:
        self.all: tuple[Rule, ...] = ()
        self._plain: dict[tuple[str, str], Rule] = {}

    def fill(self, rules: tuple[Rule, ...]) -> None:
        self.all = rules
        self._plain = {(method, rule.path): rule for rule in rules if "{" not in rule.path for method in rule.methods}

    def find(self, method: str, path: str) -> Rule | None:
        found = self._plain.get((method, path))
        if found is None:
            found = next((r for r in self.all if "{" in r.path and method in r.methods and r.route.path_regex.match(path)), None)
        return found


_CHALLENGE = (("WWW-Authenticate", "Bearer"),)
_NONE = Refusal(401, "unauthenticated", "this needs a bearer token or an API key: Authorization: Bearer ...", _CHALLENGE)
_WRONG = Refusal(
    401, "unauthenticated", "the credential is not valid here: unknown, expired, or not signed for this service", _CHALLENGE
)


@dataclass(frozen=True)
class Key:
    """An API key as it is kept: who holds it, what it may do, and the sha256 of its 256 random bits, which need no slower hash."""

    name: str
    sha256: str
    roles: tuple[str, ...]


def read_keys(path: Path) -> tuple[Key, ...]:
    """Raises UsageError where the file cannot be read or is not one of keys."""
    try:
        keys = [Key(each["name"], each["sha256"], tuple(each["roles"])) for each in json.loads(path.read_text())["keys"]]
        right = all(
            named(key.name) and len(bytes.fromhex(key.sha256)) == 32 and set(key.roles) <= {READ, PUSH, ADMIN} for key in keys
        )
    except FileNotFoundError:
        raise UsageError(f"there is no file of API keys at {path}; make a key with: zoo key NAME --role read") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as a file of API keys: {type(error).__name__}") from error
    if not right:
        raise UsageError(
            f"{path} holds a key whose name, sha256 or roles cannot be meant; a name has 1 to {LONGEST_NAME} characters that can be "
            f"printed, roles are {READ}, {PUSH} and {ADMIN}"
        )
    return tuple(keys)


def named(name: Any) -> bool:
    """Whether a key may have this name, by which people know whose it is and take it out."""
    return isinstance(name, str) and name == name.strip() != "" and name.isprintable() and len(name) <= LONGEST_NAME


def add_key(path: Path, name: str, roles: Collection[str]) -> str:
    """Make a key, keep its hash under this name (in the place of a former one of it), and return it: it is kept nowhere."""
    if not named(name):
        raise UsageError(
            f"a key named {name!r}; expected who holds it, 1 to {LONGEST_NAME} characters that can be printed, without spaces around"
        )
    for role in roles:
        if role not in (READ, PUSH, ADMIN):
            raise UsageError(choices("role", role, (READ, PUSH, ADMIN)))
    key = PREFIX + secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f".{path.name}.lock")):  # else of two that are made at once one would be lost
        others = [each for each in (read_keys(path) if path.exists() else ()) if each.name != name]
        _write_keys(path, [*others, Key(name, hashlib.sha256(key.encode()).hexdigest(), tuple(sorted(set(roles))))])
    return key


def revoke_key(path: Path, name: str) -> tuple[str, ...]:
    """Take the key of this name out of the file; returns its roles. Raises UsageError where there is none, and as ``read_keys``."""
    with file_lock(path.with_name(f".{path.name}.lock")) if path.exists() else nullcontext():
        held = {each.name: each for each in read_keys(path)}
        if name not in held:
            raise UsageError(f"{choices('key', name, held)}; they are in {path}")
        revoked = held.pop(name)
        _write_keys(path, held.values())
    return revoked.roles


def _write_keys(path: Path, keys: Iterable[Key]) -> None:
    """A server that reads meanwhile sees the former file or this one, whole. The caller holds the lock."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"keys": [vars(each) for each in keys]}, file, indent=1)
    beside.replace(path)


class Access:
    """Checks credentials. Thread-safe; ``refresh`` reads the file of keys again where it changed, so that a key can be revoked."""

    def __init__(self, keys: Path | None, jwt: Jwt | None) -> None:
        """Raises UsageError for files that cannot be read, and for algorithms that may not stand together."""
        self._path, self._jwt, self._seen = keys, jwt, _NOWHERE
        self._keys: Mapping[str, Key] = {}
        self._secret = None if jwt is None else _secret(jwt)
        if keys is not None:
            self._seen = _state(keys)  # first: what is changed while it is read is read again
            self._keys = {key.sha256: key for key in read_keys(keys)}

    @classmethod
    def of(cls, settings: Settings) -> Access | None:
        """None where authentication is off."""
        return None if settings.keys is None and settings.jwt is None else cls(settings.keys, settings.jwt)

    def refresh(self) -> None:
        """Raises UsageError where the file is there no more or is damaged; the keys read before stay, and the error says so."""
        if self._path is None:
            return
        changed = _state(self._path)
        if changed != self._seen:
            try:
                self._keys = {key.sha256: key for key in read_keys(self._path)}
            except UsageError as error:
                raise UsageError(f"{error}. The keys read before still count; `zoo key NAME --revoke` takes one out") from error
            self._seen = changed

    def refused(self, authorization: str | None, role: str | None) -> Refusal | None:
        """Why the holder of this header may not use a route of that role; None if it may. role: None for a route that is not there."""
        if role == OPEN:
            return None
        scheme, _, credential = (authorization or "").partition(" ")
        credential = credential.lstrip(" ")  # one space or more stand between them (RFC 9110, 11.4)
        if scheme.lower() != "bearer" or not credential or len(credential) > LONGEST:
            return _NONE if authorization is None else _WRONG
        roles = self._roles_of_key(credential) if credential.startswith(PREFIX) else self._roles_of_token(credential)
        if roles is None:
            return _WRONG
        if role is None or role in roles or ADMIN in roles:
            return None
        return Refusal(403, "forbidden", f"this needs the role {role!r}; the credential has: {', '.join(roles) or '(none)'}")

    def _roles_of_key(self, key: str) -> tuple[str, ...] | None:
        found = self._keys.get(hashlib.sha256(key.encode()).hexdigest())
        return None if found is None else found.roles

    def _roles_of_token(self, token: str) -> tuple[str, ...] | None:
        import jwt

        if self._jwt is None or self._secret is None:
            return None
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=list(self._jwt.algorithms),  # what the token's own header names counts only if it is among these
                audience=self._jwt.audience,
                issuer=self._jwt.issuer,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError):  # ValueError: bytes that are neither text nor a number
            return None
        given = claims.get("roles", [])
        return tuple(role for role in (READ, PUSH, ADMIN) if isinstance(given, list) and role in given)


_NOWHERE = (0, 0, 0)


def _state(path: Path) -> tuple[int, int, int]:
    """What tells one state of a file from the next: its time alone does not, where it was written twice within a tick of the clock."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return _NOWHERE
    return found.st_mtime_ns, found.st_ino, found.st_size


def _secret(jwt: Jwt) -> str:
    """The key that signatures are checked with. Shared secrets and public keys never go together: one would be taken for the other."""
    allowed = set(jwt.algorithms)
    if not (allowed <= SYMMETRIC or allowed <= ASYMMETRIC):
        raise UsageError(
            f"[service.auth.jwt] algorithms are {', '.join(jwt.algorithms)}; expected some of {', '.join(sorted(ASYMMETRIC))}, or else "
            f"some of {', '.join(sorted(SYMMETRIC))}, never both"
        )
    try:
        text = jwt.key.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"[service.auth.jwt] key {jwt.key} cannot be read: {type(error).__name__}") from error
    if allowed <= SYMMETRIC and (len(text.encode()) < SHORTEST_SECRET or "-----BEGIN" in text):
        raise UsageError(
            f"{jwt.key} is no secret for {', '.join(sorted(allowed))}; expected at least {SHORTEST_SECRET} random bytes as text"
        )
    if allowed <= ASYMMETRIC and ("-----BEGIN" not in text or "PRIVATE" in text):
        raise UsageError(f"{jwt.key} is no public key in PEM, which {', '.join(sorted(allowed))} are checked with")
    return text
