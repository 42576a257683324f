"""Credentials that open the service and those that must not, and the routes that they are tried on."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import httpx2 as httpx
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import FastAPI

from zoo.service.access import ADMIN, rules_of

ISSUER, AUDIENCE = "https://login.example", "zoo"
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = (
    PRIVATE.public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
    .strip()
)


def token(key: Any = PRIVATE, algorithm: str = "RS256", **claims: Any) -> str:
    whole = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, "roles": [ADMIN], **claims}
    return jwt.encode({name: value for name, value in whole.items() if value is not None}, key, algorithm=algorithm)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=").decode()


def forged(header: dict[str, Any], secret: bytes | None) -> str:
    """A token as a library that checks what it signs would not make one."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, "roles": [ADMIN]}
    text = f"{part({'typ': 'JWT', **header})}.{part(claims)}"
    return f"{text}.{part(b'' if secret is None else hmac.digest(secret, text.encode(), hashlib.sha256))}"


def attacks() -> dict[str, str | None]:
    """What is no credential, by what is wrong with it."""
    good = token()
    return {
        "none": None,
        "empty": "",
        "another scheme": "Basic YWRtaW46YWRtaW4=",
        "no token": "Bearer",
        "no text": "Bearer \xff\xfe",
        "unknown key": "Bearer zoo_" + "A" * 43,
        "hash as key": "Bearer zoo_" + hashlib.sha256(b"x").hexdigest(),
        "bad signature": f"Bearer {good[:-6]}AAAAAA",
        "no signature": f"Bearer {good.rpartition('.')[0]}.",
        "another's signature": f"Bearer {token(STRANGER)}",
        "expired": f"Bearer {token(exp=time.time() - 60)}",
        "no expiry": f"Bearer {token(exp=None)}",
        "not yet": f"Bearer {token(nbf=time.time() + 600)}",
        "wrong audience": f"Bearer {token(aud='shop')}",
        "no audience": f"Bearer {token(aud=None)}",
        "wrong issuer": f"Bearer {token(iss='https://evil.example')}",
        "no issuer": f"Bearer {token(iss=None)}",
        "algorithm none": f"Bearer {forged({'alg': 'none'}, None)}",
        "algorithm None": f"Bearer {forged({'alg': 'None'}, None)}",
        "public key as secret": f"Bearer {forged({'alg': 'HS256'}, PUBLIC.encode())}",
        "RS384 not allowed": f"Bearer {token(algorithm='RS384')}",
        "key in header": f"Bearer {forged({'alg': 'HS256', 'jwk': {'kty': 'oct', 'k': part(b'k' * 32)}}, b'k' * 32)}",
        "too long": "Bearer " + "A" * 10_000,
    }


def paths(api: FastAPI) -> list[tuple[str, str, str]]:
    """(method, path, role) of every route."""
    return [
        (method, rule.path.replace("{name}", "churn").replace("{version}", "1"), rule.role)
        for rule in rules_of(api)
        for method in sorted(rule.methods)
    ]


def ask(client: httpx.Client, method: str, path: str, authorization: str | None, body: bytes = b"{") -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    return client.request(
        method, path, headers={**headers, "Content-Type": "application/json"}, content=body if method == "POST" else None
    )
