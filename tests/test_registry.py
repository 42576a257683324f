"""The registry on SQLite and PostgreSQL: versions count without gaps, aliases only name whole versions, and damage is said."""

from __future__ import annotations

import fcntl
import gc
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from predict_registry import killed
from sqlalchemy import make_url

from zoo.contract import Artefact
from zoo.errors import ArtefactError, RegistryError, UnknownReferenceError, UsageError
from zoo.registry import Reference, Registry, parse
from zoo.registry.database import VERSION_TABLE, _words

LINEAGE = {"log_version": [3, 17], "plugins": {"feature-zoo-gbdt": "0.1.0"}, "seed": 7, "commit": None}


def artefact(value: float = 0.0) -> Artefact:
    return Artefact({"weight": np.full(3, value)}, {"params.json": "{}"})


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def registry(url, tmp_path):
    with Registry.open(url, tmp_path / "artefacts") as opened:
        yield opened


def fill(registry: Registry, model: str = "churn", count: int = 1) -> None:
    for number in range(1, count + 1):
        registry.register(model, artefact(number), {"auc": number / 10}, LINEAGE)


def test_a_registered_version_comes_back_as_it_was_given(registry):
    before = datetime.now(UTC)
    made = registry.register("churn", artefact(1), {"auc": 0.1 + 0.2, "rows": 8857}, LINEAGE, tags={"note": "größer\u0000 😀"})
    assert before <= made.created <= datetime.now(UTC)
    assert made.created.tzinfo == UTC
    assert (made.model, made.number, made.aliases, made.status) == ("churn", 1, (), "ready")
    assert made.metrics == {"auc": 0.1 + 0.2, "rows": 8857}
    assert list(made.lineage.items()) == list(LINEAGE.items())
    assert made.tags == {"note": "größer\u0000 😀"}
    assert registry.get("churn@1") == made
    version, loaded = registry.load("churn@1")
    assert version == made
    assert loaded.arrays["weight"].tolist() == [1, 1, 1]
    with pytest.raises(FrozenInstanceError):
        made.number = 2


def test_what_is_registered_is_there_for_the_next_process_that_opens(registry, url, tmp_path):
    fill(registry, count=2)
    registry.promote("churn", 1)
    with Registry.open(url, tmp_path / "artefacts") as again:
        assert again.versions() == registry.versions()
        assert again.get("churn").aliases == ("champion",)


def test_numbers_count_from_one_for_each_model(registry):
    fill(registry, "churn", 3)
    fill(registry, "campaign", 2)
    assert registry.models() == ["campaign", "churn"]
    assert [v.reference for v in registry.versions()] == ["campaign@1", "campaign@2", "churn@1", "churn@2", "churn@3"]
    assert [v.number for v in registry.versions("churn")] == [1, 2, 3]


def test_an_empty_registry_lists_nothing(registry):
    assert registry.models() == []
    assert registry.versions() == []
    with pytest.raises(RegistryError, match=r"no model is registered yet, so there is no 'churn'; train one with: zoo train"):
        registry.get("churn")


def test_eight_threads_registering_at_once_leave_no_gap(registry, url, tmp_path):
    def work(thread: int) -> list[int]:
        with Registry.open(url, tmp_path / "artefacts") as own:
            shared_or_own = registry if thread % 2 else own
            return [shared_or_own.register("churn", artefact(thread), {"turn": turn}, {}).number for turn in range(10)]

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for numbers in pool.map(work, range(8)) for number in numbers]
    assert sorted(numbers) == list(range(1, 81))
    assert [version.number for version in registry.versions("churn")] == list(range(1, 81))


def test_writers_to_sqlite_queue_up_at_a_lock_beside_it(tmp_path):
    """SQLite's own waiting is a lottery, which some of 64 writers lost for 30 s (row P11)."""
    with Registry.open(tmp_path / "registry.db", tmp_path / "artefacts") as registry, ThreadPoolExecutor(1) as pool:
        with (tmp_path / ".registry.db.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = pool.submit(fill, registry)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            assert registry.versions() == [], "readers don't wait"
        waiting.result()
        assert registry.get("churn").number == 1


def test_threads_may_open_new_registries_of_their_own_at_once(tmp_path):
    def work(thread: int) -> list[str]:
        with Registry.open(tmp_path / f"{thread}.db", tmp_path / "artefacts") as own:
            fill(own, f"model-{thread}")
            return own.models()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [[f"model-{thread}"] for thread in range(8)]


# Forks processes that open one new registry at the same moment: when the last end of a pipe closes.
OPENED_AT_ONCE = """
import os, sys
import alembic.command, psycopg
from zoo.registry import Registry

wait, go = os.pipe()
children = []
for _ in range(8):
    children.append(os.fork())
    if not children[-1]:
        os.close(go)
        os.read(wait, 1)
        Registry.open(sys.argv[1], sys.argv[2]).close()
        os._exit(0)
os.close(go)
print([os.waitpid(child, 0)[1] for child in children])
"""


def test_processes_may_open_and_migrate_one_new_registry_at_once(url, tmp_path):
    arguments = [sys.executable, "-c", OPENED_AT_ONCE, url, tmp_path / "artefacts"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == f"{[0] * 8}\n", done.stderr


def test_a_bare_name_is_the_champion_else_the_newest_ready_version(registry):
    fill(registry, count=3)
    assert registry.get("churn").number == 3
    registry.retire("churn", 3)
    assert registry.get("churn").number == 2
    registry.promote("churn", 1)
    assert registry.get("churn").number == 1
    assert registry.get("churn@champion").number == 1
    assert registry.get("churn@3").status == "retired"


def test_promote_returns_the_version_that_it_replaces(registry):
    fill(registry, count=2)
    assert registry.promote("churn", 1) is None
    replaced = registry.promote("churn", 2)
    assert (replaced.number, replaced.aliases) == (1, ())
    assert registry.promote("churn", 1).number == 2
    assert registry.promote("churn", 1).number == 1
    assert registry.promote("churn", 2, alias="challenger") is None
    assert registry.promote("churn", 1, alias="best") is None
    assert [version.aliases for version in registry.versions("churn")] == [("best", "champion"), ("challenger",)]


def test_aliases_of_one_model_are_not_those_of_another(registry):
    fill(registry, "churn", 2)
    fill(registry, "campaign", 1)
    registry.promote("churn", 2)
    with pytest.raises(UnknownReferenceError, match="named by the NoneType None; expected a text such as 'churn@champion'"):
        registry.get(None)
    with pytest.raises(UnknownReferenceError, match=r"'campaign' has no alias 'champion'.*aliases: \(none\)"):
        registry.get("campaign@champion")


def test_a_missing_version_cannot_be_promoted(registry):
    fill(registry, count=2)
    with pytest.raises(UnknownReferenceError, match=r"'churn' has no version 3; it has versions 1 to 2; aliases: \(none\)"):
        registry.promote("churn", 3)
    fill(registry, "campaign", 1)
    with pytest.raises(UnknownReferenceError, match=r"^unknown model 'x'; choose one of: campaign, churn$"):
        registry.promote("x", 1)
    with pytest.raises(
        UnknownReferenceError, match=r"^unknown model 'chrun'; choose one of: campaign, churn; did you mean churn\?$"
    ):
        registry.promote("chrun", 1)
    assert registry.get("churn").aliases == ()


def test_the_database_itself_refuses_an_alias_of_no_version(registry):
    from sqlalchemy import insert

    from zoo.registry.models import AliasRow

    fill(registry, "churn", 1)
    fill(registry, "campaign", 2)
    with pytest.raises(RegistryError, match=r"(?i)foreign key"), registry._database.transaction(write=True) as session:
        session.execute(insert(AliasRow).values(model="churn", name="champion", number=2))
    assert registry.get("churn").aliases == ()


def test_a_version_without_its_whole_artefact_cannot_be_promoted_or_loaded(registry, tmp_path):
    fill(registry, count=2)
    path = tmp_path / "artefacts" / registry.get("churn@1").digest / "texts" / "params.json"
    path.write_text("[]")
    shutil.rmtree(tmp_path / "artefacts" / registry.get("churn@2").digest)
    for number, found in ((1, r"params\.json"), (2, "no artefact")):
        with pytest.raises(ArtefactError, match=f"churn@{number} cannot be promoted: .*{found}"):
            registry.promote("churn", number)
        with pytest.raises(ArtefactError, match=f"churn@{number} cannot be loaded: .*{found}"):
            registry.load(f"churn@{number}")
    assert [version.aliases for version in registry.versions()] == [(), ()]


def test_retired_versions_are_not_promoted_and_aliased_ones_not_retired(registry):
    fill(registry, count=2)
    registry.promote("churn", 1)
    with pytest.raises(RegistryError, match="churn@1 is champion; promote another"):
        registry.retire("churn", 1)
    registry.retire("churn", 2)
    with pytest.raises(RegistryError, match="churn@2 is retired"):
        registry.promote("churn", 2)
    with pytest.raises(RegistryError, match="no version 3"):
        registry.retire("churn", 3)
    registry.promote("churn", 1, alias="kept")
    assert registry.get("churn").number == 1
    with pytest.raises(RegistryError, match=r"is champion, kept; take .* first: zoo demote churn@kept, and promote another"):
        registry.retire("churn", 1)


def test_no_rollback_goes_to_a_retired_version(registry):
    fill(registry, count=3)
    for alias in ("champion", "canary"):
        registry.promote("churn", 1, alias)
        registry.promote("churn", 2, alias)
    assert registry.formers("churn") == {1: ["canary", "champion"]}
    registry.retire("churn", 1)
    for alias, said in (("champion", "NUMBER$"), ("canary", "NUMBER --alias canary$")):
        with pytest.raises(
            RegistryError, match=f"churn@{alias} was churn@1 before churn@2, and that is retired.*zoo promote churn@{said}"
        ):
            registry.rollback("churn", alias)
    assert registry.get("churn").number == 2


def test_a_rollback_does_not_undo_what_somebody_else_promotes_meanwhile(registry, monkeypatch):
    fill(registry, count=3)
    registry.promote("churn", 1)
    registry.promote("churn", 2)
    verify = registry.artefacts.verify

    def meanwhile(digest):
        monkeypatch.setattr(registry.artefacts, "verify", verify)
        registry.promote("churn", 3)
        return verify(digest)

    monkeypatch.setattr(registry.artefacts, "verify", meanwhile)
    with pytest.raises(RegistryError, match="churn@champion was churn@2 a moment ago and names churn@3 now; look who moved it"):
        registry.rollback("churn")
    assert registry.get("churn@champion").number == 3
    assert [each.number for each in registry.rollback("churn")] == [2, 3]


def test_tags_change_later_and_others_stay(registry):
    registry.register("churn", artefact(), {}, {}, tags={"note": "a", "owner": "anna"})
    changed = registry.tag("churn", 1, {"note": None, "gone": None, "reviewed": True})
    assert changed.tags == {"owner": "anna", "reviewed": True}
    assert registry.get("churn@1") == changed
    for model, number, tags, said in (
        ("churn", 2, {}, "no version 2"), ("chrun", 1, {}, "unknown model"), ("churn", 1, {"a": {1}}, r"tags\['a'\] is set"),
        ("churn", 1, {"a": [{"b": "\ud800"}]}, r"tags\['a'\]\[0\]\['b'\] is '\\ud800', which is no valid Unicode"),
        ("churn", 1, {"\ud800": 1}, r"a key of tags is '\\ud800', which"),
    ):  # fmt: skip
        with pytest.raises(RegistryError, match=said):
            registry.tag(model, number, tags)


def test_versions_are_found_by_every_word_in_any_case(registry):
    registry.register("churn", artefact(1), {}, {"members": {"gru": {}}}, tags={"owner": "Änne", "n": 7})
    registry.register("churn", artefact(2), {}, {"members": {"gbdt": {}}, "commit": "abc123"}, tags={"owner": "bob"})
    registry.register("campaign", artefact(3), {}, {"members": {"gbdt": {}}})
    registry.promote("churn", 2)
    for words, expected in {
        "": ["campaign@1", "churn@1", "churn@2"], "GBDT": ["campaign@1", "churn@2"], "gbdt churn": ["churn@2"], "abc": ["churn@2"],
        "champion": ["churn@2"], "churn@champion": ["churn@2"], "owner=änne": ["churn@1"], "owner=": ["churn@1", "churn@2"],
        "n=7": ["churn@1"], "n=": ["churn@1"], "owner=anne": [], "nothing": [], "ready churn@1": ["churn@1"],
    }.items():  # fmt: skip
        assert [version.reference for version in registry.search(words)] == expected, words
    assert [version.reference for version in registry.search("gbdt", "churn")] == ["churn@2"]


def test_old_versions_go_but_not_what_an_alias_names_or_would_go_back_to(registry, tmp_path):
    fill(registry, count=6)
    fill(registry, "campaign", 3)  # the same artefacts as churn's first three
    registry.promote("churn", 1)
    registry.promote("churn", 2)
    registry.promote("churn", 3, "shadow")
    registry.retire("churn", 5)
    gone = registry.keep("churn", 1)
    assert [version.reference for version in gone] == ["churn@4", "churn@5"]
    assert [version.status for version in registry.versions("churn")] == ["ready"] * 3 + ["retired", "retired", "ready"]
    assert [path.name for path in sorted((tmp_path / "artefacts").glob("[0-9a-f]*"))] == sorted(
        {version.digest for version in registry.versions()} - {version.digest for version in gone}
    )
    for reference in ("churn@1", "churn@2", "churn@3", "churn@6", "campaign@1", "campaign@3"):
        registry.load(reference)
    with pytest.raises(ArtefactError, match="churn@4 cannot be loaded: no artefact"):
        registry.load("churn@4")
    assert registry.keep("churn", 1) == []
    assert registry.rollback("churn")[0].number == 1
    assert registry.register("churn", artefact(4), {}, {}).number == 7  # the like of one that went
    registry.load("churn@7")


def test_an_artefact_that_another_version_shares_stays(registry):
    for _ in range(3):
        registry.register("churn", artefact(), {}, {})
    registry.register("other", artefact(1), {}, {})
    registry.register("churn", artefact(1), {}, {})
    registry.register("churn", artefact(2), {}, {})
    assert [version.number for version in registry.keep("churn", 1)] == [1, 2, 3]
    registry.load("other@1")
    for count in (0, -1):
        with pytest.raises(UsageError, match="Expected at least 1"):
            registry.keep("churn", count)
    with pytest.raises(UnknownReferenceError, match="unknown model"):
        registry.keep("chrun", 1)


def test_scores_of_test_rows_go_with_the_last_version_that_names_them(registry):
    shared, own = (registry.artefacts.write(artefact(number)) for number in (8, 9))
    for number, scores in enumerate((shared, own, shared), 1):
        registry.register("churn", artefact(number), {"scores": scores}, {})
    assert [version.number for version in registry.keep("churn", 1)] == [1, 2]
    assert (registry.artefacts.exists(shared), registry.artefacts.exists(own)) == (True, False)
    registry.register("churn", artefact(4), {"scores": "no digest"}, {})
    assert [version.number for version in registry.keep("churn", 1)] == [3]
    assert not registry.artefacts.exists(shared)
    registry.register("churn", artefact(5), {}, {})
    assert [version.number for version in registry.keep("churn", 1)] == [4]


def test_all_retired_is_said(registry):
    fill(registry)
    registry.retire("churn", 1)
    with pytest.raises(RegistryError, match="every version of 'churn' is retired"):
        registry.get("churn")


def test_unknown_references_list_what_exists(registry):
    fill(registry, count=2)
    registry.promote("churn", 2)
    for reference in ("churn@9", "churn@challenger"):
        with pytest.raises(RegistryError, match=r"versions 1 to 2; aliases: champion \(2\)"):
            registry.get(reference)
    for ask in (registry.get, registry.versions, registry.load):
        with pytest.raises(RegistryError, match="unknown model 'nosuch'; choose one of: churn"):
            ask("nosuch")


def test_bad_names_and_values_are_refused_before_anything_is_written(registry, tmp_path):
    for name in ("", "3", "a b", "churn@2", "../up", "é", "x" * 101, "a\n"):
        with pytest.raises(RegistryError, match="cannot be the name of a model"):
            registry.register(name, artefact(), {}, {})
    with pytest.raises(RegistryError, match=r"lineage\['log'\]\[1\] is object"):
        registry.register("churn", artefact(), {}, {"log": [1, object()]})
    with pytest.raises(RegistryError, match=r"metrics has the key 3"):
        registry.register("churn", artefact(), {3: 1}, {})
    assert registry.models() == []
    assert not (tmp_path / "artefacts").exists()
    fill(registry)
    with pytest.raises(RegistryError, match="cannot be the name of an alias"):
        registry.promote("churn", 1, alias="7")


def test_numpy_numbers_become_numbers_and_what_is_not_finite_none(registry):
    metrics = {
        "auc": np.float32(0.5),
        "rows": np.int64(3),
        "interval": np.array([0.25, np.nan]),
        "loss": float("inf"),
        "ok": True,
    }
    made = registry.register("churn", artefact(), metrics, {"cuts": (1, 2)})
    assert registry.get("churn") == made
    assert made.metrics == {"auc": 0.5, "rows": 3, "interval": [0.25, None], "loss": None, "ok": True}
    assert made.lineage == {"cuts": [1, 2]}


def test_an_artefact_that_cannot_be_stored_adds_no_version(registry):
    with pytest.raises(ArtefactError, match="odd"):
        registry.register("churn", Artefact({"odd": np.array(["text"])}), {}, {})
    assert registry.models() == []


def test_migrations_make_exactly_the_tables_that_the_models_describe(registry):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from zoo.registry.models import Base

    with registry._database._engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_the_newest_migration_is_the_one_that_the_models_name():
    from alembic.script import ScriptDirectory

    import zoo.registry
    from zoo.registry.models import REVISION

    assert ScriptDirectory(str(Path(zoo.registry.__file__).parent / "migrations")).get_heads() == [REVISION]


def test_a_registry_of_a_newer_zoo_is_refused_and_left_alone(registry, url, tmp_path):
    from sqlalchemy import text

    fill(registry)
    with registry._database.transaction(write=True) as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(RegistryError, match=r"revision '9999'.*upgrade feature-zoo"):
        Registry.open(url, tmp_path / "artefacts")
    gc.collect()  # a connection that was left open warns here, and warnings are errors
    assert registry.get("churn@1").number == 1


def test_a_process_killed_while_it_writes_leaves_whole_versions_and_aliases(url, tmp_path):
    """Row P10 at every line; here at each three-hundredth."""
    found = killed(url, tmp_path / "artefacts", 5, 300)
    assert {key: found[key] for key in ("torn", "dangling", "gaps", "stuck", "first")} == {
        "torn": 0, "dangling": 0, "gaps": 0, "stuck": 0, "first": [],
    }  # fmt: skip
    assert all(found["by"][operation] for operation in ("register", "promote", "rollback", "retire", "tag", "keep")), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("churn", Reference("churn")),
        ("churn@3", Reference("churn", number=3)),
        ("churn@champion", Reference("churn", alias="champion")),
        ("my.model-2_b@v1", Reference("my.model-2_b", alias="v1")),
    ],
)
def test_references_are_read(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "@", "@3", "churn@", "churn@@3", "churn@0", "churn@03", "churn@-1", "churn@1.5", "3", "a b", "churn@3 ", "churn\n"],
)
def test_what_is_no_reference_is_refused_with_the_forms(text):
    with pytest.raises(UnknownReferenceError, match=r"expected NAME, NAME@NUMBER or NAME@ALIAS"):
        parse(text)


def test_sqlite_is_opened_so_that_a_commit_survives_a_power_cut(tmp_path):
    with Registry.open(tmp_path / "registry.db", tmp_path / "artefacts") as registry:
        with registry._database.transaction() as session:
            found = {
                name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            }
        assert found == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000, "foreign_keys": 1}


def test_a_path_and_a_url_name_the_same_sqlite_registry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Registry.open(tmp_path / "deep" / "registry.db", "artefacts") as registry:
        fill(registry)
    for same in ("deep/registry.db", "sqlite:///deep/registry.db"):
        with Registry.open(same, "artefacts") as registry:
            assert registry.models() == ["churn"]


def test_a_reader_does_not_wait_for_a_writer(tmp_path):
    with Registry.open(tmp_path / "registry.db", tmp_path / "artefacts") as registry:
        fill(registry)
        with registry._database.transaction(write=True):
            assert registry.get("churn").number == 1


def damaged(tmp_path: Path) -> tuple[Path, bytes]:
    """A SQLite registry of several pages with everything in its main file."""
    path = tmp_path / "registry.db"
    with Registry.open(path, tmp_path / "artefacts") as registry:
        for _ in range(12):
            registry.register("churn", artefact(), {"note": "x" * 500}, LINEAGE)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    return path, path.read_bytes()


def test_a_truncated_sqlite_registry_is_said_wherever_it_was_cut(tmp_path):
    path, content = damaged(tmp_path)
    assert len(content) >= 5 * 4096
    for length in [0, 1, 50, 100, 4095, *range(4096, len(content), 4096), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(RegistryError, match=r"registry\.db is damaged.*restore it from a backup"):
            Registry.open(path, tmp_path / "artefacts")
        for companion in ("-wal", "-shm"):
            Path(f"{path}{companion}").unlink(missing_ok=True)
    path.write_bytes(content)
    with Registry.open(path, tmp_path / "artefacts") as registry:
        assert len(registry.versions("churn")) == 12


def test_a_file_that_is_no_registry_is_said_and_left_alone(tmp_path):
    path = tmp_path / "registry.db"
    path.write_text("user_id,item_id\n" * 100)
    with pytest.raises(RegistryError, match="not a database"):
        Registry.open(path, tmp_path / "artefacts")
    assert path.read_text() == "user_id,item_id\n" * 100


def test_a_directory_in_the_way_is_said(tmp_path):
    (tmp_path / "registry.db").mkdir()
    with pytest.raises(RegistryError, match="cannot be opened"):
        Registry.open(tmp_path / "registry.db", tmp_path / "artefacts")
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="cannot create"):
        Registry.open(tmp_path / "file" / "registry.db", tmp_path / "artefacts")


def test_a_full_disk_is_said_and_the_next_registration_works(tmp_path):
    with Registry.open(tmp_path / "registry.db", tmp_path / "artefacts") as registry:
        fill(registry)

        def register_more_than_fits() -> None:
            with registry._database.transaction(write=True) as session:
                # SQLite's own quota on pages gives the refusal of a disk without room.
                session.connection().exec_driver_sql("PRAGMA max_page_count=1")
                session.connection().exec_driver_sql("CREATE TABLE more AS SELECT zeroblob(100000)")

        with pytest.raises(RegistryError, match="no room left"):
            register_more_than_fits()
        fill(registry)
        assert [version.number for version in registry.versions()] == [1, 2]


def test_an_unreachable_postgresql_is_said_without_the_password(tmp_path):
    with pytest.raises(RegistryError) as caught:
        Registry.open("postgresql://zoo:s3cret-word@127.0.0.1:1/zoo?application_name=s3cret-word", tmp_path)
    assert "127.0.0.1:1/zoo did not answer" in str(caught.value)
    assert "check that the server runs" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_what_a_driver_says_is_shown_without_the_password():
    address = make_url("postgresql+psycopg://zoo:s3cret@host/zoo?sslpassword=s3cret-too")
    said = _words(address, OSError("no route to zoo:s3cret@host with s3cret-too\nmore"))
    assert "did not answer: no route to zoo:***@host with ***;" in said
    assert "s3cret" not in said


def test_a_wrong_password_is_said_without_it(tmp_path, postgres_url):
    scheme, _, rest = postgres_url.partition("://")
    user, _, host = rest.partition(":")
    for refused in (
        f"{scheme}://{user}:s3cret-word@{host.partition('@')[2]}",
        f"{scheme}://{host.partition('@')[2]}?user={user}&password=s3cret-word",
    ):
        with pytest.raises(RegistryError, match="password authentication failed") as caught:
            Registry.open(refused, tmp_path)
        assert "s3cret" not in str(caught.value)


def test_every_spelling_of_postgresql_opens_the_same_registry(tmp_path, postgres_url):
    with Registry.open(postgres_url, tmp_path / "artefacts") as registry:
        fill(registry)
    for scheme in ("postgresql+psycopg", "postgres"):
        with Registry.open(postgres_url.replace("postgresql", scheme, 1), tmp_path / "artefacts") as registry:
            assert registry.models() == ["churn"]


def test_tables_of_another_program_in_the_same_database_are_left_alone(tmp_path, postgres_url):
    import psycopg

    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE alembic_version AS SELECT 'theirs' AS version_num")
    with Registry.open(postgres_url, tmp_path / "artefacts") as registry:
        fill(registry)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("theirs",)


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql//u:s3cret@h/db",
        "postgresql:/u:s3cret@h/db",
        "postgresql://u:s3cret@h:port/db",
        "postgresql://u:one@s3cret@h/db",
        "postgresql://u:one@s3/cret@h/db",
        "postgresql://u:one@s3?cret@h/db",
        "mysql://u:s3cret@h/db",
        "postgresql+psycopg2://u:s3cret@h/db",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_urls_that_cannot_be_meant_are_refused_without_repeating_them(tmp_path, wrong):
    with pytest.raises(RegistryError, match=r"postgresql://USER:PASSWORD@HOST") as caught:
        Registry.open(wrong, tmp_path)
    assert "s3" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_opening_again_after_the_database_went_away_works(tmp_path, postgres_url):
    import psycopg

    with Registry.open(postgres_url, tmp_path / "artefacts") as registry:
        fill(registry)
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert registry.get("churn").number == 1


def test_importing_the_room_imports_no_sqlalchemy_and_no_numpy():
    code = "import sys, zoo.registry; print(sorted({'sqlalchemy', 'alembic', 'numpy', 'psycopg'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_opening_a_current_registry_imports_no_alembic(tmp_path):
    Registry.open(tmp_path / "registry.db", tmp_path).close()
    code = "import sys; from zoo.registry import Registry; Registry.open(sys.argv[1], sys.argv[2]).close(); print('alembic' in sys.modules)"
    arguments = [sys.executable, "-c", code, tmp_path / "registry.db", tmp_path]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "False\n"


def test_who_only_reads_makes_no_registry(tmp_path):
    with pytest.raises(RegistryError, match=r"no model is registered yet \(there is no .*; train one with: zoo train TASK"):
        Registry.open(f"sqlite:///{tmp_path}/data/registry.db", tmp_path / "data/artefacts", create=False)
    assert list(tmp_path.iterdir()) == []
