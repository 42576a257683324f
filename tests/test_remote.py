"""Artefacts at an address: written whole, fetched where they are used, checked as local ones are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from shop import Shop

from zoo.artefacts import ArtefactStore
from zoo.contract import Artefact
from zoo.errors import ArtefactError, UsageError
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.registry import Registry
from zoo.remote import RemoteArtefacts

ARTEFACT = Artefact({"weights": np.arange(9, dtype=np.float32)}, {"model.json": "{}", "trees/one.txt": "tree\n"})


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    address = f"file://{tmp_path}/there" if request.param == "file" else f"memory://{tmp_path.name}"
    yield address
    system, path = fsspec.core.url_to_fs(address)
    if system.exists(path):
        system.rm(path, recursive=True)


def names(url: str) -> list[str]:
    system, path = fsspec.core.url_to_fs(url)
    return sorted(each.removeprefix(path).lstrip("/") for each in system.find(path)) if system.exists(path) else []


def put(url: str, name: str, content: bytes) -> None:
    system, path = fsspec.core.url_to_fs(url)
    system.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
    system.pipe_file(f"{path}/{name}", content)


def test_what_one_writes_another_reads(url: str, tmp_path: Path) -> None:
    here, there = RemoteArtefacts(url, tmp_path / "here"), RemoteArtefacts(url, tmp_path / "other")
    digest = here.write(ARTEFACT)
    assert digest == ArtefactStore(tmp_path / "plain").write(ARTEFACT)
    assert names(url) == [
        f"{digest}/{name}" for name in ("arrays.safetensors", "manifest.json", "texts/model.json", "texts/trees/one.txt")
    ]
    there.verify(digest)
    found = there.read(digest)
    np.testing.assert_array_equal(found.arrays["weights"], ARTEFACT.arrays["weights"])
    assert found.texts == ARTEFACT.texts
    assert here.exists(digest)
    assert there.exists(digest)
    assert not there.exists("0" * 64)
    assert RemoteArtefacts(url, tmp_path / "third").files(digest) == here.files(digest)


def test_a_copy_is_not_fetched_again_unless_it_rotted(url: str, tmp_path: Path) -> None:
    here, there = RemoteArtefacts(url, tmp_path / "here"), RemoteArtefacts(url, tmp_path / "other")
    digest = here.write(ARTEFACT)
    there.read(digest)
    put(url, f"{digest}/texts/model.json", b"[]")
    assert there.read(digest).texts["model.json"] == "{}"
    copy = tmp_path / "other" / digest / "texts" / "model.json"
    copy.chmod(0o644)
    copy.write_text("rot")
    with pytest.raises(ArtefactError, match="is not the one that its manifest"):
        there.read(digest)
    put(url, f"{digest}/texts/model.json", b"{}")
    assert there.read(digest).texts["model.json"] == "{}"


@pytest.mark.parametrize("name", ["manifest.json", "texts/model.json", "arrays.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 10_000])
def test_what_was_changed_there_is_refused(url: str, tmp_path: Path, name: str, content: bytes) -> None:
    digest = RemoteArtefacts(url, tmp_path / "here").write(ARTEFACT)
    if name == "texts/model.json" and content == b"{}":
        content = b"[]"
    put(url, f"{digest}/{name}", content)
    there = RemoteArtefacts(url, tmp_path / "other")
    with pytest.raises(ArtefactError):
        there.read(digest)
    assert not list((tmp_path / "other").glob("[0-9a-f]*"))


def test_names_that_lead_elsewhere_are_refused(url: str, tmp_path: Path) -> None:
    from hashlib import sha256

    content = b"{}"
    entry = {"sha256": sha256(content).hexdigest(), "size": 2}
    manifest = json.dumps({"format": 1, "files": {"texts/../../outside.json": entry}}).encode()
    digest = sha256(manifest).hexdigest()
    put(url, f"{digest}/manifest.json", manifest)
    put(url, "outside.json", content)
    with pytest.raises(ArtefactError, match="cannot name a part"):
        RemoteArtefacts(url, tmp_path / "here").read(digest)


def test_one_that_was_not_written_to_its_end_is_not_there(url: str, tmp_path: Path) -> None:
    here = RemoteArtefacts(url, tmp_path / "here")
    digest = here.write(ARTEFACT)
    system, path = fsspec.core.url_to_fs(url)
    system.rm(f"{path}/{digest}/manifest.json")  # as if killed before the last file
    other = RemoteArtefacts(url, tmp_path / "other")
    assert not other.exists(digest)
    for ask in (other.read, other.verify, other.delete):
        with pytest.raises(ArtefactError, match="no artefact"):
            ask(digest)
    assert other.write(ARTEFACT) == digest
    here.verify(digest)


def test_a_torn_manifest_is_written_again(url: str, tmp_path: Path) -> None:
    here = RemoteArtefacts(url, tmp_path / "here")
    digest = here.write(ARTEFACT)
    put(url, f"{digest}/manifest.json", here.files(digest)["manifest.json"][:-5])
    assert not here.exists(digest)
    with pytest.raises(ArtefactError, match="no artefact"):
        here.verify(digest)
    assert here.write(ARTEFACT) == digest
    assert RemoteArtefacts(url, tmp_path / "other").read(digest).texts == ARTEFACT.texts


def test_what_is_deleted_is_deleted_for_everybody(url: str, tmp_path: Path) -> None:
    here, there = RemoteArtefacts(url, tmp_path / "here"), RemoteArtefacts(url, tmp_path / "other")
    digest = here.write(ARTEFACT)
    there.read(digest)
    here.delete(digest)
    assert names(url) == []
    assert not here.exists(digest)
    with pytest.raises(ArtefactError, match="no artefact"):
        there.verify(digest)


def test_addresses_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="artefacts cannot be kept at 'nowhere://x'"):
        RemoteArtefacts("nowhere://x", tmp_path)
    for value in ("data/artefacts", 3):
        (tmp_path / "zoo.toml").write_text(f"[zoo]\nartefacts = {json.dumps(value)}\n")
        with pytest.raises(UsageError, match="expected an address of fsspec's"):
            Project.open(tmp_path)


def test_an_address_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteArtefacts(f"memory://{tmp_path.name}", tmp_path / "here")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError("refused")

    monkeypatch.setattr(store._system, "cat_file", refuse)
    with pytest.raises(ArtefactError, match=r"cannot look for artefacts at memory://.*: refused; see that it can be reached"):
        store.exists("0" * 64)


def test_a_machine_without_copies_answers_with_what_another_registered(trained_shop: Shop, tmp_path: Path) -> None:
    shop = trained_shop.copy(tmp_path / "shop")
    settings = shop.root / "zoo.toml"
    address = f"file://{tmp_path}/bucket"
    text = settings.read_text()
    text = (
        text.replace("[zoo]\n", f'[zoo]\nartefacts = "{address}"\n')
        if "[zoo]" in text
        else f'[zoo]\nartefacts = "{address}"\n\n{text}'
    )
    expected = Predictor.load("churn", shop.root).predict(users=[1, 2])["score"].to_pylist()
    with Registry.of(Project.open(shop.root)) as before:
        version, artefact = before.load("churn")
    settings.write_text(text)
    with Registry.of(Project.open(shop.root)) as registry:
        again = registry.register("churn", artefact, version.metrics, version.lineage)
        registry.promote("churn", again.number)
    shutil.rmtree(Project.open(shop.root).artefacts)  # another machine's folder is empty
    assert Predictor.load("churn", shop.root).predict(users=[1, 2])["score"].to_pylist() == expected
    assert [path.name for path in Project.open(shop.root).artefacts.glob("[0-9a-f]*")] == [again.digest]
