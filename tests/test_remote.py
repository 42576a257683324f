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

from zoo.address import hidden, secrets, shown
from zoo.artefacts import ArtefactStore
from zoo.contract import Artefact
from zoo.errors import ArtefactError, RegistryError, UsageError
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.registry import Registry
from zoo.remote import RemoteArtefacts

SCORES = Artefact({"score": np.linspace(0, 1, 5)})
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
    assert [*RemoteArtefacts(url, tmp_path / "third").files(digest)] == [*here.files(digest)]


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
    put(url, f"{digest}/manifest.json", dict(here.files(digest))["manifest.json"][:-5])
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
    with pytest.raises(UsageError, match=r"^artefacts cannot be kept at 'nowhere://\*\*\*@h/x': Protocol not known: nowhere$"):
        RemoteArtefacts("nowhere://anna:geheim@h/x", tmp_path)
    told = {
        "data/artefacts": "expected an address of fsspec's",
        3: "expected an address of fsspec's",
        "memory://x": "ends with each process",
    }
    for value, said in {**told, "FTP://anna:geheim@h/x": r"is 'FTP://\*\*\*@h/x'; expected"}.items():
        (tmp_path / "zoo.toml").write_text(f"[zoo]\nartefacts = {json.dumps(value)}\n")
        with pytest.raises(UsageError, match=said):
            Project.open(tmp_path)


def test_a_relative_folder_is_the_projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    for given, meant in {
        "file://store": f"file://{tmp_path}/project/store", "local://a/b": f"local://{tmp_path}/project/a/b",
        "file:///store": "file:///store", "file://~/store": "file://~/store", "s3://store": "s3://store",
    }.items():  # fmt: skip
        (tmp_path / "project" / "zoo.toml").write_text(f"[zoo]\nartefacts = {json.dumps(given)}\n")
        assert Project.open("project").artefacts_url == meant
    (tmp_path / "project" / "zoo.toml").write_text('[zoo]\nartefacts = "file://store"\n')
    with Registry.of(Project.open("project")) as registry:
        digest = registry.artefacts.write(ARTEFACT)
    assert (tmp_path / "project" / "store" / digest / "manifest.json").is_file()


def test_what_was_made_before_there_was_an_address_is_sent_by_a_promotion(tmp_path: Path) -> None:
    settings = tmp_path / "zoo.toml"
    settings.write_text("[zoo]\n")
    with Registry.of(Project.open(tmp_path)) as before:
        scores, lost = before.artefacts.write(SCORES), Artefact(texts={"model.json": "[]"})
        before.register("churn", ARTEFACT, {"scores": scores}, {})
        before.register("churn", lost, {}, {})
        before.register("churn", ARTEFACT, {}, {})
        before.retire("churn", 3)
    url = f"file://{tmp_path}/there"
    settings.write_text(f'[zoo]\nartefacts = "{url}"\n')
    with Registry.of(Project.open(tmp_path)) as registry:
        one, two = (registry.get(f"churn@{number}").digest for number in (1, 2))
        with pytest.raises(
            ArtefactError,
            match=r"nothing is there at all: .* mounted\. Otherwise a whole copy is in .*data/artefacts, and `zoo promote`",
        ):
            registry.artefacts.verify(one)
        with pytest.raises(RegistryError, match="retired"):
            registry.promote("churn", 3)
        assert names(url) == []
        registry.promote("churn", 1)
        assert {name.partition("/")[0] for name in names(url)} == {one, scores}
        with pytest.raises(ArtefactError, match=f"{url}; a whole copy is in"):
            registry.artefacts.verify(two)
        (registry.artefacts.root / two / "texts" / "model.json").write_text("rot")
        with pytest.raises(ArtefactError, match=r"churn@2 cannot be promoted: .*model\.json.*restore it from a backup"):
            registry.promote("churn", 2)
        shutil.rmtree(registry.artefacts.root)
        registry.load("churn@1")
        with pytest.raises(
            ArtefactError, match="restore it from a backup, promote its version on a machine whose artefacts hold it"
        ):
            registry.load("churn@2")


def test_what_was_changed_there_is_mended_as_the_message_says(url: str, tmp_path: Path) -> None:
    here, there = RemoteArtefacts(url, tmp_path / "here"), RemoteArtefacts(url, tmp_path / "other")
    digest = here.write(ARTEFACT)
    put(url, f"{digest}/texts/model.json", b"[]")
    with pytest.raises(
        ArtefactError, match=rf"file 'texts/model\.json' at {url} .* remove {digest}/manifest\.json there, and promote"
    ):
        there.read(digest)
    system, path = fsspec.core.url_to_fs(url)
    system.rm(f"{path}/{digest}/manifest.json")
    here.send(digest)
    assert there.read(digest).texts == ARTEFACT.texts


def test_no_file_is_fetched_for_a_manifest_of_another_hash(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = RemoteArtefacts(url, tmp_path / "here").write(ARTEFACT)
    there = RemoteArtefacts(url, tmp_path / "other")
    put(
        url,
        f"{digest}/manifest.json",
        b'{"format": 1, "files": {"texts/a.txt": {"size": 1000000000, "sha256": "' + b"0" * 64 + b'"}}}',
    )
    put(url, f"{digest}/texts/a.txt", b"x")
    fetched, fetch = [], there._system.cat_file
    monkeypatch.setattr(there._system, "cat_file", lambda path, **most: fetched.append(path) or fetch(path, **most))
    with pytest.raises(ArtefactError, match=r"'manifest\.json' at .* is not the one that its artefact's digest names"):
        there.read(digest)
    assert [path.rpartition("/")[2] for path in fetched] == ["manifest.json"]


def test_an_address_that_refuses_is_asked_late_and_told_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "zoo.toml").write_text('[zoo]\nartefacts = "ftp://anna:ge%21heim@127.0.0.1:9/x"\n')
    project = Project.open(tmp_path)
    with Registry.of(project) as registry:
        assert registry.models() == []
        with pytest.raises(
            ArtefactError, match=r"at ftp://\*\*\*@127\.0\.0\.1:9/x: .*refused; see that it can be reached"
        ) as caught:
            registry.artefacts.exists("0" * 64)
    assert "heim" not in str(caught.value)
    wrong = RemoteArtefacts("ftp://anna:geheim@127.0.0.1:geheim/x", tmp_path / "here")
    with pytest.raises(ArtefactError, match=r"cannot look for artefacts at ftp://\*\*\*@") as caught:
        wrong.exists("0" * 64)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/zoo", "s3://bucket/zoo"),
        ("ftp://anna:a/b@c@host:21/x", "ftp://***@host:21/x"),
        ("abfs://box@account/x?sig=se%2Fcret&v=1", "abfs://***@account/x?***"),
        ("https://host/x?sig=a@b", "https://***"),
        ("file:///home/a@b/x?y", "file:///home/a@b/x?y"),
        ("anna:geheim@host", "***@host"),
    ],
)
def test_addresses_are_shown_without_credentials(url: str, expected: str) -> None:
    assert shown(url) == expected
    said = hidden(f"cannot open {url} with se/cret", secrets(url))
    assert not any(word in said for word in ("a/b@c", "se%2Fcret", "geheim")), said
    assert ("se/cret" in said) == ("sig=se" not in url)


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


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://anna:geheim@host/x", "user anna, geheim@host"),
        ("https://host/x?sig=a@b/c", "no route to /x?sig=a@b/c"),
        ("https://host/x?sig=a@b/c", "no route to sig=a%40b%2Fc"),
        ("abfs://box@host/x?key=k%2Fey", "k/ey and k%2Fey"),
    ],
)
def test_no_form_of_what_an_address_holds_is_shown(url: str, told: str) -> None:
    seen = hidden(told, secrets(url))
    assert not any(each in seen for each in ("anna", "geheim", "a@b", "a%40b", "k/ey", "k%2Fey"))
    assert "***" in seen
