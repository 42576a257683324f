"""One version answering: what it reads, in which order it answers, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from shop import DAY, DAYS, START, USERS, Shop

from zoo.calibration import IDENTITY
from zoo.contract import Artefact, FeatureBatch, Target
from zoo.errors import ArtefactError, FeatureError, PluginError, RegistryError, UnknownIdError, UsageError
from zoo.features import Features, apply
from zoo.manager import plugins
from zoo.plugin import hookimpl
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.registry import Registry

EVERYONE = list(range(1, USERS + 1))
STRANGER = 999_999


@pytest.fixture(scope="module")
def features(trained_shop: Shop) -> Features:
    return Features.open(trained_shop.root)


@pytest.fixture(scope="module")
def churn(trained_shop: Shop, features: Features) -> Predictor:
    return Predictor.load("churn@champion", trained_shop.root, features=features)


@pytest.fixture(scope="module")
def campaign(trained_shop: Shop, features: Features) -> Predictor:
    return Predictor.load("campaign", trained_shop.root, features=features)


@pytest.fixture
def shop(trained_shop: Shop, tmp_path: Path) -> Shop:
    """A copy that a test may change."""
    return trained_shop.copy(tmp_path / "shop")


def registry(shop: Shop) -> Registry:
    project = Project.open(shop.root)
    return Registry.open(project.registry_url, project.artefacts)


def same(one: pa.Table, other: pa.Table) -> bool:
    """Beside the ids of the answers."""
    return one.drop_columns("id").to_pylist() == other.drop_columns("id").to_pylist()


# What it answers


def test_answers_hold_keys_scores_members_age_and_version(churn: Predictor) -> None:
    answer = churn.predict(users=[3, 1])
    assert answer.column_names == [
        "user_id",
        "score",
        "gbdt",
        "gru",
        "newest_event_age",
        "known",
        "version",
        "missing",
        "calibrated",
        "features",
        "id",
    ]
    assert answer["user_id"].to_pylist() == [3, 1]
    assert answer["version"].to_pylist() == ["churn@1", "churn@1"]
    assert answer.schema.field("score").type == pa.float32()
    for name in ("score", "gbdt", "gru"):
        assert all(0 < value < 1 for value in answer[name].to_pylist())


@pytest.mark.parametrize("days", [40, 90.5, DAYS])
def test_online_answers_equal_the_offline_history_at_the_same_instant(churn: Predictor, features: Features, days: float) -> None:
    at = START + int(days * DAY)
    answer = churn.predict(users=EVERYONE, at=at)
    batch = features.history("churn", {"user_id": EVERYONE, "time": np.full(USERS, at)})
    scores = churn.ensemble.member_scores(batch)
    assert np.array_equal(np.asarray(answer["gbdt"]), scores[:, 0, 0])
    assert np.allclose(np.asarray(answer["gru"]), scores[:, 1, 0], atol=1e-6)
    assert np.allclose(np.asarray(answer["score"]), churn.ensemble.predict(batch)[:, 0], atol=1e-6)
    assert answer["known"].to_pylist() == (batch.newest >= 0).tolist()
    assert len(set(np.asarray(answer["gru"]).tolist())) > 20  # a calibrated stack has few


def test_a_pair_is_answered_as_offline(campaign: Predictor, features: Features) -> None:
    at = START + 100 * DAY
    rows = {"user_id": [1, 2, 1, 3], "campaign_id": [1, 2, 5, 10]}
    batch = features.history("campaign", {**rows, "time": np.full(4, at)})
    assert np.array_equal(np.asarray(campaign.predict(rows, at=at)["score"]), campaign.ensemble.predict(batch)[:, 0])


def test_rows_come_back_in_order_with_duplicates(churn: Predictor) -> None:
    asked = [7, 2, STRANGER, 7, 5, 2, 7]
    answer = churn.predict(users=asked).to_pylist()
    assert [row["user_id"] for row in answer] == asked
    alone = {user: churn.predict(users=[user]).to_pylist()[0] for user in set(asked)}
    for row in answer:
        assert row["score"] == pytest.approx(alone[row["user_id"]]["score"], abs=1e-6)
        assert row["newest_event_age"] == alone[row["user_id"]]["newest_event_age"]


def test_rows_may_be_any_kind_of_table(churn: Predictor) -> None:
    expected = churn.predict(users=[4, 9])
    table = pa.table({"user_id": [4, 9], "note": ["not", "read"]})
    for rows in (
        table,
        table.to_pandas(),
        pl.DataFrame({"user_id": [4, 9]}),
        {"user_id": [4, 9]},
        [{"user_id": 4}, {"user_id": 9}],
    ):
        assert same(churn.predict(rows), expected)


def test_no_rows_are_no_answers(churn: Predictor) -> None:
    expected = churn.predict(users=[1]).column_names
    for rows in ([], {"user_id": []}, pa.table({"user_id": pa.array([], pa.int64())})):
        answer = churn.predict(rows)
        assert (len(answer), answer.column_names) == (0, expected)
    assert len(churn.predict(users=[])) == 0


def test_a_user_whom_the_log_does_not_know_gets_the_score_of_an_empty_history(churn: Predictor) -> None:
    cold, early = churn.predict(users=[STRANGER]).to_pylist()[0], churn.predict(users=[1], at=START - DAY).to_pylist()[0]
    assert (cold["known"], cold["newest_event_age"]) == (False, None)
    assert (early["known"], early["newest_event_age"]) == (False, None)
    assert cold["score"] == pytest.approx(early["score"], abs=1e-6)


def test_an_event_counts_only_after_its_own_instant(churn: Predictor, trained_shop: Shop) -> None:
    events = trained_shop.log.table(columns=["user_id", "time"])
    user = events["user_id"][-1].as_py()
    newest = max(t for u, t in zip(events["user_id"].to_pylist(), events["time"].to_pylist()) if u == user)
    at, after = (churn.predict(users=[user], at=t).to_pylist()[0] for t in (newest, newest + 1))
    assert at["newest_event_age"] > 1
    assert after["newest_event_age"] == 1e-6


def test_now_is_the_clock_of_the_repository(churn: Predictor, trained_shop: Shop) -> None:
    end = trained_shop.log.end()
    assert end is not None
    assert same(churn.predict(users=[1, 2]), churn.predict(users=[1, 2], at=end + 1))
    moment = datetime.fromtimestamp(end // 1_000_000, UTC)
    assert same(churn.predict(users=[1, 2], at=moment), churn.predict(users=[1, 2], at=end // 1_000_000 * 1_000_000))


def test_threads_get_the_answers_that_one_gets(churn: Predictor) -> None:
    parts = [EVERYONE[i::8] for i in range(8)] * 2
    expected = [churn.predict(users=part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda part: churn.predict(users=part), parts))
    for answer, one in zip(answers, expected):
        assert np.allclose(np.asarray(answer["score"]), np.asarray(one["score"]), atol=1e-6)
        assert answer.drop_columns(["score", "gru", "id"]).equals(one.drop_columns(["score", "gru", "id"]))


def test_warming_reads_and_scores_without_an_observer(churn: Predictor, campaign: Predictor) -> None:
    observer = Observer()
    replace(churn, found=plugins(extra=[observer])).warm()
    campaign.warm()
    assert observer.seen == []


@dataclass
class Observer:
    """Hears every answer, and may fail at it."""

    fails: bool = False
    seen: list[tuple[str, int, Mapping[str, Any]]] = field(default_factory=list)

    @hookimpl
    def zoo_scored(self, model: str, version: int, scores: Mapping[str, Any]) -> None:
        self.seen.append((model, version, scores))
        if self.fails:
            raise ZeroDivisionError("an observer's own mistake")


def test_an_observer_hears_of_answers_and_its_failure_is_not_served(churn: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    observer = Observer(fails=True)
    answer = replace(churn, found=plugins(extra=[observer])).predict(users=[1, 2])
    assert len(answer) == 2
    ((model, version, scores),) = observer.seen
    assert (model, version, scores["rows"]) == ("churn", 1, 2)
    assert np.array_equal(scores["score"][:, 0], np.asarray(answer["score"]))
    assert "an observer's own mistake" in caplog.text


@dataclass(frozen=True)
class Constant:
    """Answers the same for every row."""

    scores: tuple[float, ...]

    def predict(self, batch: FeatureBatch) -> np.ndarray:
        return np.tile(np.array(self.scores, np.float32), (len(batch), 1))

    def save(self) -> Artefact:
        return Artefact()


def ensemble_of(churn: Predictor, scores: tuple[float, ...], target: Target) -> Predictor:
    """The predictor with members that answer these scores."""
    old = churn.ensemble
    members = tuple(replace(m, fitted=Constant(scores)) for m in old.members)
    final = replace(old.final, fitted=Constant(scores))
    return replace(churn, ensemble=replace(old, members=members, final=final, target=target, calibrator=IDENTITY))


def test_several_outputs_have_a_column_each(churn: Predictor) -> None:
    three = ensemble_of(churn, (0.25, 0.25, 0.5), Target("multiclass", classes=("stays", "pauses", "leaves")))
    answer = three.predict(users=[1])
    assert three.outputs == ("stays", "pauses", "leaves")
    assert answer["score:leaves"].to_pylist() == [0.5]
    assert answer["gru:stays"].to_pylist() == [0.25]
    assert three.predict(users=[]).column_names == answer.column_names


def test_members_that_give_no_number_are_named(churn: Predictor) -> None:
    with pytest.raises(
        PluginError, match=r"gbdt gave a score that is not finite, gru gave .*answers with at least 1 of its members"
    ):
        ensemble_of(churn, (float("nan"),), Target("binary")).predict(users=[1])


# What it refuses


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"customer": 1}], UsageError, "rows have no column 'user_id'; churn needs user_id and the rows have: customer"),
        ([{"user_id": 1}, {"user": 2}], UsageError, "row 1 of 2 has no user_id"),
        ([{"user_id": 1}, {"user_id": None}], UsageError, "row 1 of 2 has no user_id"),
        ([{"user_id": 1}, 2], UsageError, "a row is a int; expected mappings"),
        ([{}, {}], UsageError, "2 rows hold nothing"),
        ([{"user_id": 1}, {"user_id": "2"}], UsageError, "column 'user_id' cannot be read: .*expected values of one type"),
        ([{"user_id": 2**70}], UsageError, "column 'user_id' cannot be read"),
        ([{"user_id": "1"}], UnknownIdError, "user_id '1' is string; this log's are of type int"),
        ([{"user_id": True}], UnknownIdError, "user_id True is bool"),
        ([{"user_id": 1.5}], UnknownIdError, r"user_id 1\.5 is no identifier.*expected whole numbers"),
        ({"user_id": [1, 2], "more": [1]}, UsageError, "columns differ in length"),
        ({"user_id": 1}, UsageError, "column 'user_id' is 1; expected a list of values, one a row"),
        ({"user_id": "u1"}, UsageError, "column 'user_id' is 'u1'; expected a list of values"),
        ("1", UsageError, "rows are a str; expected a table"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(churn: Predictor, rows: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        churn.predict(rows)


def test_a_key_of_the_wrong_type_is_refused_for_partners_too(campaign: Predictor) -> None:
    with pytest.raises(UnknownIdError, match="campaign_id 'a' is string"):
        campaign.predict([{"user_id": 1, "campaign_id": "a"}])
    with pytest.raises(UsageError, match="rows have no column 'campaign_id'; campaign needs user_id, campaign_id"):
        campaign.predict(users=[1])


def test_rows_and_users_exclude_each_other(churn: Predictor) -> None:
    for given in ({}, {"rows": [{"user_id": 1}], "users": [1]}):
        with pytest.raises(UsageError, match="either rows or users"):
            churn.predict(**given)


def test_a_time_without_timezone_is_refused(churn: Predictor) -> None:
    with pytest.raises(UsageError, match="2024-02-01T00:00:00, which has no timezone"):
        churn.predict(users=[1], at=datetime(2024, 2, 1))


# What it loads


def test_a_reference_means_a_version(shop: Shop) -> None:
    features = Features.open(shop.root)
    with registry(shop) as own:
        _, artefact = own.load("churn@1")
        lineage = own.get("churn@1").lineage
        own.register("churn", artefact, {}, lineage)
        for reference, number in {"churn": 1, "churn@champion": 1, "churn@2": 2}.items():
            assert Predictor.load(reference, shop.root, features=features).version.number == number
        own.promote("churn", 2)
        assert Predictor.load("churn", shop.root, features=features).predict(users=[1])["version"].to_pylist() == ["churn@2"]
        own.retire("churn", 1)
    assert Predictor.load("churn@1", shop.root, features=features).version.status == "retired"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("chrun", "unknown model 'chrun'; choose one of: campaign, churn"),
        ("churn@challenger", "challenger"),
        ("churn@7", "model 'churn' has no version 7"),
        ("churn@", "is no reference to a model"),
    ],
)
def test_a_reference_to_nothing_is_refused_with_the_choices(trained_shop: Shop, reference: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        Predictor.load(reference, trained_shop.root)


def test_a_version_that_names_no_features_is_refused(shop: Shop) -> None:
    with registry(shop) as own:
        own.register("mean", Artefact({"mean": np.zeros(1)}), {}, {})
    with pytest.raises(RegistryError, match="mean@1 does not say which task and features it was trained on"):
        Predictor.load("mean@1", shop.root)


def test_a_corrupt_artefact_is_refused_when_it_is_loaded(shop: Shop) -> None:
    with registry(shop) as own:
        version = own.get("churn")
    path = Project.open(shop.root).artefacts / version.digest / "arrays.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"churn@1 cannot be loaded: .*arrays\.safetensors"):
        Predictor.load("churn", shop.root)
    assert Predictor.load("campaign", shop.root).version.number == 1


def test_a_missing_plugin_is_named(trained_shop: Shop) -> None:
    with pytest.raises(
        PluginError,
        match=r"'gru' of this version is a model 'gru' of distribution feature-zoo-recurrent .*pip install feature-zoo-rec.*==",
    ):
        Predictor.load("churn", trained_shop.root, without=["recurrent"])


def test_a_folder_without_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no zoo\.toml in"):
        Predictor.load("churn", tmp_path)


def test_features_that_changed_since_training_are_refused(shop: Shop) -> None:
    definitions = shop.root / "definitions.py"
    before = definitions.read_text()
    definitions.write_text(before.replace('"user_purchases_7d", "7d"', '"user_purchases_7d", "9d"'))
    apply(shop.root)
    with pytest.raises(FeatureError, match="feature service 'churn' is not the one that churn@1 was trained on"):
        Predictor.load("churn", shop.root)
    definitions.write_text(before)
    apply(shop.root)
    assert Predictor.load("churn", shop.root).version.number == 1


def test_a_feature_service_that_is_gone_is_named(shop: Shop) -> None:
    definitions = shop.root / "definitions.py"
    definitions.write_text(definitions.read_text().replace('name="churn"', 'name="attrition"'))
    apply(shop.root)
    with pytest.raises(
        FeatureError,
        match="feature service 'churn', which churn@1 was trained on, is not in the repository; it has: attrition, campaign",
    ):
        Predictor.load("churn", shop.root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": [1], "at": "2024-05-01"}, "at is '2024-05-01'; expected a datetime"),
        ({"users": [1], "at": True}, "at is True; expected a datetime"),
        ({"users": [1], "at": 1.5}, "at is 1.5; expected a datetime"),
        ({"users": [1], "at": datetime(2024, 5, 1)}, "at is 2024-05-01T00:00:00, which has no timezone"),
        ({"users": "u0042"}, "users is the text 'u0042'; expected a list"),
        ({"users": 1}, r"users is the int 1; expected a list of identifiers, as in users=\[1\]"),
        ({"users": np.int64(1)}, "users is the int64 .*; expected a list"),
        ({"users": np.array(1)}, "users is the ndarray .*; expected a list"),
        ({"users": {"user_id": 1}}, "users is the dict .*; expected a list"),
        ({"users": [1], "deadline": float("inf")}, "deadline is inf; expected seconds from now"),
        ({"users": [1], "deadline": float("nan")}, "deadline is nan"),
        ({"users": [1], "deadline": 1e300}, "deadline is 1e.300; .*at most 86400"),
    ],
)
def test_users_and_instants_of_the_wrong_kind_are_refused(churn: Predictor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        churn.predict(**arguments)
    if "at" in arguments:
        with pytest.raises(UsageError, match=message):
            churn.features.online("churn", {"user_id": [1]}, arguments["at"])
