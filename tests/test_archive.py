"""A version as one signed file: what it brings along, and everything that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
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
from zoo.registry.archive import LENGTH, MAGIC, ORIGIN, SIGNATURE, _message, _public, export, fingerprint, import_

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
        return export(there, "churn@2", keys[0])


def untouched(registry: Registry) -> bool:
    return registry.models() == [] and not list(registry.artefacts.root.glob("*"))


def test_a_version_arrives_with_all_it_had(registry: Registry, archive: bytes, keys: tuple[Path, Path]) -> None:
    found = import_(registry, archive, [keys[1]])
    assert (found.version.reference, found.origin) == ("churn@1", "churn@2")
    version, artefact = registry.load("churn@1")
    assert version == found.version
    np.testing.assert_array_equal(artefact.arrays["weights"], ARTEFACT.arrays["weights"])
    assert artefact.texts == ARTEFACT.texts
    assert (version.metrics["auc"], dict(version.lineage), version.aliases) == (0.8, {"log": {"version": 3}}, ())
    assert version.tags == {"owner": "anna", ORIGIN: f"churn@2 {found.signer}"}
    np.testing.assert_array_equal(registry.artefacts.read(version.metrics["scores"]).arrays["score"], SCORES.arrays["score"])
    again = import_(registry, archive, [keys[1]]).version
    assert (again.number, again.digest) == (2, version.digest)
    registry.promote("churn", 2)


def test_any_trusted_key_will_do_and_no_other(
    registry: Registry, archive: bytes, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    _, other = pair(tmp_path, "other")
    with pytest.raises(ArtefactError, match=r"no key that is trusted here .* signed this archive"):
        import_(registry, archive, [other])
    assert untouched(registry)
    assert import_(registry, archive, [other, keys[1]]).version.number == 1


def test_no_key_trusts_nobody(registry: Registry, archive: bytes) -> None:
    with pytest.raises(UsageError, match="no key to trust"):
        import_(registry, archive, [])


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
        import_(None, how(), [keys[1]])  # type: ignore[arg-type]  # refused before the registry is looked at


def signed(keys: tuple[Path, Path], header: bytes, rest: bytes = b"", size: int | None = None) -> bytes:
    """An archive that a trusted key signed, of whatever content."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(keys[0].read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    content = (len(header) if size is None else size).to_bytes(LENGTH, "little") + header + rest
    return MAGIC + key.sign(_message(content)) + content


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
        import_(registry, signed(keys, json.dumps(about).encode(), rest), [keys[1]])
    assert registry.models() == []
    assert not list(tmp_path.rglob("outside*"))


@pytest.mark.parametrize(
    ("header", "size"), [(b"{", None), (b"[]", None), (b"\xff", None), (b"{}", 1 << 40), (b"[" * 100_000, None)], ids=str
)
def test_headers_that_are_none(registry: Registry, keys: tuple[Path, Path], header: bytes, size: int | None) -> None:
    with pytest.raises(ArtefactError, match="archive"):
        import_(registry, signed(keys, header, size=size), [keys[1]])
    assert untouched(registry)


def test_a_manifest_of_another_artefact_is_not_adopted(registry: Registry) -> None:
    other = registry.artefacts.write(SCORES)
    files = registry.artefacts.files(other)
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
        export(registry, "churn@1", path)


def test_a_version_that_is_not_there(registry: Registry, keys: tuple[Path, Path]) -> None:
    registry.register("churn", ARTEFACT, {}, {})
    with pytest.raises(UnknownReferenceError):
        export(registry, "churn@9", keys[0])


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
