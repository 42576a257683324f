"""A version as one signed file, to take it from one registry to another.

A file is ``MAGIC``, an Ed25519 signature of 64 bytes, and what it signs: the length of a header (8 bytes, little-endian), the header as
JSON, and the files that it names, one after another. Nothing is parsed before the signature is known to be a trusted key's, and no file
is written before it has the size and hash that the header says.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoo.artefacts import DIGEST, LARGEST, LARGEST_MANIFEST, MANIFEST, entries
from zoo.errors import ArtefactError, UnknownReferenceError, UsageError
from zoo.registry.reference import Version, parse
from zoo.registry.registry import SCORES, Registry

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAGIC = b"zoo archive 1\n"
SIGNATURE = 64
"""Bytes of an Ed25519 signature (RFC 8032)."""
BEGIN = len(MAGIC) + SIGNATURE
"""Bytes before what is signed."""
LENGTH = 8
"""Bytes of the header's length."""
PIECE = 1 << 20
"""Bytes that are read at once."""
ORIGIN = "imported_from"
"""The tag that says which version of the other registry it was, and whose key signed it."""
_KEYS = "openssl genpkey -algorithm ed25519 -out signing.pem; openssl pkey -in signing.pem -pubout -out public.pem"


@dataclass(frozen=True)
class Exported:
    """size: bytes of the file. note: what is not in it, in words, where the scores of the version's test rows are gone."""

    size: int
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


def export(registry: Registry, reference: str, key: Path, archive: BinaryIO) -> Exported:
    """Write a version, with the scores of its test rows where it has them, signed by a private key (PEM).

    archive: an empty file that is open and can be sought in; one file of the version is in memory at a time. What it holds is no archive
    before this returns. Raises UnknownReferenceError for an unknown version, ArtefactError where its artefact or scores that are there
    are not whole, UsageError for a key that is none.
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
    digests = [*dict.fromkeys(digests)]
    named = [
        {"artefact": digest, "name": name, "size": size, "sha256": hashed}
        for digest in digests
        for name, (size, hashed) in _stated(registry, digest).items()
    ]
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
    archive.write(MAGIC + bytes(SIGNATURE))  # which is known when all is written
    signed = sha256()
    for content in chain([len(header).to_bytes(LENGTH, "little"), header], _contents(registry, digests)):
        signed.update(content)
        archive.write(content)
        del content  # before the next one is read
    size = archive.tell()
    archive.seek(len(MAGIC))
    archive.write(signing.sign(_message(signed.digest())))
    return Exported(size, note)


def _stated(registry: Registry, digest: str) -> dict[str, tuple[int, str]]:
    """File name -> (size, sha256), in the order in which the store gives an artefact's files."""
    name, manifest = next(registry.artefacts.files(digest))
    return {name: (len(manifest), digest), **entries(manifest, digest)}


def _contents(registry: Registry, digests: Sequence[str]) -> Iterator[bytes]:
    """Every file of these artefacts, one after another; each is what its manifest says."""
    for digest in digests:
        for _, content in registry.artefacts.files(digest):
            yield content
            del content


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file for ``import_``, if its size and first bytes are those of an archive. Raises UsageError, ArtefactError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        if file.seekable():
            _check_begin(file.peek(len(MAGIC)), _size(file))
        yield file


def import_(registry: Registry, archive: BinaryIO, keys: Sequence[Path]) -> Imported:
    """Register what ``export`` wrote as the model's next version here, if one of these public keys (PEM) signed it.

    It has the artefacts, metrics, lineage and tags that it had, and the tag ``imported_from``; no alias names it. archive: an open file, of
    which one file at a time is in memory; what cannot be read twice (a pipe) is copied to a temporary file. Raises UsageError for a key
    that is none, ArtefactError for a file that no trusted key signed, or that does not hold what it says; nothing is registered then.
    """
    trusted = [_public(key) for key in keys]
    if not trusted:
        raise UsageError("no key to trust was given; expected the public key of whoever exported it, a file in PEM")
    with _seekable(archive) as whole:
        signer, header, size = _verified(whole, trusted)
        about, artefacts = _parsed(whole, header, size)
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


def _message(digest: bytes) -> bytes:
    """What is signed of a file whose signed part has this sha256."""
    return MAGIC + digest


@contextmanager
def _seekable(archive: BinaryIO) -> Iterator[BinaryIO]:
    if archive.seekable():
        yield archive
        return
    size = 0
    with tempfile.TemporaryFile() as copy:
        while piece := archive.read(PIECE):
            copy.write(piece)
            size += len(piece)
            _check_begin(MAGIC if size > len(piece) else piece, size)
        yield copy


def _size(archive: BinaryIO) -> int:
    end = archive.seek(0, os.SEEK_END)
    archive.seek(0)
    return end


def _verified(archive: BinaryIO, trusted: Sequence[Ed25519PublicKey]) -> tuple[str, bytes, int]:
    """(whose key it was, the header as it was signed, how many bytes the archive has). Nothing is parsed but the header's length."""
    from cryptography.exceptions import InvalidSignature

    size, begin = _size(archive), archive.read(BEGIN)
    _check_begin(begin if size >= BEGIN + LENGTH else b"", size)
    digest, header = sha256(), bytearray()
    while piece := archive.read(PIECE):
        digest.update(piece)
        header += piece[: LENGTH + LARGEST_MANIFEST - len(header)]  # kept, for the file may be changed before it is read again
    for key in trusted:
        try:
            key.verify(begin[len(MAGIC) :], _message(digest.digest()))
        except InvalidSignature:
            continue
        return fingerprint(key), bytes(header), size
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


@dataclass(frozen=True)
class _Files(Mapping[str, bytes]):
    """Files of one artefact, each read from the archive when it is asked for. places: name -> (where it begins, size, sha256)."""

    archive: BinaryIO
    places: dict[str, tuple[int, int, str]]

    def __getitem__(self, name: str) -> bytes:
        begin, size, expected = self.places[name]
        self.archive.seek(begin)
        try:
            content = self.archive.read(size)
        except MemoryError:
            raise ArtefactError(
                f"file {name!r} of the archive has {size:,} bytes, for which this machine has no memory; see that it is what was sent"
            ) from None
        if len(content) != size or sha256(content).hexdigest() != expected:
            raise ArtefactError(f"file {name!r} of the archive was changed while it was read; give it again")
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _sha256(archive: BinaryIO, begin: int, size: int) -> str:
    archive.seek(begin)
    digest = sha256()
    while size and (piece := archive.read(min(PIECE, size))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


def _parsed(archive: BinaryIO, signed: bytes, whole: int) -> tuple[dict[str, Any], dict[str, _Files]]:
    """(the header; by digest, an artefact's files) of what a trusted key signed. signed: its first bytes. whole: bytes of the archive."""
    size = int.from_bytes(signed[:LENGTH], "little")
    if size > LARGEST_MANIFEST or LENGTH + size > len(signed):
        raise ArtefactError(f"the archive's header has {size:,} bytes; expected at most {LARGEST_MANIFEST:,}, and all of them")
    end = BEGIN + LENGTH + size
    artefacts: dict[str, _Files] = {}
    try:
        about = json.loads(signed[LENGTH : LENGTH + size].decode("ascii"))
        kinds = {"model": str, "number": int, "digest": str, "metrics": dict, "lineage": dict, "tags": dict, "files": list}
        for name, kind in kinds.items():
            if type(about[name]) is not kind:  # a bool is an int, too
                raise TypeError(f"{name} is {type(about[name]).__name__}, expected {kind.__name__}")
        parse(f"{about['model']}@{about['number']}")
        json.dumps(about, ensure_ascii=False).encode()  # a lone surrogate is no text that any terminal or database takes
        for each in about["files"]:
            if [type(each[key]) for key in ("size", "artefact", "name", "sha256")] != [int, str, str, str]:
                raise TypeError("a file has another size, artefact, name or sha256 than a whole number and texts")
            most = LARGEST_MANIFEST if each["name"] == MANIFEST else whole - end
            if not 0 <= each["size"] <= min(most, whole - end) or _sha256(archive, end, each["size"]) != each["sha256"]:
                raise ValueError(f"{each['name']!r} is not of the size and hash that the header says")
            own = artefacts.setdefault(each["artefact"], _Files(archive, {}))
            own.places[each["name"]] = end, each["size"], each["sha256"]
            end += each["size"]
        if end != whole:
            raise ValueError(f"{whole - end:,} bytes more than the header says")
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
