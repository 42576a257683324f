"""A version as one signed file: what it brings along, and everything that is refused."""

from __future__ import annotations

import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from shop import Shop
from typer.testing import CliRunner

from zoo.cli.app import app
from zoo.contract import Artefact
from zoo.errors import ArtefactError, UnknownReferenceError, UsageError, ZooError
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.registry import Registry
from zoo.registry.archive import (
    LENGTH,
    MAGIC,
    ORIGIN,
    SIGNATURE,
    Exported,
    Imported,
    _message,
    _public,
    export,
    fingerprint,
    import_,
    opened,
)
from zoo.remote import RemoteArtefacts

ARTEFACT = Artefact({"weights": np.arange(12, dtype=np.float32)}, {"model.json": '{"a": 1}', "trees/one.txt": "tree\n"})
SCORES = Artefact({"score": np.linspace(0, 1, 5)})


def pair(folder: Path, name: str, key: Any = None) -> tuple[Path, Path]:
    """(private, public) PEM files."""
    key = key or Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pair(tmp_path_factory.mktemp("keys"), "signing")


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with Registry.open(tmp_path / "here" / "registry.db", tmp_path / "here" / "artefacts") as found:
        yield found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> bytes:
    root = tmp_path_factory.mktemp("there")
    with Registry.open(root / "registry.db", root / "artefacts") as there:
        scores = there.artefacts.write(SCORES)
        there.register("churn", Artefact(texts={"model.json": "{}"}), {}, {})
        there.register("churn", ARTEFACT, {"auc": 0.8, "scores": scores}, {"log": {"version": 3}}, {"owner": "anna"})
        found, content = exported(there, "churn@2", keys[0])
        assert (found.size, found.note) == (len(content), None)
        return content


def exported(registry: Registry, reference: str, key: Path) -> tuple[Exported, bytes]:
    archive = io.BytesIO()
    return export(registry, reference, key, archive), archive.getvalue()


def imported(registry: Registry, content: bytes, keys: list[Path]) -> Imported:
    return import_(registry, io.BytesIO(content), keys)


def untouched(registry: Registry) -> bool:
    return registry.models() == [] and not list(registry.artefacts.root.glob("*"))


def test_a_version_arrives_with_all_it_had(registry: Registry, archive: bytes, keys: tuple[Path, Path]) -> None:
    found = imported(registry, archive, [keys[1]])
    assert (found.version.reference, found.origin) == ("churn@1", "churn@2")
    version, artefact = registry.load("churn@1")
    assert version == found.version
    np.testing.assert_array_equal(artefact.arrays["weights"], ARTEFACT.arrays["weights"])
    assert artefact.texts == ARTEFACT.texts
    assert (version.metrics["auc"], dict(version.lineage), version.aliases) == (0.8, {"log": {"version": 3}}, ())
    assert version.tags == {"owner": "anna", ORIGIN: f"churn@2 {found.signer}"}
    np.testing.assert_array_equal(registry.artefacts.read(version.metrics["scores"]).arrays["score"], SCORES.arrays["score"])
    again = imported(registry, archive, [keys[1]]).version
    assert (again.number, again.digest) == (2, version.digest)
    registry.promote("churn", 2)


def test_any_trusted_key_will_do_and_no_other(
    registry: Registry, archive: bytes, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    _, other = pair(tmp_path, "other")
    with pytest.raises(ArtefactError, match=r"no key that is trusted here .* signed this archive"):
        imported(registry, archive, [other])
    assert untouched(registry)
    assert imported(registry, archive, [other, keys[1]]).version.number == 1


def test_no_key_trusts_nobody(registry: Registry, archive: bytes) -> None:
    with pytest.raises(UsageError, match="no key to trust"):
        imported(registry, archive, [])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_is_refused(archive: bytes, keys: tuple[Path, Path], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(archive) - 1))
    how: Callable[[], bytes] = data.draw(
        st.sampled_from(
            [
                lambda: archive[:at] + bytes([archive[at] ^ (1 << at % 8)]) + archive[at + 1 :],
                lambda: archive[:at],
                lambda: archive[:at] + archive[at + 1 :],
                lambda: archive + archive[at:],
            ]
        )
    )
    with pytest.raises(ArtefactError):
        imported(None, how(), [keys[1]])  # type: ignore[arg-type]  # refused before the registry is looked at


def signed(keys: tuple[Path, Path], header: bytes, rest: bytes = b"", size: int | None = None) -> bytes:
    """An archive that a trusted key signed, of whatever content."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(keys[0].read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    content = (len(header) if size is None else size).to_bytes(LENGTH, "little") + header + rest
    return MAGIC + key.sign(_message(sha256(content).digest())) + content


def parts(archive: bytes) -> tuple[dict[str, Any], bytes]:
    begin = len(MAGIC) + SIGNATURE + LENGTH
    size = int.from_bytes(archive[begin - LENGTH : begin], "little")
    return json.loads(archive[begin : begin + size]), archive[begin + size :]


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    """The last file under another name, in a manifest that names it so, too."""

    def change(about: dict[str, Any]) -> None:
        about["files"][-1]["name"] = name

    return change


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "traversal": renamed("../../outside.txt"),
    "absolute": renamed("/tmp/outside.txt"),
    "another name": renamed("texts/other.json"),
    "a number below one": lambda about: about.update(number=-5),
    "a number that is none": lambda about: about.update(number=True),
    "a number that no reference has": lambda about: about.update(number=10**12),
    "a tag that is no text": lambda about: about["tags"].update(note="\ud800"),
    "a tag's name that is no text": lambda about: about["tags"].update({"\ud800": 1}),
    "a metric that is no text": lambda about: about["metrics"].update(by=[{"a": "\ud800"}]),
    "a file's name that is a number": lambda about: about["files"].append({**about["files"][-1], "size": 0, "name": 5}),
    "a size that is true": lambda about: about["files"][0].update(size=True),
    "an artefact that is a number": lambda about: about["files"][0].update(artefact=5),
    "no number": lambda about: about.update(number="2"),
    "no model": lambda about: about.pop("model"),
    "a model's bad name": lambda about: about.update(model="../churn"),
    "no artefact": lambda about: about.update(digest="0" * 64),
    "a digest that is a path": lambda about: (
        [each.update(artefact="../x") for each in about["files"]] and about.update(digest="../x")
    ),
    "a negative size": lambda about: about["files"][0].update(size=-1),
    "a size that is text": lambda about: about["files"][0].update(size="9"),
    "a file twice": lambda about: about["files"].append(about["files"][-1]),
    "a file fewer": lambda about: about["files"].pop(),
    "files that are none": lambda about: about.update(files=[1]),
    "a wrong hash": lambda about: about["files"][0].update(sha256="0" * 64),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_trusted_key_signed_is_checked_all_the_same(
    registry: Registry, archive: bytes, keys: tuple[Path, Path], change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    about, rest = parts(archive)
    change(about)
    with pytest.raises(ZooError):
        imported(registry, signed(keys, json.dumps(about).encode(), rest), [keys[1]])
    assert registry.models() == []
    assert not list(tmp_path.rglob("outside*"))


@pytest.mark.parametrize(("number", "said"), [(-5, "is no reference"), (True, "number is bool, expected int")])
def test_an_odd_header_leaves_nothing(
    registry: Registry, archive: bytes, keys: tuple[Path, Path], number: Any, said: str
) -> None:
    about, rest = parts(archive)
    with pytest.raises(ArtefactError, match=said):
        imported(registry, signed(keys, json.dumps({**about, "number": number}).encode(), rest), [keys[1]])
    assert untouched(registry)


@pytest.mark.parametrize(("begin", "size", "said"), [(b"", 30 << 30, "no archive"), (MAGIC, (64 << 30) + 1, "expected at most")])
def test_what_cannot_be_an_archive_is_not_read(tmp_path: Path, begin: bytes, size: int, said: str) -> None:
    path = tmp_path / "huge.zoo"
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)  # no block of it is on disk
    with pytest.raises(ArtefactError, match=said), opened(path):
        pass
    with pytest.raises(ArtefactError, match="no archive"), opened(Path("/dev/zero")):
        pass
    with pytest.raises(UsageError, match="cannot read"), opened(tmp_path):
        pass


@pytest.fixture
def large(tmp_path: Path, keys: tuple[Path, Path]) -> bytes:
    """An archive of four files of 16 MiB each."""
    texts = {f"{name}.txt": name * (16 << 20) for name in "abcd"}
    with Registry.open(tmp_path / "large.db", tmp_path / "large") as there:
        there.register("churn", Artefact(texts=texts), {}, {})
        return exported(there, "churn@1", keys[0])[1]


def test_one_file_of_an_archive_is_in_memory_at_a_time(registry: Registry, large: bytes, keys: tuple[Path, Path]) -> None:
    archive = io.BytesIO(large)
    tracemalloc.start()
    try:
        version = import_(registry, archive, [keys[1]]).version
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 48 << 20
    registry.artefacts.verify(version.digest)


def test_one_file_of_a_version_is_in_memory_at_a_time(large: bytes, keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "again"
    with Registry.open(tmp_path / "large.db", tmp_path / "large") as there, path.open("xb") as archive:
        tracemalloc.start()
        try:
            assert export(there, "churn@1", keys[0], archive).size == len(large)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 24 << 20
    assert path.read_bytes() == large  # Ed25519 signs the same alike


def test_an_archive_comes_through_a_pipe(registry: Registry, large: bytes, keys: tuple[Path, Path], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(large,))
    writer.start()
    with opened(pipe) as archive:
        assert import_(registry, archive, [keys[1]]).version.number == 1
    writer.join()
    writer = threading.Thread(target=pipe.write_bytes, args=(b"no archive at all",))
    writer.start()
    with opened(pipe) as archive, pytest.raises(ArtefactError, match="no archive"):
        import_(registry, archive, [keys[1]])
    writer.join()


def test_a_file_that_changes_after_its_signature_was_checked_is_refused(
    registry: Registry, archive: bytes, keys: tuple[Path, Path]
) -> None:
    class Swapped(io.BytesIO):
        """Another file from the second reading on."""

        readings = 0

        def seek(self, at: int, whence: int = 0) -> int:
            self.readings += at > 0
            if self.readings == 1:
                with self.getbuffer() as view:
                    view[-1] ^= 1
            return super().seek(at, whence)

    with pytest.raises(ArtefactError, match="archive"):
        import_(registry, Swapped(archive), [keys[1]])
    assert untouched(registry)


def test_scores_that_only_this_machine_holds_are_exported_and_lost_ones_named(keys: tuple[Path, Path], tmp_path: Path) -> None:
    with Registry.open(tmp_path / "registry.db", tmp_path / "artefacts") as before:
        scores = before.artefacts.write(SCORES)
        before.register("churn", ARTEFACT, {"scores": scores}, {})
    with Registry.open(tmp_path / "registry.db", RemoteArtefacts(f"file://{tmp_path}/there", tmp_path / "artefacts")) as there:
        found, content = exported(there, "churn@1", keys[0])
        assert found.note is None
        assert scores in {each["artefact"] for each in parts(content)[0]["files"]}
        there.artefacts.send(scores)
        there.artefacts.delete(scores)
        found, content = exported(there, "churn@1", keys[0])
        assert found.note == f"the scores of its test rows are not in it: their artefact {scores} is gone"
        assert scores not in {each["artefact"] for each in parts(content)[0]["files"]}


@pytest.mark.parametrize(
    ("header", "size"), [(b"{", None), (b"[]", None), (b"\xff", None), (b"{}", 1 << 40), (b"[" * 100_000, None)], ids=str
)
def test_headers_that_are_none(registry: Registry, keys: tuple[Path, Path], header: bytes, size: int | None) -> None:
    with pytest.raises(ArtefactError, match="archive"):
        imported(registry, signed(keys, header, size=size), [keys[1]])
    assert untouched(registry)


def test_a_manifest_of_another_artefact_is_not_adopted(registry: Registry) -> None:
    other = registry.artefacts.write(SCORES)
    files = dict(registry.artefacts.files(other))
    registry.artefacts.delete(other)
    with pytest.raises(ArtefactError, match="another hash"):
        registry.artefacts.adopt("0" * 64, files)
    for name in files:
        with pytest.raises(ArtefactError):
            registry.artefacts.adopt(other, {n: content for n, content in files.items() if n != name})
        with pytest.raises(ArtefactError):
            registry.artefacts.adopt(other, {**files, name: files[name][:-1] + b"\0"})
    with pytest.raises(ArtefactError, match="is not the one"):
        registry.artefacts.adopt(other, {**files, "texts/more.json": b"{}"})
    registry.artefacts.adopt(other, files)
    registry.artefacts.verify(other)


@pytest.mark.parametrize("content", ["public", "rsa", "text", "none"])
def test_keys_that_are_none_are_named(registry: Registry, keys: tuple[Path, Path], tmp_path: Path, content: str) -> None:
    registry.register("churn", ARTEFACT, {}, {})
    path = tmp_path / "key.pem"
    if content == "public":
        path = keys[1]
    elif content == "rsa":
        path, _ = pair(tmp_path, "rsa", generate_private_key(65537, 2048))
    elif content == "text":
        path.write_text("no key at all")
    with pytest.raises(UsageError, match="no private key of Ed25519" if content != "none" else "cannot read the key"):
        exported(registry, "churn@1", path)


@pytest.mark.parametrize(
    ("kind", "scheme", "said"),
    [
        (PrivateFormat.PKCS8, BestAvailableEncryption(b"x"), r"it has a passphrase, .* openssl pkey -in .*key -out plain\.pem"),
        (PrivateFormat.OpenSSH, NoEncryption(), "in PEM: it is in OpenSSH's own format"),
    ],
)
def test_keys_in_other_forms_are_named(registry: Registry, tmp_path: Path, kind: Any, scheme: Any, said: str) -> None:
    registry.register("churn", ARTEFACT, {}, {})
    key, path = Ed25519PrivateKey.generate(), tmp_path / "key"
    path.write_bytes(key.private_bytes(Encoding.PEM, kind, scheme))
    with pytest.raises(UsageError, match=said):
        exported(registry, "churn@1", path)
    path.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    with pytest.raises(UsageError, match="no public key of Ed25519 in PEM: it is in OpenSSH's own format"):
        imported(registry, b"", [path])


def test_a_version_that_is_not_there(registry: Registry, keys: tuple[Path, Path]) -> None:
    registry.register("churn", ARTEFACT, {}, {})
    with pytest.raises(UnknownReferenceError):
        exported(registry, "churn@9", keys[0])


def test_a_project_answers_with_a_version_of_another(trained_shop: Shop, tmp_path: Path) -> None:
    private, public = pair(tmp_path, "shop")
    there, here = trained_shop.copy(tmp_path / "there"), trained_shop.copy(tmp_path / "here")
    file = tmp_path / "churn.zoo"

    def run(shop: Shop, *words: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["--repo", str(shop.root), *words, "--json"])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    out = run(there, "export", "churn@champion", str(file), "--key", str(private))
    assert (out["model"], out["bytes"]) == ("churn", file.stat().st_size)
    back = run(here, "import", str(file), "--key", str(public))
    assert (back["origin"], back["version"]) == (f"churn@{out['version']}", 2)
    assert back["signer"] == fingerprint(_public(public))
    run(here, "promote", "churn@2")
    expected = Predictor.load("churn", there.root).predict(users=[1, 2, 3])["score"].to_pylist()
    assert Predictor.load("churn", here.root).predict(users=[1, 2, 3])["score"].to_pylist() == expected
    project = Project.open(here.root)
    with Registry.open(project.registry_url, project.artefacts) as registry:
        assert registry.get("churn@1").digest == registry.get("churn@2").digest
    written = file.read_bytes()
    again = CliRunner().invoke(app, ["--repo", str(there.root), "export", "churn", str(file), "--key", str(private)])
    assert again.exit_code != 0
    assert "is there already" in again.output
    assert file.read_bytes() == written


def test_an_export_that_fails_half_way_leaves_no_file(trained_shop: Shop, tmp_path: Path) -> None:
    private, _ = pair(tmp_path, "shop")
    shop = trained_shop.copy(tmp_path / "there")
    project = Project.open(shop.root)
    with Registry.open(project.registry_url, project.artefacts) as registry:
        (*_, last) = [path for path in sorted((project.artefacts / registry.get("churn").digest).rglob("*")) if path.is_file()]
    last.write_bytes(bytes(last.stat().st_size))
    (tmp_path / "out").mkdir()
    words = ["--repo", str(shop.root), "export", "churn", str(tmp_path / "out" / "churn.zoo"), "--key", str(private)]
    said = CliRunner().invoke(app, words)
    assert (said.exit_code, "sha256" in said.output) == (1, True)
    assert [*(tmp_path / "out").iterdir()] == []
