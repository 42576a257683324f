"""A version as one signed file, to take it from one registry to another.

A file is ``MAGIC``, an Ed25519 signature of 64 bytes, and what it signs: the length of a header (8 bytes, little-endian), the header as
JSON, and the files that it names, one after another. Nothing is parsed before the signature is known to be a trusted key's, and no file
is written before it has the size and hash that the header says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.artefacts import DIGEST, LARGEST, LARGEST_MANIFEST
from zoo.errors import ArtefactError, UnknownReferenceError, UsageError
from zoo.registry.reference import Version, parse
from zoo.registry.registry import SCORES, Registry

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAGIC = b"zoo archive 1\n"
SIGNATURE = 64
"""Bytes of an Ed25519 signature (RFC 8032)."""
LENGTH = 8
"""Bytes of the header's length."""
ORIGIN = "imported_from"
"""The tag that says which version of the other registry it was, and whose key signed it."""
_KEYS = "openssl genpkey -algorithm ed25519 -out signing.pem; openssl pkey -in signing.pem -pubout -out public.pem"


@dataclass(frozen=True)
class Exported:
    """content: the file. note: what is not in it, in words, where the scores of the version's test rows are gone."""

    content: bytes
    note: str | None = None


@dataclass(frozen=True)
class Imported:
    """version: as it is registered here. origin: the reference it had. signer: the fingerprint of the key that signed it.

    before: versions of the model that had the same artefact here before.
    """

    version: Version
    origin: str
    signer: str
    before: tuple[str, ...] = ()


def export(registry: Registry, reference: str, key: Path) -> Exported:
    """A version, with the scores of its test rows where it has them, signed by a private key (PEM).

    Raises UnknownReferenceError for an unknown version, ArtefactError where its artefact or scores that are there are not whole,
    UsageError for a key that is none.
    """
    signing = _private(key)
    version = registry.get(reference)
    digests, note = [version.digest], None
    scores = version.metrics.get(SCORES)
    if isinstance(scores, str) and DIGEST.fullmatch(scores):
        if registry.artefacts.held(scores):
            digests.append(scores)
        else:  # of a retired version, or of one that came without them
            note = f"the scores of its test rows are not in it: their artefact {scores} is gone"
    named, contents = [], []
    for digest in dict.fromkeys(digests):
        for name, content in registry.artefacts.files(digest).items():
            named.append({"artefact": digest, "name": name, "size": len(content), "sha256": sha256(content).hexdigest()})
            contents.append(content)
    about = {
        "model": version.model,
        "number": version.number,
        "created": version.created.isoformat(),
        "digest": version.digest,
        "metrics": version.metrics,
        "lineage": version.lineage,
        "tags": version.tags,
        "files": named,
    }
    header = json.dumps(about, sort_keys=True, allow_nan=False).encode("ascii")
    signed = b"".join([len(header).to_bytes(LENGTH, "little"), header, *contents])
    return Exported(MAGIC + signing.sign(_message(signed)) + signed, note)


def read(path: Path) -> bytes:
    """A file's bytes, for ``import_``, once its size and first bytes are those of an archive. Raises UsageError, ArtefactError."""
    try:
        with path.open("rb") as file:
            begin, size = file.read(len(MAGIC)), os.fstat(file.fileno()).st_size
            _check_begin(begin, size)
            whole = bytearray(begin)
            while piece := file.read(1 << 20):  # of a pipe no size is told
                whole += piece
                _check_begin(begin, len(whole))
            return bytes(whole)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError:
        raise ArtefactError(
            f"{path} has {size:,} bytes, for which this machine has no memory; see that it is what was sent"
        ) from None


def import_(registry: Registry, archive: bytes, keys: Sequence[Path]) -> Imported:
    """Register what ``export`` wrote as the model's next version here, if one of these public keys (PEM) signed it.

    It has the artefacts, metrics, lineage and tags that it had, and the tag ``imported_from``; no alias names it. Raises UsageError for a
    key that is none, ArtefactError for a file that no trusted key signed, or that does not hold what it says; nothing is registered then.
    """
    trusted = [_public(key) for key in keys]
    if not trusted:
        raise UsageError("no key to trust was given; expected the public key of whoever exported it, a file in PEM")
    signer, signed = _verified(archive, trusted)
    about, artefacts = _parsed(signed)
    for digest, files in artefacts.items():
        registry.artefacts.adopt(digest, files)
    origin = f"{about['model']}@{about['number']}"
    tags = {**about["tags"], ORIGIN: f"{origin} {signer}"}
    version = registry.add(about["model"], about["digest"], about["metrics"], about["lineage"], tags)
    same = [each for each in registry.versions(version.model) if each.digest == version.digest and each.number < version.number]
    return Imported(version, origin, signer, tuple(each.reference for each in same))


def fingerprint(key: Ed25519PublicKey) -> str:
    """``ed25519:`` and the first 16 hexadecimal digits of the sha256 of a key's 32 bytes."""
    return f"ed25519:{sha256(key.public_bytes_raw()).hexdigest()[:16]}"


def _message(signed: bytes) -> bytes:
    return MAGIC + sha256(signed).digest()


def _verified(archive: bytes, trusted: Sequence[Ed25519PublicKey]) -> tuple[str, bytes]:
    """(whose key it was, what is signed)."""
    from cryptography.exceptions import InvalidSignature

    begin = len(MAGIC) + SIGNATURE
    _check_begin(archive[:begin] if len(archive) >= begin + LENGTH else b"", len(archive))
    signed = archive[begin:]
    for key in trusted:
        try:
            key.verify(archive[len(MAGIC) : begin], _message(signed))
        except InvalidSignature:
            continue
        return fingerprint(key), signed
    told = ", ".join(fingerprint(key) for key in trusted)
    raise ArtefactError(
        f"no key that is trusted here ({told}) signed this archive as it is: it was changed, or another key signed it"
    )


def _check_begin(begin: bytes, size: int) -> None:
    if not begin.startswith(MAGIC):
        raise ArtefactError(
            "this is no archive of a version, or only the beginning of one; expected a file that `zoo export` wrote"
        )
    if size > LARGEST:
        raise ArtefactError(f"the archive has {size:,} bytes; expected at most {LARGEST:,}")


def _parsed(signed: bytes) -> tuple[dict[str, Any], dict[str, dict[str, bytes]]]:
    """(the header; by digest, an artefact's files) of what a trusted key signed."""
    size = int.from_bytes(signed[:LENGTH], "little")
    end = LENGTH + size
    if size > LARGEST_MANIFEST or end > len(signed):
        raise ArtefactError(f"the archive's header has {size:,} bytes; expected at most {LARGEST_MANIFEST:,}, and all of them")
    artefacts: dict[str, dict[str, bytes]] = {}
    try:
        about = json.loads(signed[LENGTH:end].decode("ascii"))
        kinds = {"model": str, "number": int, "digest": str, "metrics": dict, "lineage": dict, "tags": dict, "files": list}
        for name, kind in kinds.items():
            if type(about[name]) is not kind:  # a bool is an int, too
                raise TypeError(f"{name} is {type(about[name]).__name__}, expected {kind.__name__}")
        parse(f"{about['model']}@{about['number']}")
        json.dumps(about, ensure_ascii=False).encode()  # a lone surrogate is no text that any terminal or database takes
        for each in about["files"]:
            if [type(each[key]) for key in ("size", "artefact", "name")] != [int, str, str]:
                raise TypeError("a file has another size, artefact or name than a whole number and texts")
            content = signed[end : end + each["size"]]
            end += each["size"]
            if each["size"] < 0 or len(content) != each["size"] or sha256(content).hexdigest() != each["sha256"]:
                raise ValueError(f"{each['name']!r} is not of the size and hash that the header says")
            artefacts.setdefault(each["artefact"], {})[each["name"]] = content
        if end != len(signed):
            raise ValueError(f"{len(signed) - end:,} bytes more than the header says")
        if about["digest"] not in artefacts:
            raise ValueError("the version's own artefact is not in it")
    except (KeyError, TypeError, ValueError, RecursionError, UnknownReferenceError) as error:
        told = str(error)[:200]
        raise ArtefactError(f"the archive does not hold what `zoo export` writes: {told}; ask for another export") from error
    return dict(about), artefacts


def _private(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _pem(path, lambda pem: load_pem_private_key(pem, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is no private key of Ed25519{_seen(path)}. Make a pair with: {_KEYS}")
    return key


def _public(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _pem(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is no public key of Ed25519{_seen(path)}. Make a pair with: {_KEYS}")
    return key


def _pem(path: Path, load: Any) -> Any:
    """The key in a file, None where it holds none. Raises UsageError where it cannot be read."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _seen(path: Path) -> str:
    """What else a file holds that people take for such a key, in words to put behind its name."""
    content = path.read_bytes().lstrip()
    if content.startswith((b"-----BEGIN OPENSSH", b"ssh-")):
        return " in PEM: it is in OpenSSH's own format, which zoo does not read"
    if content.startswith(b"-----BEGIN ENCRYPTED"):
        return (
            " that zoo can read: it has a passphrase, and zoo asks for none. "
            f"Write it without: openssl pkey -in {path} -out plain.pem; or take another key"
        )
    return ""
