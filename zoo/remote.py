"""Artefacts at any address that fsspec knows (``s3://``, ``gs://``, ``file://``), with a local copy of those that were used here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from zoo.artefacts import LARGEST_MANIFEST, MANIFEST, ArtefactStore, entries
from zoo.contract import Artefact
from zoo.errors import ArtefactError, UsageError


class RemoteArtefacts(ArtefactStore):
    """As ``ArtefactStore``, whose folder keeps copies. An artefact is there once its manifest is, which is written last.

    What is fetched is checked as what lies on this machine is: by size and hash, against a manifest whose hash is the digest.
    """

    def __init__(self, url: str, copies: str | Path) -> None:
        """Raises UsageError for an address of a kind that fsspec does not know, or whose package is not installed."""
        import fsspec  # which imports what an address needs

        super().__init__(copies)
        self.url = url.rstrip("/")
        try:
            self._system, base = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"artefacts cannot be kept at {url!r}: {error}") from error
        self._base = str(base).rstrip("/")

    def write(self, artefact: Artefact) -> str:
        digest = super().write(artefact)
        self._send(digest)
        return digest

    def adopt(self, digest: str, files: Mapping[str, bytes]) -> None:
        super().adopt(digest, files)
        self._send(digest)

    def read(self, digest: str) -> Artefact:
        self._fetch(digest)
        return super().read(digest)

    def files(self, digest: str) -> dict[str, bytes]:
        self._fetch(digest)
        return super().files(digest)

    def verify(self, digest: str) -> None:
        """Also of those who fetch it elsewhere: it has to be at the address."""
        if not self.exists(digest):
            raise ArtefactError(self._missing(digest))
        self._fetch(digest)
        super().verify(digest)

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
        return f"no artefact {digest} at {self.url}; restore it from a backup, or train the model again"

    def _send(self, digest: str) -> None:
        if self.exists(digest):
            return
        files = super().files(digest)
        with self._failing("write an artefact"):
            for name in [*(name for name in files if name != MANIFEST), MANIFEST]:
                path = self._path(digest, name)
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._system.pipe_file(path, files[name])

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
            named = entries(manifest, digest)
            files = {name: self._content(digest, name, size) for name, (size, _) in named.items()}
        super().adopt(digest, {MANIFEST: manifest, **files})

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
            raise ArtefactError(f"cannot {what} at {self.url}: {error} is not there") from error
        except Exception as error:
            told: Any = str(error)[:300] or type(error).__name__
            raise ArtefactError(f"cannot {what} at {self.url}: {told}; see that it can be reached, and may be used") from error
