"""Artefacts at any address that fsspec knows (``s3://``, ``gs://``, ``file://``), with a local copy of those that were used here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from zoo.address import hidden, secrets, shown
from zoo.artefacts import LARGEST_MANIFEST, MANIFEST, ArtefactStore, entries
from zoo.contract import Artefact
from zoo.errors import ArtefactError, UsageError


class RemoteArtefacts(ArtefactStore):
    """As ``ArtefactStore``, whose folder keeps copies. An artefact is there once its manifest is, which is written last.

    What is fetched is checked as what lies on this machine is: by size and hash, against a manifest whose hash is the digest.
    """

    def __init__(self, url: str, copies: str | Path) -> None:
        """Raises UsageError for an address of a kind that fsspec does not know, or whose package is not installed.

        ``url`` is then the address without credentials. Nothing is asked of it before an artefact is.
        """
        from fsspec import get_filesystem_class  # which imports what an address needs

        super().__init__(copies)
        self._url = url.rstrip("/")
        self.url = shown(self._url)
        try:
            get_filesystem_class(url.partition("://")[0])
        except (ImportError, ValueError) as error:
            raise UsageError(f"artefacts cannot be kept at {self.url!r}: {error}") from error

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """(fsspec's file system, the path in it), once they are needed: some kinds of address connect when they are opened."""
        from fsspec.core import url_to_fs

        system, base = url_to_fs(self._url)
        return system, str(base).rstrip("/")

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @property
    def _base(self) -> str:
        return self._opened[1]

    def write(self, artefact: Artefact) -> str:
        digest = super().write(artefact)
        self.send(digest)
        return digest

    def adopt(self, digest: str, files: Mapping[str, bytes]) -> None:
        super().adopt(digest, files)
        self.send(digest)

    def read(self, digest: str) -> Artefact:
        self._fetch(digest)
        return super().read(digest)

    def files(self, digest: str) -> Iterator[tuple[str, bytes]]:
        self._fetch(digest)
        return super().files(digest)

    def verify(self, digest: str) -> None:
        """Also of those who fetch it elsewhere: it has to be at the address."""
        if not self.exists(digest):
            raise ArtefactError(self._missing(digest))
        self._fetch(digest)
        super().verify(digest)

    def send(self, digest: str) -> None:
        if not super().exists(digest) or self.exists(digest):
            return
        files = super().files(digest)
        manifest = next(files)
        with self._failing("write an artefact"):
            for name, content in chain(files, [manifest]):
                path = self._path(digest, name)
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._system.pipe_file(path, content)
                del content  # before the next one is read

    def held(self, digest: str) -> bool:
        return super().exists(digest) or self.exists(digest)

    def exists(self, digest: str) -> bool:
        """Whether its manifest is there, whole: where files are not written at once, one that was being written may be torn."""
        self._directory(digest)
        with self._failing("look for artefacts"):
            try:
                return sha256(self._content(digest, MANIFEST, LARGEST_MANIFEST)).hexdigest() == digest
            except FileNotFoundError:
                return False

    def delete(self, digest: str) -> None:
        if not self.exists(digest):
            raise ArtefactError(self._missing(digest))
        with self._failing("delete an artefact"):
            self._system.rm(self._path(digest, MANIFEST))  # from here on it is not there
            with suppress(FileNotFoundError):  # where folders are no more than names of files
                self._system.rm(f"{self._base}/{digest}", recursive=True)
        if super().exists(digest):
            super().delete(digest)

    def _path(self, digest: str, name: str) -> str:
        return f"{self._base}/{digest}/{name}"

    def _missing(self, digest: str) -> str:
        """In words, with what mends it."""
        remedy = (
            f"restore it from a backup, promote its version on a machine whose {self.root.name} hold it, or train the model again"
        )
        if super().exists(digest):
            with suppress(ArtefactError):
                super().verify(digest)
                remedy = f"a whole copy is in {self.root}, and `zoo promote` of its version sends it there"
        with self._failing("look for artefacts"):
            if not self._system.exists(self._base):
                remedy = (
                    f"nothing is there at all: see that the address is right and, if it is a folder, mounted. Otherwise {remedy}"
                )
        return f"no artefact {digest} at {self.url}; {remedy}"

    def _fetch(self, digest: str) -> None:
        """Have a whole copy here. Raises ArtefactError where there is none at the address, or it is not what the digest names."""
        if super().exists(digest):
            with suppress(ArtefactError):  # a copy that rotted is fetched again
                super().verify(digest)
                return
        with self._failing("fetch an artefact"):
            try:
                manifest = self._content(digest, MANIFEST, LARGEST_MANIFEST)
            except FileNotFoundError:
                raise ArtefactError(self._missing(digest)) from None
            self._check(digest, MANIFEST, manifest, digest)
            files = {MANIFEST: manifest}
            for name, (size, expected) in entries(manifest, digest).items():
                files[name] = self._content(digest, name, size)
                self._check(digest, name, files[name], expected)
        super().adopt(digest, files)

    def _check(self, digest: str, name: str, content: bytes, expected: str) -> None:
        if (found := sha256(content).hexdigest()) != expected:
            names = "artefact's digest" if name == MANIFEST else MANIFEST
            raise ArtefactError(
                f"artefact {digest}: file {name!r} at {self.url} is not the one that its {names} names: its sha256 is {found}, "
                f"expected {expected}. "
                f"Restore it there from a backup; or remove {digest}/{MANIFEST} there, and promote its version on a machine whose "
                f"{self.root.name} hold it, which sends it again"
            )

    def _content(self, digest: str, name: str, most: int) -> bytes:
        return bytes(self._system.cat_file(self._path(digest, name), start=0, end=most + 1))

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Say an error of the address's as ArtefactError: each kind of address has errors of its own."""
        try:
            yield
        except ArtefactError:
            raise
        except FileNotFoundError as error:
            raise ArtefactError(f"cannot {what} at {self.url}: {hidden(str(error), secrets(self._url))} is not there") from None
        except Exception as error:  # noqa: BLE001 - and not chained, for its own text may hold a password
            told = hidden(str(error), secrets(self._url))[:300] or type(error).__name__
            raise ArtefactError(f"cannot {what} at {self.url}: {told}; see that it can be reached, and may be used") from None
