"""A model means the same by identifier in a log that gave out other codes, and is refused where it would not."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import shop
from test_archive import pair
from test_recommend import HISTORY
from typer.testing import CliRunner

from zoo.cli.app import app
from zoo.contract import Artefact
from zoo.errors import ArtefactError, FeatureError
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema
from zoo.features import Features, apply
from zoo.identifiers import Identifiers
from zoo.manager import plugins
from zoo.plugin import Column, FeatureBatch
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.recommender import Recommender
from zoo.registry import Registry
from zoo.training import train
from zoo.vocabulary import Vocabulary

SETTINGS = """
[zoo]
timezone = "UTC"

[tasks.churn]
members = ["gbdt", "gru"]
final = "mean"
folds = 2
event_type = "purchase"
active = "28d"
horizon = "14d"
every = "14d"

[tasks.churn.params.gbdt]
num_trees = 20
num_leaves = 4
num_threads = 1

[tasks.churn.params.gru]
hidden = 8
epochs = 2
max_length = 20

[tasks.recommendation]
members = ["covisit", "popularity"]
final = "blend"
event_type = "purchase"
candidates = 10
"""
TEXT = {
    'name="user", join_keys=["user_id"], value_type=ValueType.INT64': 'name="user", join_keys=["user_id"], value_type=ValueType.STRING',
    'Field(name="item_id", dtype=Int64)': 'Field(name="item_id", dtype=String)',
    "schema_of(lines,": "schema_of(lines, item_id=String,",
    "schema_of(whole)": "schema_of(whole, item_id=String)",
}


def copied(project: Path, folder: Path) -> None:
    """A project without its online store, which fills itself; a predictor that is still open may close SQLite's files meanwhile."""
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("online.db*"))


@dataclass(frozen=True)
class Trained:
    """A project whose log has identifiers of one kind, with churn@1 and recommendation@1."""

    root: Path
    kind: str

    @property
    def users(self) -> list[Any]:
        return [self.id(user) for user in range(1, 60)]

    def id(self, number: int) -> Any:
        return number if self.kind == "int" else f"Zoë {number}"

    def events(self) -> pa.Table:
        table = shop.table_of(shop.events(users=120, days=100))
        if self.kind == "int":
            return table
        for name in ("user_id", "item_id"):
            texts = pa.array([None if each is None else self.id(each) for each in table[name].to_pylist()], pa.string())
            table = table.set_column(table.column_names.index(name), name, texts)
        return table

    def log(self, folder: Path, events: pa.Table, items: int = shop.ITEMS, last_first: bool = False) -> EventLog:
        kinds: dict[str, Any] = {"user_id": self.kind, "item_id": self.kind}
        log = EventLog.create(folder, LogSchema(extra={"campaign_id": "int64"}, **kinds))
        log.append(events, idempotency_key="events")
        codes = list(range(1, items + 1))[:: -1 if last_first else 1]
        table = {"item_id": [self.id(i) for i in codes], "category": [shop.CATEGORIES[i % 4] for i in codes]}
        log.put_table("items", pl.DataFrame(table), "item_id")
        log.put_table("users", pl.DataFrame({"user_id": self.users, "region": ["north"] * len(self.users)}), "user_id")
        log.put_table("campaigns", pl.DataFrame({"campaign_id": np.arange(1, shop.CAMPAIGNS + 1)}), "campaign_id")
        pairs = {"campaign_id": codes[:5], "item_id": [self.id(i) for i in codes[:5]]}
        log.put_set("campaign_items", pl.DataFrame(pairs), ("campaign_id", "item_id"))
        return log

    def elsewhere(self, folder: Path, change: Callable[[pa.Table], pa.Table], **how: Any) -> Path:
        """The project in another folder, its log ingested anew from the events as they are after a change."""
        copied(self.root, folder)
        self.anew(folder, change, **how)
        return folder

    def anew(self, root: Path, change: Callable[[pa.Table], pa.Table], **how: Any) -> None:
        shutil.rmtree(root / "data" / "log")
        for path in (root / "data").glob("online.db*"):
            path.unlink()
        self.log(root / "data" / "log", change(self.events()), **how)


@pytest.fixture(scope="module", params=["int", "string"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    definitions = shop.DEFINITIONS + HISTORY
    if request.param == "string":
        for old, new in TEXT.items():
            assert old in definitions
            definitions = definitions.replace(old, new)
    root = shop.make_project(tmp_path_factory.mktemp("identifiers") / "shop", SETTINGS, definitions)
    done = Trained(root, request.param)
    done.log(root / "data" / "log", done.events())
    apply(root)
    for task in ("churn", "recommendation"):
        version = train(Project.open(root), task, plugins=plugins(), features=Features.open(root)).version
        assert version is not None
        with Registry.of(Project.open(root)) as registry:
            registry.promote(version.model, version.number)
    return done


def backwards(table: pa.Table) -> pa.Table:
    return table.take(pa.array(np.arange(len(table))[::-1]))


def without_an_item(table: pa.Table) -> pa.Table:
    item = pc.min(table["item_id"]).as_py()
    return table.filter(pc.fill_null(pc.not_equal(table["item_id"], item), True))


def answers(root: Path, users: list[Any]) -> tuple[list[float], list[tuple[Any, ...]]]:
    churn, lists = Predictor.load("churn", root), Predictor.load("recommendation", root)
    found = lists.recommend(users, 5).select(["user_id", "item_id", "score", "rank:popularity", "rank:covisit"])
    return churn.predict(users=users)["score"].to_pylist(), [tuple(row.values()) for row in found.to_pylist()]


def test_rows_in_another_order_have_the_same_answers(trained: Trained, tmp_path: Path) -> None:
    there = trained.elsewhere(tmp_path / "there", backwards, last_first=True)
    here, other = (Predictor.load("recommendation", root) for root in (trained.root, there))
    ids = here.features.reader.log.dictionary("item_id").ids
    assert sorted(ids) == sorted(other.features.reader.log.dictionary("item_id").ids)
    assert ids != other.features.reader.log.dictionary("item_id").ids  # else this test shows nothing
    scores, lists = answers(trained.root, trained.users)
    again, listed = answers(there, trained.users)
    np.testing.assert_array_equal(again, scores)
    assert listed == lists
    assert len({tuple(row[1] for row in lists[at : at + 5]) for at in range(0, len(lists), 5)}) > 5


def test_a_log_with_the_same_codes_keeps_the_very_vocabulary(trained: Trained) -> None:
    log = EventLog.open(trained.root / "data" / "log")
    for reference in ("churn@1", "recommendation@1"):
        with Registry.of(Project.open(trained.root)) as registry:
            _, artefact = registry.load(reference)
        vocabulary = Vocabulary.load(artefact.part("vocabulary"))
        identifiers = Identifiers.load(artefact.part("vocabulary"), vocabulary)
        assert identifiers is not None
        assert vocabulary.kept
        assert identifiers.translated(vocabulary, log, reference) is vocabulary
        assert identifiers.save().arrays.keys() <= artefact.part("vocabulary").arrays.keys()


def test_identifiers_that_the_log_lacks_are_named_and_refused(trained: Trained, tmp_path: Path) -> None:
    root = trained.elsewhere(tmp_path / "there", lambda table: without_an_item(backwards(table)), items=0)
    item = pc.min(trained.events()["item_id"]).as_py()
    with pytest.raises(FeatureError) as caught:
        Predictor.load("recommendation", root)
    assert str(caught.value) == (
        f"1 of 40 identifiers of item_id that recommendation@1 was trained on are not in this log, for instance {item!r}: it is another "
        "log. Ingest the files that it was trained on, or train here: zoo train recommendation"
    )


def test_identifiers_of_another_type_are_refused(trained: Trained, tmp_path: Path) -> None:
    vocabulary = Vocabulary({"item_id": np.array([2, 3], np.int32)})
    ids = Identifiers.behind(vocabulary, EventLog.open(trained.root / "data" / "log"))
    other: Any = "string" if trained.kind == "int" else "int"
    log = EventLog.create(tmp_path / "log", LogSchema(item_id=other))
    with pytest.raises(FeatureError, match=f"item_id are {other} in this log, and churn@1 was trained on {trained.kind}"):
        ids.translated(vocabulary, log, "churn@1")


def test_a_version_without_identifiers_is_used_as_it_is(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "old"
    copied(trained.root, root)
    with Registry.of(Project.open(root)) as registry:
        version, artefact = registry.load("churn@1")
        own = {"arrays": dict(artefact.arrays), "texts": dict(artefact.texts)}
        for part in own.values():
            for name in [n for n in part if n.split("/")[1:2] in (["numbers"], ["texts"], ["offsets"], ["identifiers.json"])]:
                del part[name]
        registry.register("churn", Artefact(**own), version.metrics, version.lineage)
        assert len(own["texts"]) == len(artefact.texts) - 1
    users = trained.users
    expected = Predictor.load("churn@1", root).predict(users=users)["score"]
    assert Predictor.load("churn@2", root).predict(users=users)["score"] == expected


def test_a_log_replaced_under_a_predictor_is_refused_until_it_is_loaded_again(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "live"
    copied(trained.root, root)
    features = Features.open(root)
    churn, lists = (Predictor.load(name, root, features=features) for name in ("churn", "recommendation"))
    scores, listed = churn.predict(users=trained.users)["score"], lists.recommend(trained.users, 5)["item_id"]
    trained.anew(root, backwards, last_first=True)
    asked: list[Callable[[], Any]] = [
        lambda: churn.predict(users=trained.users),
        lambda: churn.explain(users=trained.users[:1]),
        lambda: list(churn.predict_batches()),
        lambda: lists.recommend(trained.users, 5),
    ]
    for ask in asked:
        with pytest.raises(FeatureError, match=r"the log was replaced since .*@1 was loaded"):
            ask()
    churn, lists = (Predictor.load(name, root, features=features) for name in ("churn", "recommendation"))
    assert churn.predict(users=trained.users)["score"] == scores
    assert lists.recommend(trained.users, 5)["item_id"] == listed


def test_an_import_means_the_same_and_says_what_is_missing(trained: Trained, tmp_path: Path) -> None:
    private, public = pair(tmp_path, "key")
    there = trained.elsewhere(tmp_path / "there", backwards, last_first=True)
    poor = trained.elsewhere(tmp_path / "poor", lambda table: without_an_item(backwards(table)), items=0)
    definitions = (poor / "definitions.py").read_text()
    (poor / "definitions.py").write_text(
        definitions.replace('count("user_views_14d"', 'count("user_views"').split("user_history =")[0]
    )
    file = tmp_path / "recommendation.zoo"

    def run(root: Path, *words: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["--repo", str(root), *words, "--json"])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    run(trained.root, "export", "recommendation", str(file), "--key", str(private))
    warned = run(there, "import", str(file), "--key", str(public))["warnings"]
    assert warned == ["the same artefact is registered already, as recommendation@1"]
    expected = answers(trained.root, trained.users)
    run(there, "promote", "recommendation@2")
    assert answers(there, trained.users) == expected
    assert Predictor.load("recommendation", there).version.number == 2
    apply(poor)
    words = ["--without", "neighbours", "import", str(file), "--key", str(public), "--json"]
    result = CliRunner().invoke(app, ["--repo", str(poor), *words])
    assert result.exit_code == 0, result.output
    again, plugin, service, missing = json.loads(result.stdout)["warnings"]
    assert again == "the same artefact is registered already, as recommendation@1"
    assert "no plugin loaded offers one" in plugin
    assert "'recommendation', which recommendation@2 was trained on, is not in the repository" in service
    assert missing.startswith("1 of 40 identifiers of item_id that recommendation@2 was trained on are not in this log")
    human = CliRunner().invoke(app, ["--repo", str(poor), "import", str(file), "--key", str(public)])
    assert "WARNING: 1 of 40 identifiers" in human.output.replace("\n", " ")
    assert "Once that is settled, make it the one that answers: zoo --repo" in human.output.replace("\n", " ")


# Identifiers alone


EVENTS = {
    "user_id": ["ann", "bob", "cyd", "ann"],
    "item_id": [30, 10, 20, 10],
    "event_type": ["view", "view", "buy", "buy"],
    "colour": ["", "red", "grün", "red"],
    "timestamp": pa.array([10, 20, 30, 40], pa.timestamp("s", "UTC")),
}


def small(folder: Path, rows: list[int], categories: tuple[str, ...] = ("tea", "milk", "bread")) -> EventLog:
    log = EventLog.create(folder, LogSchema(user_id="string", extra={"colour": "string"}))
    log.append(pa.table(EVENTS).take(rows), idempotency_key="events")
    log.put_table("items", pa.table({"item_id": [10, 20, 30], "category": list(categories)}), "item_id")
    return log


def everything(log: EventLog) -> Vocabulary:
    names = ("user_id", "item_id", "event_type", "events.colour", "items.category")
    return Vocabulary({name: np.arange(2, log.dictionary(name).size, dtype=np.int32) for name in names})


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return small(tmp_path / "log", [0, 1, 2, 3])


def stored(identifiers: Identifiers, vocabulary: Vocabulary) -> Identifiers:
    found = Identifiers.load(identifiers.save(), vocabulary)
    assert found is not None
    return found


def test_identifiers_are_kept_as_they_are(log: EventLog) -> None:
    vocabulary = everything(log)
    found = stored(Identifiers.behind(vocabulary, log), vocabulary)
    said = {name: ids.to_pylist() for name, ids in found.of.items()}
    assert said == {name: log.dictionary(name).ids for name in vocabulary.kept}
    assert said["events.colour"] == ["", "red", "grün"]
    assert found.translated(vocabulary, log, "churn@1") is vocabulary


def test_a_part_of_the_codes_in_any_order_is_kept(log: EventLog, tmp_path: Path) -> None:
    codes = {"item_id": [4, 2], "events.colour": [4], "user_id": []}
    vocabulary = Vocabulary({name: np.array(each, np.int32) for name, each in codes.items()})
    found = stored(Identifiers.behind(vocabulary, log), vocabulary)
    said = {name: ids.to_pylist() for name, ids in found.of.items()}
    assert said == {"item_id": [20, 30], "events.colour": ["grün"], "user_id": []}
    assert found.translated(vocabulary, log, "churn@1") is vocabulary
    other = small(tmp_path / "other", [3, 2, 1, 0])
    moved = found.translated(vocabulary, other, "churn@1")
    assert {name: other.dictionary(name).decode(codes).to_pylist() for name, codes in moved.kept.items()} == {
        name: ids.to_pylist() for name, ids in found.of.items()
    }


def test_who_was_forgotten_leaves_the_model_usable(log: EventLog, tmp_path: Path) -> None:
    vocabulary = everything(log)
    found = Identifiers.behind(vocabulary, log)
    log.forget(["cyd"])
    assert log.dictionary("events.colour").values.null_count == 1
    assert found.translated(vocabulary, log, "churn@1") is vocabulary
    with pytest.raises(FeatureError, match=r"1 identifiers of .* were forgotten while"):
        Identifiers.behind(vocabulary, log)
    # and in a log that gave out other codes, and forgot the same person
    other = small(tmp_path / "other", [3, 2, 1, 0])
    other.forget(["cyd"])
    moved = found.translated(vocabulary, other, "churn@1")
    assert [moved.kept["user_id"][at] for at in (0, 1, 2)] == [
        other.dictionary("user_id").encode([n])[0] for n in ("ann", "bob")
    ] + [0]
    assert moved.kept["events.colour"][2] == 0


def test_a_log_that_never_held_a_user_gives_the_user_no_code(log: EventLog, tmp_path: Path) -> None:
    vocabulary = Vocabulary({"user_id": everything(log).kept["user_id"], "item_id": np.array([2, 3], np.int32)})
    other = small(tmp_path / "other", [3, 0, 2])  # without bob
    moved = Identifiers.behind(vocabulary, log).translated(vocabulary, other, "churn@1")
    assert moved.kept["user_id"].tolist() == [2, 0, 3]
    zeros = np.zeros(1, np.int64)
    column = Column(np.array([0, 1, 2, 3], np.int32), np.array([0, 4]), "user_id")
    batch = FeatureBatch({"user": {"users": column}}, {"user": np.zeros(1, np.int32)}, zeros, zeros)
    assert moved.apply(batch).column("users").values.tolist() == [0, 1, 2, 4]
    assert moved.log_codes("user_id", np.array([2, 3, 4])).tolist() == [2, 0, 3]


def test_texts_of_tables_may_be_others_and_texts_of_events_may_not(
    log: EventLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = everything(log)
    found = Identifiers.behind(vocabulary, log)
    other = small(tmp_path / "other", [3, 2, 1, 0], ("Tee", "milk", "bread"))
    with caplog.at_level(logging.WARNING):
        moved = found.translated(vocabulary, other, "churn@1")
    assert moved.kept["items.category"].tolist().count(0) == 1
    assert (
        "1 of 3 identifiers of items.category that churn@1 was trained on are not in this log, for instance 'tea'" in caplog.text
    )
    with pytest.raises(FeatureError, match=r"1 of 3 identifiers of events\.colour .* for instance 'grün': it is another log"):
        found.translated(replace(vocabulary), small(tmp_path / "less", [3, 1, 0]), "churn@1")


def numbers(at: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda arrays, texts: arrays.update({f"numbers/{at}": change(arrays[f"numbers/{at}"])})


def offsets(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda arrays, texts: arrays.update({"offsets/1": change(arrays["offsets/1"])})


def bytes_of(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda arrays, texts: arrays.update({"texts/1": change(arrays["texts/1"])})


BROKEN: dict[str, Callable[[dict[str, Any], dict[str, str]], Any]] = {
    "too few numbers": numbers(2, lambda a: a[:-1]),
    "numbers of 32 bits": numbers(2, lambda a: a.astype(np.int32)),
    "numbers in rows": numbers(2, lambda a: a[:, None]),
    "no numbers": lambda arrays, texts: arrays.pop("numbers/2"),
    "no texts": lambda arrays, texts: arrays.pop("texts/1"),
    "no offsets": lambda arrays, texts: arrays.pop("offsets/1"),
    "too few offsets": offsets(lambda a: a[:-1]),
    "offsets of 32 bits": offsets(lambda a: a.astype(np.int32)),
    "offsets that fall": offsets(lambda a: np.array([0, 5, 3, a[-1]])),
    "negative offsets": offsets(lambda a: a - 1),
    "offsets beyond the texts": offsets(lambda a: a + np.array([0, 0, 0, 1 << 40])),
    "texts of another type": bytes_of(lambda a: a.astype(np.int8)),
    "texts that are no UTF-8": bytes_of(lambda a: a | 128),
    "texts cut within a letter": offsets(lambda a: a + np.array([0, 0, 3, 0])),
    "more texts": bytes_of(lambda a: np.append(a, a)),
    "another dictionary": lambda arrays, texts: texts.update({"identifiers.json": json.dumps(["x"])}),
    "a number of dictionaries": lambda arrays, texts: texts.update({"identifiers.json": "5"}),
    "no JSON": lambda arrays, texts: texts.update({"identifiers.json": "["}),
    "deep JSON": lambda arrays, texts: texts.update({"identifiers.json": "[" * 100_000}),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_malformed_identifiers_are_refused(log: EventLog, change: Callable[[dict[str, Any], dict[str, str]], Any]) -> None:
    vocabulary = everything(log)
    saved = Identifiers.behind(vocabulary, log).save()
    assert list(saved.arrays)[:3] == ["texts/0", "offsets/0", "texts/1"]
    arrays, texts = {name: array.copy() for name, array in saved.arrays.items()}, dict(saved.texts)
    change(arrays, texts)
    with pytest.raises(ArtefactError, match="not the identifiers of a vocabulary"):
        Identifiers.load(Artefact(arrays, texts), vocabulary)


def test_an_identifier_that_is_there_twice_is_refused(log: EventLog) -> None:
    vocabulary = everything(log)
    saved = Identifiers.behind(vocabulary, log).save()
    twice = Artefact({**saved.arrays, "numbers/2": np.array([10, 20, 10])}, saved.texts)
    found = Identifiers.load(twice, vocabulary)
    assert found is not None
    with pytest.raises(ArtefactError, match="an identifier of item_id is in the vocabulary of churn@1 twice"):
        found.translated(vocabulary, log, "churn@1")


def test_recommenders_keep_their_counts(trained: Trained, tmp_path: Path) -> None:
    root = trained.elsewhere(tmp_path / "there", backwards, last_first=True)
    here, there = (Predictor.load("recommendation", each).ensemble for each in (trained.root, root))
    assert isinstance(here, Recommender)
    assert isinstance(there, Recommender)
    np.testing.assert_array_equal(here.popularity, there.popularity)
    assert here.vocabulary.kept["item_id"].tolist() != there.vocabulary.kept["item_id"].tolist()
