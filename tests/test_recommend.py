"""From a log to lists of items: a ranking task trained, registered and asked, in Python and on the command line."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import shop
from test_service import running

from zoo.cli.app import app
from zoo.contract import Target
from zoo.errors import UsageError
from zoo.evaluation.ranking import of_rows
from zoo.features import Features, apply
from zoo.manager import plugins
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.recommender import Recommender
from zoo.registry import Registry
from zoo.service import app as api
from zoo.service.versions import Versions
from zoo.stacking import Ensemble
from zoo.training import Trained, train
from zoo.vocabulary import Vocabulary

SETTINGS = """
[zoo]
timezone = "UTC"

[traces]
keep = 500

[tasks.recommendation]
members = ["covisit", "popularity"]
event_type = "purchase"

[tasks.recommendation.params.covisit]
window = 5

[tasks.refitted]
task = "recommendation"
members = ["covisit", "popularity"]
final = "blend"
event_type = "purchase"
candidates = 5
refit = true

[tasks.refitted.params.blend]
strength = 30.0

[tasks.again]
task = "recommendation"
members = ["popularity"]
event_type = "purchase"
protocol = "time_cut"
test_start = 2024-03-15
validation = "10d"
exclude_seen = false
"""

HISTORY = """
from feast import FeatureService, FeatureView

whole = Aggregation(
    ("user_id",),
    (
        last_n("items", "item_id", 10_000),
        last_n("event_types", "event_type", 10_000),
        last_n("gaps", "gap", 10_000),
        last_n("ages", "age", 10_000),
    ),
)
user_history = FeatureView(
    name="user_history",
    entities=[user],
    source=EventSource(name="user_history", aggregation=whole),
    schema=schema_of(whole),
)
recommendation = FeatureService(name="recommendation", features=[user_history])
"""
STRANGER = 999_999


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = shop.make_project(tmp_path_factory.mktemp("recommend") / "shop", SETTINGS, shop.DEFINITIONS + HISTORY)
    log = shop.make_log(root / "data" / "log")
    sets = [(1, item) for item in range(1, 9)]
    log.put_table("campaigns", pl.DataFrame({"campaign_id": np.arange(1, shop.CAMPAIGNS + 1)}), "campaign_id")
    items = np.arange(1, shop.ITEMS + 1)
    kinds = [shop.CATEGORIES[item % 4] for item in items]
    log.put_table("items", pl.DataFrame({"item_id": items, "category": kinds, "price": items / 2}), "item_id")
    log.put_set("campaign_items", pl.DataFrame(sets, ("campaign_id", "item_id"), orient="row"), ("campaign_id", "item_id"))
    apply(root)
    return root


@pytest.fixture(scope="module")
def features(root: Path) -> Features:
    return Features.open(root)


@pytest.fixture(scope="module")
def trained(root: Path, features: Features) -> Trained:
    done = train(Project.open(root), "recommendation", plugins=plugins(), features=features)
    assert done.version is not None
    project = Project.open(root)
    with Registry.open(project.registry_url, project.artefacts) as registry:
        registry.promote(done.version.model, done.version.number)
    return done


@pytest.fixture(scope="module")
def predictor(trained: Trained, root: Path, features: Features) -> Predictor:
    return Predictor.load("recommendation", root, features=features)


def test_training_ranks_the_test_rows_and_says_so(trained: Trained) -> None:
    record = json.loads(json.dumps(trained.record))
    assert list(record["members"]) == ["covisit", "popularity"]
    for name, line in {**record["members"], "mean": record["mean"]}.items():
        ranks = trained.scores[name]
        assert line["hr@10"] == pytest.approx(((ranks > 0) & (ranks <= 10)).mean())
        low, high = line["ndcg@10_interval"]
        assert low <= line["ndcg@10"] <= high
        assert 0 < line["coverage@20"] <= 1
    answer = list(trained.scores)[-1]
    assert {each["b"] for each in record["comparisons"]} == {answer}
    assert {each["a"] for each in record["comparisons"]} == {*trained.scores} - {answer}
    assert set(record["second_stage"]["ndcg@10"]) == {"covisit", "popularity", "mean", "blend", "gbdt"}
    assert record["refit"] is False
    assert record["best_member"] in ("covisit", "popularity")
    assert record["slices"]["cold users"]["rows"] == 0
    assert sum(record["slices"][f"{part} items"]["rows"] for part in ("head", "middle", "tail", "cold")) == record["test_rows"]
    assert trained.version is not None
    assert trained.version.lineage["final"] == record["second_stage"]["chosen"]
    assert trained.version.metrics["mean"] == record["mean"]


def test_the_same_training_again_is_the_same_version(trained: Trained, root: Path, features: Features) -> None:
    again = train(Project.open(root), "recommendation", plugins=plugins(), features=features)
    assert trained.version is not None
    assert again.version is not None
    assert again.version.number == trained.version.number


def test_a_training_whose_like_is_retired_is_a_new_version(root: Path, features: Features) -> None:
    project, numbers = Project.open(root), []
    for _ in range(3):
        version = train(project, "again", plugins=plugins(), features=features).version
        assert version is not None
        numbers.append(version.number)
        if len(numbers) == 2:
            with Registry.open(project.registry_url, project.artefacts) as registry:
                registry.retire(version.model, version.number)
    assert numbers == [1, 1, 2]


def test_members_may_be_fitted_again_up_to_the_test_and_the_record_says_so(root: Path, features: Features) -> None:
    done = train(Project.open(root), "refitted", plugins=plugins(), features=features, register=False)
    assert done.record["refit"] is True
    assert done.record["second_stage"]["asked_for"] == "blend"
    assert done.record["second_stage"]["depth"] == 5
    assert isinstance(done.ensemble, Recommender)
    final = done.ensemble.reranker.final
    assert final is not None
    assert final.fitted.strength == 30.0  # type: ignore[attr-defined]
    # a user's training row ends where the test row begins, its own target what was last before that
    sizes = Counter((done.data.batch.column("items").lengths + (done.data.target > 0)).tolist())
    assert not Counter(done.test.batch.column("items").lengths.tolist()) - sizes


def test_one_member_over_a_cut_in_time_counts_items_bought_again(root: Path, features: Features, trained: Trained) -> None:
    settings = Project.open(root).task("again")
    cut = shop.START + 80 * shop.DAY
    done = train(Project.open(root), "again", plugins=plugins(), features=features, test_start=cut, register=False)
    assert settings.own["protocol"] == "time_cut"
    assert done.record["mean"] is None
    assert done.record["best_member"] == "popularity"
    assert (done.data.time < cut).all()
    assert (done.rows.time == cut).all()
    assert isinstance(done.ensemble, Recommender)
    filtered = done.ensemble.rankings(done.test, exclude_seen=True)["popularity"]
    assert (filtered.rank == 0).sum() > (done.scores["popularity"] == 0).sum()
    assert of_rows(filtered)["hr@10"].mean() < done.record["members"]["popularity"]["hr@10"]


def test_lists_are_those_of_the_history_at_the_same_instant(predictor: Predictor, features: Features) -> None:
    users, at = list(range(1, 21)), shop.START + 60 * shop.DAY
    answer = predictor.recommend(users, 4, at=at)
    assert answer.column_names == [
        *("user_id", "place", "item_id", "title", "score", "rank:covisit", "rank:popularity"),
        *("cold", "newest_event_age", "version", "features", "id"),
    ]
    assert answer.group_by("user_id").aggregate([("id", "count_distinct")])["id_count_distinct"].to_pylist() == [1] * 20
    assert isinstance(predictor.ensemble, Recommender)
    batch = features.history("recommendation", {"user_id": users, "time": np.full(20, at)})
    lists = predictor.ensemble.lists(batch, 4)
    ids = features.reader.view().ids("item_id", lists.items.ravel()).to_pylist()
    assert answer["item_id"].to_pylist() == ids
    assert answer["user_id"].to_pylist() == np.repeat(users, 4).tolist()
    assert answer["place"].to_pylist() == [1, 2, 3, 4] * 20
    np.testing.assert_array_equal(answer["rank:covisit"], lists.ranks[0].ravel())
    seen = batch.column("items")
    log_ids = [set(features.reader.view().ids("item_id", seen.take(np.array([at])).values).to_pylist()) for at in range(20)]
    for user, item in zip(answer["user_id"].to_pylist(), answer["item_id"].to_pylist()):
        assert item not in log_ids[user - 1]
    assert set(answer["version"].to_pylist()) == {"recommendation@1"}


def test_only_items_with_the_value_asked_for_are_listed(predictor: Predictor) -> None:
    answer = predictor.recommend([1, 2], 30, where={"category": shop.CATEGORIES[1]}, exclude_seen=False)
    items = answer["item_id"].to_pylist()
    assert items
    assert {shop.CATEGORIES[item % 4] for item in items} == {shop.CATEGORIES[1]}
    assert len(items) < 60
    everything = predictor.recommend([1, 2], 1_000, exclude_seen=False)
    assert sorted(everything.filter(pa.compute.equal(everything["user_id"], 1))["item_id"].to_pylist()) == sorted(
        range(1, shop.ITEMS + 1)
    )


def test_a_stranger_gets_what_is_popular_and_a_mark(predictor: Predictor) -> None:
    answer = predictor.recommend([STRANGER, 1], 3)
    assert answer["cold"].to_pylist() == [True] * 3 + [False] * 3
    assert answer["newest_event_age"].to_pylist()[:3] == [None] * 3
    first = answer.slice(0, 3)
    assert sorted(first["rank:popularity"].to_pylist()) == first["rank:popularity"].to_pylist()
    assert first["score"].to_pylist() == sorted(first["score"].to_pylist(), reverse=True)
    assert predictor.recommend([], 3).num_rows == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("12",), {}, r"users is the text '12'; expected a list of identifiers"),
        (([1], 0), {}, "k is 0; expected how many items to list"),
        (([1],), {"where": {"colour": "red"}}, "unknown column of the item table 'colour'; choose one of: category"),
        (([1],), {"exclude_seen": "no"}, "exclude_seen is 'no'; expected True, False or None"),
        (([1],), {"where": {"category": "cars"}}, "no item has category 'cars'"),
        (([1],), {"where": {"price": "cheap"}}, "price of items is a number of 64 bits; seen 'cheap'"),
        (([1],), {"where": {"price": 10**400}}, r"price of items is a number of 64 bits; seen 10{39}\.\.\.; expected such a one"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(predictor: Predictor, arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predictor.recommend(*arguments, **options)


def test_a_model_answers_what_it_was_made_for(predictor: Predictor) -> None:
    with pytest.raises(UsageError, match=r"recommendation@1 ranks items and has no score a row; ask it for lists: recommend"):
        predictor.predict(users=[1])
    stack = replace(predictor, ensemble=Ensemble((), predictor.ensemble.members[0], Vocabulary({}), Target()))
    with pytest.raises(UsageError, match=r"ranks no items; ask it for scores: predict"):
        stack.recommend([1])
    predictor.warm()


@pytest.mark.parametrize("final", ["blend", "gbdt"])
def test_a_fitted_second_stage_that_reads_the_item_table_warms_up_and_answers(root: Path, features: Features, final: str) -> None:
    project = Project.open(root)
    tasks = {name: replace(task, final=final) for name, task in project.tasks.items()}
    done = train(replace(project, tasks=tasks), "recommendation", plugins=plugins(), features=features)
    assert done.version is not None
    found = Predictor.load(done.version.reference, root, features=features)
    assert isinstance(found.ensemble, Recommender)
    texts = found.ensemble.save().texts
    assert any("same:" in text for name, text in texts.items() if name.startswith("final/"))
    found.warm()
    assert len(found.recommend([1, STRANGER], 3)) == 6


def test_the_average_asked_for_is_that_of_the_second_stage_and_of_its_answers(root: Path, features: Features) -> None:
    project = Project.open(root)
    task = project.tasks["recommendation"]
    asked = replace(task, final="blend", own={**task.own, "average": "items"})
    done = train(replace(project, tasks={"recommendation": asked}), "recommendation", plugins=plugins(), features=features)
    second = json.loads(json.dumps(done.record))["second_stage"]
    assert (second["average"], second["chosen"]) == ("items", "blend")
    assert second["ndcg@10"]["blend"] == max(each["items"] for each in second["frontier"])
    assert done.version is not None
    found = Predictor.load(done.version.reference, root, features=features).ensemble
    assert isinstance(found, Recommender)
    assert found.reranker.tau == second["tau"]


def test_a_shadow_of_lists_is_refused_before_the_service_starts(predictor: Predictor) -> None:
    with pytest.raises(UsageError, match=r"recommendation@1 ranks items and has no scores .* take it out"):
        Versions({"recommendation": predictor}, {"recommendation": "recommendation"}, shadow={"recommendation": 1.0})


def test_over_http_the_lists_are_the_predictors(predictor: Predictor, features: Features) -> None:
    stubborn = replace(predictor, ensemble=Ensemble((), predictor.ensemble.members[0], Vocabulary({}), Target()))
    with running(api({"recommendation": predictor, "scores": stubborn}, features)) as client:

        def ask(**body: Any) -> Any:
            return client.post("/v1/recommend", json={"model": "recommendation", **body})

        users = [3, STRANGER, 3]
        where = {"category": shop.CATEGORIES[2]}
        answers = ask(users=users, k=2, where=where, exclude_seen=False).raise_for_status().json()["answers"]
        rows = iter(predictor.recommend(users, 2, where=where, exclude_seen=False).to_pylist())
        assert [answer["user_id"] for answer in answers] == users
        assert [answer["cold"] for answer in answers] == [False, True, False]
        for answer in answers:
            for place, item in enumerate(answer["items"], 1):
                row = next(rows)
                assert (answer["user_id"], place, item["item_id"]) == (row["user_id"], row["place"], row["item_id"])
                assert item["title"] == row["title"]
                assert item["score"] == pytest.approx(row["score"])
                assert item["ranks"] == {name: row[f"rank:{name}"] for name in ("covisit", "popularity")}
                assert answer["version"] == row["version"]
        assert next(rows, None) is None
        everything = ask(users=[1, 2], k=1_000).json()["answers"]
        assert all(0 < len(answer["items"]) <= shop.ITEMS for answer in everything)
        assert ask(users=[]).json() == {"answers": []}
        for body, status, said in (
            ({"users": [1], "k": 0}, 422, "k: Input should be greater than or equal to 1; seen 0"),
            ({"users": ["1"]}, 422, "user_id '1' is string"),
            ({"users": [1], "where": {"price": 10**400}}, 422, "price of items is a number of 64 bits; seen 1000"),
            ({"users": [1], "where": {"colour": "red"}}, 422, "unknown column of the item table 'colour'"),
            ({"users": [1], "model": "churn"}, 404, "choose one of: recommendation, scores"),
            ({"users": [1], "model": "scores"}, 422, "ranks no items; ask it for scores"),
            ({"users": [1], "at": "2024-03-01"}, 422, "has no offset"),
        ):
            answer = ask(**body)
            assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text
        refused = client.post("/v1/predict", json={"model": "recommendation", "users": [1]})
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "usage")
        with pytest.raises(UsageError, match="ranks items; what moved a score") as same:
            predictor.explain(users=[1])
        refused = client.post("/v1/explain", json={"model": "recommendation", "users": [1]})
        assert (refused.status_code, refused.json()["error"]) == (422, {"type": "usage", "message": str(same.value)})
        card = client.get("/v1/models").json()["models"][0]
        assert card["metrics"]["ndcg@10"] >= 0


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        app([str(each) for each in arguments], prog_name="zoo")
    streams = capfd.readouterr()
    return int(ended.value.code or 0), streams.out, streams.err


def test_the_command_line_lists_the_same(predictor: Predictor, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--user", 3, "--user", STRANGER, "-k", 2, "--where", f"category={shop.CATEGORIES[2]}", "--no-exclude-seen")
    code, out, _ = run(capfd, "--repo", root, "recommend", *options, "--json")
    assert code == 0
    expected = predictor.recommend([3, STRANGER], 2, where={"category": shop.CATEGORIES[2]}, exclude_seen=False)
    found = json.loads(out)
    assert all(row.pop("id") for row in found["rows"])
    assert found == {"task": "recommendation", "rows": expected.drop_columns("id").to_pylist()}
    code, out, _ = run(capfd, "--repo", root, "recommend", "--user", STRANGER, "--k", 10)
    assert code == 0
    assert "recommendation: 10 items" in out
    assert re.fullmatch(r"id \w{16}-0 \(zoo --repo .* trace \w{16}-0\)", out.splitlines()[-1])
    assert "yes" in out
    code, _, err = run(capfd, "--repo", root, "recommend", "--user", 3, "--where", "category")
    assert code == 2
    assert "--where 'category' cannot be read" in err
    code, _, err = run(capfd, "--repo", root, "recommend", "--user", 3, "--where", "category=a", "--where", "category=b")
    assert code == 2
    assert "--where names category twice, as 'a' and 'b'" in err


def test_the_command_line_trains_and_shows_rankings(root: Path, trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "--repo", root, "train", "recommendation", "--workers", 1, "--no-register")
    assert code == 0
    assert "NDCG@10" in out
    assert "covisit" in out
    assert "mean" in out
    assert "validation rows" in out
    assert "by NDCG@10 over rows: covisit" in out.replace("\n", " ")
