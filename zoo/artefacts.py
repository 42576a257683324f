"""Content-addressed store of artefacts: one directory a digest, written whole or not at all, hashed before it is parsed.

Knows files and hashes only; who registers an artefact, and what a model keeps in it, is decided above.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from zoo.contract import Array, Artefact
from zoo.errors import ArtefactError

FORMAT = 1
MANIFEST = "manifest.json"
ARRAYS = "arrays.safetensors"
TEXTS = "texts/"
# What safetensors reads back into numpy.
DTYPES = ("bool", "complex64", *(f"float{n}" for n in (16, 32, 64)), *(f"{k}int{n}" for k in ("", "u") for n in (8, 16, 32, 64)))
LARGEST_MANIFEST = 1 << 24
LARGEST = 1 << 36
"""Bytes of one artefact."""
LARGEST_TEXTS = {"": 1 << 20, ".json": 1 << 26, ".txt": 1 << 30}
"""The formats that a text may have, by the end of its name, and the most bytes of one. Everything else is refused unread."""
UNFINISHED = ".unfinished"
ROT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO))
"""What reading a file fails with that is not there any more, or is no file."""
_NAME = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtefactStore:
    """Artefacts under one directory, each named by the sha256 of its manifest (format, and sha256 and size of every file).

    Writers and deleters of one root wait for each other (a lock that the kernel drops with its holder); readers never wait.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()

    def write(self, artefact: Artefact) -> str:
        """Store it and return its digest (64 hex digits); the same content twice is one copy.

        On return every byte is on disk and readable under the digest. Raises ArtefactError for names or arrays that cannot be
        stored, and when the disk is full or refuses; then nothing is left behind.
        """
        files = _files(artefact)
        manifest = _manifest(files)
        digest = sha256(manifest).hexdigest()
        try:
            with self._exclusive():
                if not self._intact(digest):
                    self._place(digest, {MANIFEST: manifest, **files}.items())
        except OSError as error:
            size = len(manifest) + sum(map(len, files.values()))
            raise ArtefactError(_unwritable(self.root, size, error)) from error
        return digest

    def read(self, digest: str) -> Artefact:
        """The artefact, its arrays writable.

        Raises ArtefactError when it is missing, or naming the first file whose size or digest differs.
        """
        files = dict(self._verified(digest))
        del files[MANIFEST]
        try:
            packed = files.pop(ARRAYS, None)
            arrays = {} if packed is None else load_arrays(packed)
            texts = {name.removeprefix(TEXTS): content.decode("utf-8") for name, content in files.items()}
            arrays = {_valid(name): _storable(name, array) for name, array in arrays.items()}
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise ArtefactError(
                f"artefact {digest} is as it was written, but cannot be parsed: {error}; train it again"
            ) from error
        return Artefact(arrays, texts)

    def files(self, digest: str) -> Iterator[tuple[str, bytes]]:
        """(name, content) of every file, the manifest first, the others in its order, for ``adopt`` of another store. One is in memory at
        a time. Raises ArtefactError as ``read`` does, when it comes to a file that is not whole."""
        return self._verified(digest)

    def adopt(self, digest: str, files: Mapping[str, bytes]) -> None:
        """Store files that another store gave under this digest, if they are what it names. One at a time is asked of the mapping.

        Raises ArtefactError where they are not, and as ``write``; nothing is left behind then.
        """
        self._directory(digest)
        manifest = files.get(MANIFEST, b"")
        if len(manifest) > LARGEST_MANIFEST or sha256(manifest).hexdigest() != digest:
            raise ArtefactError(f"artefact {digest}: its {MANIFEST} has another hash, so these files are not its own")
        stated = entries(manifest, digest)
        for name in sorted({*stated, *files} - {MANIFEST}):
            content = files.get(name)
            size, expected = stated.get(name, (-1, ""))
            if content is None or len(content) != size or sha256(content).hexdigest() != expected:
                raise ArtefactError(f"artefact {digest}: file {name!r} is not the one that its {MANIFEST} names")
            del content  # before the next one is read
        try:
            with self._exclusive():
                if not self._intact(digest):
                    self._place(digest, chain([(MANIFEST, manifest)], ((name, files[name]) for name in stated)))
        except OSError as error:
            size = len(manifest) + sum(size for size, _ in stated.values())
            raise ArtefactError(_unwritable(self.root, size, error)) from error

    def verify(self, digest: str) -> None:
        """Hash every file without parsing any, one in memory at a time; raises ArtefactError as ``read`` does."""
        deque(self._verified(digest), maxlen=0)

    def send(self, digest: str) -> None:
        """Where artefacts lie at an address (``RemoteArtefacts``), send it if it is only here. Raises ArtefactError."""

    def held(self, digest: str) -> bool:
        """Whether ``read`` finds any: as ``exists``, or where artefacts lie at an address, as a copy on this machine."""
        return self.exists(digest)

    def exists(self, digest: str) -> bool:
        """Whether it was written; says nothing of bytes that rotted since (``verify`` does)."""
        return self._directory(digest).is_dir()

    def delete(self, digest: str) -> None:
        """Remove it, for readers at one instant. Raises ArtefactError when it is missing."""
        directory = self._directory(digest)
        try:
            with self._exclusive():
                if not directory.is_dir():
                    raise ArtefactError(self._missing(digest))
                self._discard(directory)
        except OSError as error:
            raise ArtefactError(f"cannot delete artefact {digest} under {self.root}: {error.strerror or error}") from error

    def _directory(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ArtefactError(f"{digest!r} is no artefact digest; expected 64 hex digits")
        return self.root / digest

    def _missing(self, digest: str) -> str:
        return f"no artefact {digest} under {self.root}; restore that directory from a backup, or train the model again"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the root's lock. Whatever is unfinished then belongs to a writer that was killed, and is removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (self.root / UNFINISHED).exists():
                shutil.rmtree(self.root / UNFINISHED)
            yield

    def _intact(self, digest: str) -> bool:
        """Whether it is there unharmed; a copy that rotted is moved out of the way, so that writing again mends it.

        Raises OSError where that cannot be seen.
        """
        directory = self._directory(digest)
        if not os.path.lexists(directory):
            return False
        try:
            deque(self._contents(digest), maxlen=0)
        except ArtefactError:
            self._discard(directory)
            return False
        except OSError as error:
            if error.errno not in ROT:  # whoever may not read it, or has no descriptor left, must not remove it
                raise
            self._discard(directory)
            return False
        return True

    def _discard(self, directory: Path) -> None:
        """Take it out of sight in one step, then remove it."""
        unfinished = self.root / UNFINISHED
        unfinished.mkdir()
        directory.rename(unfinished / directory.name)
        shutil.rmtree(unfinished)
        _sync_directory(self.root)

    def _place(self, digest: str, files: Iterable[tuple[str, bytes]]) -> None:
        """Write the files out of sight, make them durable, and show them under the digest in one step."""
        unfinished = self.root / UNFINISHED
        try:
            unfinished.mkdir()
            folders = {unfinished}
            for name, content in files:
                path = unfinished / name
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.update(folder for folder in path.parents if folder.is_relative_to(unfinished))
                with path.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                del content  # before the next one is read
            for folder in folders:
                _sync_directory(folder)
            unfinished.rename(self.root / digest)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _sync_directory(self.root)

    def _verified(self, digest: str) -> Iterator[tuple[str, bytes]]:
        """Every file, the manifest first, its size and hash checked; no content but the manifest's is parsed."""
        with self._readable(digest):
            yield from self._contents(digest)

    @contextmanager
    def _readable(self, digest: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtefactError(
                f"artefact {digest}: cannot read {error.filename or self._directory(digest)}: {error.strerror or error}; "
                "restore it from a backup, or train the model again"
            ) from error

    def _contents(self, digest: str) -> Iterator[tuple[str, bytes]]:
        """As ``_verified``; raises OSError where a file cannot be read."""
        directory = self._directory(digest)
        if not directory.is_dir():
            raise ArtefactError(self._missing(digest))
        manifest = _content(directory, MANIFEST, None, digest)
        yield MANIFEST, manifest
        for name, (size, found) in entries(manifest, digest).items():
            yield name, _content(directory, name, size, found)


def _valid(name: str) -> str:
    """The name, if it is a relative path that stays inside its directory on any file system."""
    steps = name.split("/")
    if not _NAME.fullmatch(name) or len(name) > 200 or "." in steps or ".." in steps:
        raise ArtefactError(
            f"{name!r} cannot name a part of an artefact; expected a relative path of letters, digits, '.', '_', '-' and '/' "
            "of at most 200 characters, without '.' or '..' as a step"
        )
    return name


def _text(name: str, size: int) -> None:
    """Raise ArtefactError for a text of a format that is not loaded, or too long for it."""
    most = LARGEST_TEXTS.get(Path(name).suffix)
    if most is None or size > most:
        listed = ", ".join(f"{suffix or 'no ending'} (to {largest >> 20} MiB)" for suffix, largest in LARGEST_TEXTS.items())
        raise ArtefactError(f"text {name!r} of {size} bytes is in no format that zoo loads; expected a name with {listed}")


def _files(artefact: Artefact) -> dict[str, bytes]:
    """What is written: file name -> content. Arrays share one safetensors file, which is left out when there are none."""
    files = {}
    if artefact.arrays:
        files[ARRAYS] = save_arrays({_valid(name): _storable(name, artefact.arrays[name]) for name in sorted(artefact.arrays)})
    for name in sorted(artefact.texts):
        above = {name[:at] for at, letter in enumerate(name) if letter == "/"} & artefact.texts.keys()
        if above:
            raise ArtefactError(f"text {name!r} would need a folder named as the text {min(above)!r}; rename one of them")
        try:
            files[TEXTS + _valid(name)] = artefact.texts[name].encode("utf-8")
        except UnicodeEncodeError as error:
            raise ArtefactError(
                f"text {name!r} is no valid Unicode ({error.reason} at {error.start}); write such bytes as an array"
            ) from error
        _text(name, len(files[TEXTS + name]))
    return files


def _storable(name: str, array: Array) -> Array:
    """The array as safetensors wants it: contiguous and little-endian."""
    if name == "__metadata__":
        raise ArtefactError("no array can be named '__metadata__', which safetensors keeps for itself; choose another name")
    if not isinstance(array, np.ndarray) or array.dtype.name not in DTYPES:
        seen = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ArtefactError(
            f"array {name!r} is {seen}; an artefact holds numpy arrays of: {', '.join(DTYPES)}. Save anything else as a text"
        )
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _manifest(files: Mapping[str, bytes]) -> bytes:
    entries = {name: {"sha256": sha256(content).hexdigest(), "size": len(content)} for name, content in files.items()}
    return json.dumps({"format": FORMAT, "files": entries}, sort_keys=True, separators=(",", ":")).encode()


def entries(manifest: bytes, digest: str) -> dict[str, tuple[int, str]]:
    """File name -> (size, sha256) of a manifest. Its own hash was right, but names are checked, for a digest may be a stranger's."""
    found = {}
    try:
        stated = json.loads(manifest.decode("utf-8"))  # of bytes json would guess the encoding, and load what decodes it
        if stated["format"] != FORMAT:
            raise ArtefactError(f"artefact {digest} has format {stated['format']!r}, expected {FORMAT}; upgrade feature-zoo")
        for name, entry in stated["files"].items():
            size, expected = entry["size"], entry["sha256"]
            if type(size) is not int or size < 0 or not DIGEST.fullmatch(expected):
                raise ValueError(f"{name[:80]!r} has size {str(size)[:40]} and sha256 {str(expected)[:80]!r}")
            if name != ARRAYS:
                _text(_valid(name.removeprefix(TEXTS) if name.startswith(TEXTS) else "/"), size)
            found[name] = (size, expected)
        if sum(size for size, _ in found.values()) > LARGEST:
            raise ArtefactError(f"artefact {digest} states more than {LARGEST >> 30} GiB, which is too much to load")
    except (RecursionError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"artefact {digest}: {MANIFEST} is not one that zoo writes ({error!r}); train the model again"
        ) from error
    return found


def _content(directory: Path, name: str, size: int | None, expected: str) -> bytes:
    """One file's bytes, if they are a plain file's of that size and hash."""
    path = directory / name
    where = f"artefact {directory.name}: file {name!r}"
    remedy = "restore it from a backup, or train the model again"
    if path.resolve() != path:
        raise ArtefactError(f"{where} is reached through a link to {path.resolve()}; expected a plain file; {remedy}")
    # Neither a link put there since nor a pipe may hold up or redirect the reader.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ArtefactError(f"{where} is not a plain file; {remedy}")
        if size is not None and status.st_size != size:
            raise ArtefactError(f"{where} has {status.st_size} bytes, expected {size} (sha256 {expected}); {remedy}")
        if size is None and status.st_size > LARGEST_MANIFEST:
            raise ArtefactError(f"{where} has {status.st_size} bytes, expected at most {LARGEST_MANIFEST}; {remedy}")
        content = file.read(status.st_size)
    found = sha256(content).hexdigest()
    if found != expected:
        raise ArtefactError(f"{where} has sha256 {found}, expected {expected}; {remedy}")
    return content


def _sync_directory(path: Path) -> None:
    """Make the directory's entries survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(root: Path, size: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"no room for an artefact of {size} bytes under {root} ({error.strerror}); nothing of it was kept. "
            "Free some space there, or raise the quota, and try again"
        )
    return f"cannot write an artefact under {root}: {error.strerror or error}; check that the directory may be written to"
