"""``zoo init`` makes a working project of somebody's files, says what it found, and leaves nothing behind where it cannot."""

from __future__ import annotations

import ast
import gzip
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from zoo.cli.app import app
from zoo.events.log import EventLog
from zoo.features import Features, apply
from zoo.project import Project

DAY = 86_400
START = 1_704_067_200  # 2024-01-01
MEMBERS = {"gbdt", "gru", "lstm", "rnn", "bert"}


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Zoo = Callable[..., Answer]


@pytest.fixture
def zoo(capfd: pytest.CaptureFixture[str]) -> Zoo:
    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(a) for a in arguments], prog_name="zoo")
        streams = capfd.readouterr()
        return Answer(int(ended.value.code or 0), streams.out, streams.err)

    return run


def frame(
    users: int = 40, days: int = 100, types: tuple[str, ...] = ("view", "purchase"), seed: int = 0, text_ids: bool = False
) -> pl.DataFrame:
    """Events: each user comes about every third day, the odd ones leave halfway."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(1, users + 1), days)
    day = np.tile(np.arange(days), users)
    comes = (rng.random(len(who)) < 0.35) & ((who % 2 == 0) | (day < days // 2))
    who, day = who[comes], day[comes]
    item = rng.integers(1, 30, len(who))
    return pl.DataFrame(
        {
            "user_id": who,
            "item_id": [f"sku-{i}" for i in item] if text_ids else item,
            "event_type": np.array(types)[rng.integers(0, len(types), len(who))],
            "timestamp": START + day * DAY + rng.integers(0, DAY, len(who)),
            "price": np.round(rng.uniform(1, 20, len(who)), 2),
        }
    ).sort("timestamp")


def timed(rows: pl.DataFrame) -> pl.DataFrame:
    """Timestamps with a timezone."""
    return rows.with_columns(pl.from_epoch("timestamp").dt.replace_time_zone("UTC"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with ``events.parquet``, ``items.csv`` and ``users.ndjson`` of one shop, under names of its own."""
    folder = tmp_path / "files"
    folder.mkdir()
    rows = timed(frame(text_ids=True)).rename({"price": "unit_price"})
    rows = rows.with_columns(
        user_session=pl.col("user_id").cast(pl.String) + pl.col("timestamp").dt.date().cast(pl.String),
        shelf=pl.lit("top"),
        note=pl.int_range(pl.len()).cast(pl.String) + " words",
        user_id=pl.when(pl.int_range(pl.len()) % 100 == 0).then(None).otherwise("user_id"),
    )
    rows.write_parquet(folder / "events.parquet")
    items = pl.DataFrame({"sku": [f"sku-{i}" for i in range(1, 31)], "name": [f"Item {i}" for i in range(1, 31)]})
    items.with_columns(
        category=pl.Series(["bread", "fruit", "toys"] * 10), weight=pl.Series(range(30)), aisle_id=pl.Series(range(900, 930))
    ).write_csv(folder / "items.csv")
    pl.DataFrame(
        {"user_id": range(1, 41), "region": ["north", "south"] * 20, "values": range(40), "user_band": range(40)}
    ).write_ndjson(folder / "users.ndjson")
    return folder


def init(zoo: Zoo, root: Path, events: Path, *more: object) -> Answer:
    return zoo("init", root, "--events", events, *more, "--json")


def ready(zoo: Zoo, root: Path, *events: Path) -> Features:
    """Apply, ingest and open."""
    apply(root)
    answer = zoo("--repo", root, "ingest", *events, "--json")
    assert answer.code == 0, answer.err
    return Features.open(root)


# What it says


@pytest.mark.parametrize("seller", [7, "somebody"])
def test_users_whom_an_item_table_names_are_left_out_with_a_reason(seller: object, files: Path, tmp_path: Path, zoo: Zoo) -> None:
    """Else forgetting whoever sold an item would take the item away."""
    items = files / "sold.csv"
    pl.DataFrame({"sku": [f"sku-{i}" for i in range(1, 31)], "user_id": [seller] * 30, "color": ["red"] * 30}).write_csv(items)
    answer = init(zoo, tmp_path / "shop", files / "events.parquet", "--items", items)
    assert answer.code == 0, answer.err
    assert answer.json["tables"]["items"]["columns"] == ["item_id", "color"]
    assert "forgotten" in json.dumps(answer.json)


def test_the_report_says_what_was_found_and_what_is_left_out(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    tables = ("--items", files / "items.csv", "--users", files / "users.ndjson")
    report = init(zoo, tmp_path / "shop", files / "events.parquet", *tables).json
    rows = pl.read_parquet(files / "events.parquet")
    good = rows.filter(pl.col("user_id").is_not_null())
    assert report["rows"] == len(rows)
    assert report["bad_rows"] == {"user_id_null": len(rows) - len(good)}
    assert report["event_types"] == dict(good["event_type"].value_counts(sort=True).iter_rows())
    assert report["columns"] == {
        "user_id": "user_id",
        "item_id": "item_id",
        "event_type": "event_type",
        "timestamp": "timestamp",
        "session": "user_session",
        "price": "unit_price",
        "shelf": "shelf",
    }
    assert report["types"] == {"user_id": "int", "item_id": "string"}
    assert (report["users"], report["items"]) == (good["user_id"].n_unique(), good["item_id"].n_unique())
    assert report["end"] == int(good["timestamp"].dt.epoch("us").max())  # type: ignore[arg-type]
    assert report["tables"]["items"] == {"rows": 30, "columns": ["item_id", "title", "category", "weight", "aisle_id"]}
    assert report["churn"] == {"event_type": "purchase", "horizon": "7d", "active": "28d"}
    assert set(report["members"]) == MEMBERS
    assert "event column note" in report["left_out"]
    assert "event column shelf" in report["left_out"]
    assert "users.values" in report["left_out"]
    assert report["next"][1] == f"zoo --repo {tmp_path / 'shop'} ingest {files / 'events.parquet'}"
    assert [step.split()[3] for step in report["next"]] == [
        *("apply", "ingest", "materialize", "train", "promote", "predict", "train", "train", "promote", "recommend")
    ]
    assert (report["behaviour"], report["propensity"]["event_type"]) == (
        {"members": ["gbdt", "gru"], "horizon": "1d"},
        "purchase",
    )


def test_a_log_that_is_gone_is_made_again_by_ingest(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    root, events = tmp_path / "shop", files / "events.parquet"
    init(zoo, root, events, "--items", files / "items.csv", "--users", files / "users.ndjson")
    schema, held = EventLog.open(root / "data/log").schema, ready(zoo, root, events).reader.log.count()
    shutil.rmtree(root / "data")
    assert zoo("--repo", root, "materialize").err.endswith(f"run: zoo --repo {root} apply\n")
    apply(root)
    assert "`zoo ingest FILE` makes that of a project" in zoo("--repo", root, "materialize").err
    assert zoo("--repo", root, "ingest", tmp_path / "none.parquet").code == 2
    assert not (root / "data/log").exists()
    text = " ".join(zoo("--repo", root, "ingest", events, "--items", files / "items.csv").out.split())
    assert "There was no event log, so an empty one was made" in text
    log = EventLog.open(root / "data/log")
    assert (log.schema, log.count(), sorted(log.tables())) == (schema, held, ["items"])
    again = zoo("--repo", root, "ingest", events, "--users", files / "users.ndjson", "--json").json
    assert (again["made"], again["tables"], again["added"], again["events"]) == (False, ["users"], 0, held)
    assert sorted(log.tables()) == ["items", "users"]
    batch = Features.open(root).online("churn", {"user_id": [2]})
    assert batch.column("region").values[0] > 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('user_id = "int"', 'user_id = "string"', "is not the schema of the log"),
        ('user_id = "int"', 'user = "int"', "unknown key in [log] 'user'; choose one of: clock, event_types, extra"),
        ("session = true", 'session = "yes"', "[log] session is 'yes'; expected bool"),
    ],
)
def test_a_schema_in_zoo_toml_that_is_not_the_logs_is_refused(
    old: str, new: str, said: str, files: Path, tmp_path: Path, zoo: Zoo
) -> None:
    root = tmp_path / "shop"
    init(zoo, root, files / "events.parquet")
    settings = (root / "zoo.toml").read_text()
    assert old in settings
    (root / "zoo.toml").write_text(settings.replace(old, new, 1))
    answer = zoo("--repo", root, "ingest", files / "events.parquet")
    assert (answer.code, said in answer.err) == (2, True)


def test_where_nothing_says_the_schema_ingest_says_who_makes_the_log(tmp_path: Path, zoo: Zoo) -> None:
    repo = Path(__file__).parents[1] / "feature_repo"
    for name in ("zoo.toml", "feature_store.yaml"):
        shutil.copy(repo / name, tmp_path / name)
    frame().write_parquet(tmp_path / "events.parquet")
    answer = zoo("--repo", tmp_path, "ingest", tmp_path / "events.parquet")
    assert (answer.code, "`zoo demo` the demo's" in answer.err) == (1, True)
    assert not (tmp_path / "data").exists()


def test_the_text_says_the_same(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    answer = zoo("init", tmp_path / "shop", "--events", files / "events.parquet")
    assert answer.code == 0
    for said in (
        "user_session",
        "unit_price",
        "user_id_null",
        "purchase",
        "note",
        "zoo --repo",
        "train churn",
        "recommend --user ID",
        "set clock: wall in",
        "feature_store.yaml",
    ):
        assert said in answer.out


# What it writes


def test_the_project_is_small_formatted_and_readable(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    root = tmp_path / "shop"
    init(zoo, root, files / "events.parquet", "--items", files / "items.csv", "--users", files / "users.ndjson")
    sources = sorted(root.glob("*.py"))
    assert [s.name for s in sources] == ["activity.py", "entities.py", "events.py", "profiles.py", "sequences.py", "services.py"]
    for source in sources:
        text = source.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text))
        assert text.count("\n") < 90
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "--line-length", "130", root], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "check", "--line-length", "130", root], check=True)
    settings = tomllib.loads((root / "zoo.toml").read_text(encoding="utf-8"))
    assert settings["ingest"] == {"columns": {"user_session": "session", "unit_price": "price"}}
    assert set(settings["tasks"]["churn"]["members"]) == MEMBERS
    assert Project.open(root).task("churn").own["horizon"] == "7d"
    assert settings["tasks"]["recommendation"]["members"] == ["popularity", "covisit", "itemknn"]
    assert settings["tasks"]["recommendation"]["event_type"] == "purchase"


def test_the_commands_that_follow_work_to_a_prediction(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    root = tmp_path / "shop"
    tables = ("--items", files / "items.csv", "--users", files / "users.ndjson")
    assert init(zoo, root, files / "events.parquet", *tables).code == 0
    settings = root / "zoo.toml"
    small = "".join(
        f"\n[tasks.{task}.params.gbdt]\nnum_trees = 10\nnum_threads = 1\n" for task in ("churn", "behaviour", "propensity")
    )
    settings.write_text(settings.read_text(encoding="utf-8") + small, encoding="utf-8")

    services = zoo("--repo", root, "apply", "--json").json["services"]
    assert set(services) == {"behaviour", "churn", "items", "recommendation"}
    assert {
        "items",
        "categories",
        "prices",
        "gaps",
        "visit_items",
        "user_purchase_7d",
        "user_price_7d",
        "region",
        "user_band",
    } <= set(services["churn"])
    taken = zoo("--repo", root, "ingest", files / "events.parquet", "--json").json
    assert taken["quarantined"] == {"user_id_null": taken["rows"] - taken["added"]}
    assert taken["absent"] == []
    assert zoo("--repo", root, "ingest", files / "events.parquet", "--json").json["added"] == 0
    assert zoo("--repo", root, "materialize", "--json").json["copied"]["user_id"] == 40
    trained = zoo("--repo", root, "train", "churn", "--member", "gbdt", "--workers", "1")
    assert trained.code == 0, trained.err
    assert "registered as churn@1" in trained.out
    rows = zoo("--repo", root, "predict", "churn", "--user", "2", "--user", "1", "--json").json["rows"]
    assert [row["known"] for row in rows] == [True, True]
    assert rows[0]["score"] < rows[1]["score"]  # the odd ones left halfway
    again = zoo("--repo", root, "train", "churn", "--member", "gbdt", "--workers", "1", "--no-register", "--json").json
    assert (again["reused"], again["model"]) == (["gbdt"], None)
    trained = zoo("--repo", root, "train", "behaviour", "--member", "gbdt", "--workers", "1")
    assert trained.code == 0, trained.err
    assert all(f"AP {name}" in trained.out for name in ("view", "purchase", "nothing"))
    assert zoo("--repo", root, "promote", "behaviour@1").code == 0
    answer = zoo(
        "--repo", root, "predict", "behaviour", "--user", "2", "--user", "4", "--limit", "1", "--of", "purchase", "--json"
    )
    (row,) = answer.json["rows"]
    scores = [row[f"score:{name}"] for name in ("view", "purchase", "nothing")]
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    asked = zoo("--repo", root, "predict", "behaviour", "--user", "2", "--limit", "1")
    assert (asked.code, "unknown class for --of" in asked.err) == (2, True), asked.err
    trained = zoo("--repo", root, "train", "propensity", "--member", "gbdt", "--workers", "1", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["stack"]["auc"] > 0
    trained = zoo("--repo", root, "train", "recommendation", "--workers", "1")
    assert trained.code == 0, trained.err
    assert zoo("--repo", root, "promote", "recommendation@1").code == 0
    rows = zoo("--repo", root, "recommend", "--user", "2", "-k", "3", "--no-exclude-seen", "--json").json["rows"]
    assert [row["place"] for row in rows] == [1, 2, 3]
    assert {"rank:popularity", "rank:covisit", "rank:itemknn"} <= set(rows[0])


def test_features_online_are_those_of_history(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    root = tmp_path / "shop"
    init(zoo, root, files / "events.parquet", "--items", files / "items.csv", "--users", files / "users.ndjson")
    features = ready(zoo, root, files / "events.parquet")
    features.materialize()
    for service, keys in (("churn", {"user_id": [1, 2, 40, 999]}), ("items", {"item_id": ["sku-1", "sku-29", "none"]})):
        online = features.online(service, keys)
        history = features.history(service, {**keys, "time": [features.reader.now()] * len(next(iter(keys.values())))})
        assert len(online.names) > 10
        for name in online.names:
            np.testing.assert_array_equal(online.column(name).values, history.column(name).values, err_msg=name)


def test_counts_of_the_project_are_those_of_the_file(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    root = tmp_path / "shop"
    init(zoo, root, files / "events.parquet")
    features = ready(zoo, root, files / "events.parquet")
    at = START + 30 * DAY
    batch = features.history("churn", {"user_id": [2], "time": [at * 1_000_000]})
    rows = pl.read_parquet(files / "events.parquet").filter(pl.col("user_id") == 2)
    seen = rows.filter((pl.col("timestamp").dt.epoch("s") < at) & (pl.col("timestamp").dt.epoch("s") >= at - 7 * DAY))
    assert batch.column("user_events_7d").values[0] == len(seen)
    assert batch.column("user_purchase_7d").values[0] == (seen["event_type"] == "purchase").sum()
    assert batch.column("user_items_7d").values[0] == seen["item_id"].n_unique()


@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz", "events.ndjson", "events.parquet"])
def test_a_log_may_come_in_any_format(name: str, tmp_path: Path, zoo: Zoo) -> None:
    rows, file = frame(days=20), tmp_path / name
    texts = rows.with_columns(pl.from_epoch("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    if name.endswith(".parquet"):
        timed(rows).write_parquet(file)
    elif name.endswith(".ndjson"):
        texts.write_ndjson(file)
    elif name.endswith(".gz"):
        file.write_bytes(gzip.compress(texts.write_csv().encode()))
    else:
        texts.write_csv(file)
    report = init(zoo, tmp_path / "shop", file).json
    assert (report["rows"], report["bad_rows"], report["types"]["user_id"]) == (len(rows), {}, "int")
    assert zoo("--repo", tmp_path / "shop", "ingest", file, "--json").json["added"] == len(rows)


def test_whole_number_times_keep_their_unit_for_ingest(tmp_path: Path, zoo: Zoo) -> None:
    rows = frame(days=20).with_columns(pl.col("timestamp") * 1_000)
    rows.write_csv(tmp_path / "e.csv")
    report = init(zoo, tmp_path / "shop", tmp_path / "e.csv").json
    assert report["time_unit"] == "ms"
    taken = zoo("--repo", tmp_path / "shop", "ingest", tmp_path / "e.csv", "--json").json
    assert (taken["added"], taken["end"]) == (len(rows), int(rows["timestamp"].max()) * 1_000)  # type: ignore[arg-type]


def test_naive_times_need_a_timezone_which_ingest_then_knows(tmp_path: Path, zoo: Zoo) -> None:
    rows = frame(days=20).with_columns(pl.from_epoch("timestamp").dt.strftime("%Y-%m-%d %H:%M:%S"))
    rows.write_csv(tmp_path / "e.csv")
    refused = init(zoo, tmp_path / "shop", tmp_path / "e.csv")
    assert refused.code == 2
    assert "--timezone Europe/London" in refused.err
    assert init(zoo, tmp_path / "shop", tmp_path / "e.csv", "--timezone", "Middle/Earth").code == 2
    assert not (tmp_path / "shop").exists()
    assert init(zoo, tmp_path / "shop", tmp_path / "e.csv", "--timezone", "Asia/Tokyo").code == 0
    taken = zoo("--repo", tmp_path / "shop", "ingest", tmp_path / "e.csv", "--json").json
    assert taken["end"] == (int(frame(days=20)["timestamp"].max()) - 9 * 3600) * 1_000_000  # type: ignore[arg-type]
    assert Project.open(tmp_path / "shop").timezone == "Asia/Tokyo"


def test_columns_by_any_name_are_taken_by_an_option(tmp_path: Path, zoo: Zoo) -> None:
    timed(frame(days=20)).rename({"user_id": "who", "event_type": "What Happened"}).write_parquet(tmp_path / "e.parquet")
    refused = init(zoo, tmp_path / "shop", tmp_path / "e.parquet")
    assert refused.code == 1
    assert "no column looks like 'user_id'" in refused.err
    columns = ("--column", "user_id=who", "--column", "event_type=What Happened")
    assert init(zoo, tmp_path / "shop", tmp_path / "e.parquet", *columns).code == 0
    assert zoo("--repo", tmp_path / "shop", "ingest", tmp_path / "e.parquet", "--json").json["quarantined"] == {}
    assert init(zoo, tmp_path / "other", tmp_path / "e.parquet", "--column", "who").code == 2
    assert init(zoo, tmp_path / "other", tmp_path / "e.parquet", "--column", "user_id=nobody").code == 2


# What it decides


@pytest.mark.parametrize(("days", "horizon"), [(400, "28d"), (180, "14d"), (100, "7d"), (45, "3d"), (20, "1d"), (10, None)])
def test_the_label_window_fits_the_length_of_the_log(days: int, horizon: str | None, tmp_path: Path, zoo: Zoo) -> None:
    timed(frame(users=3, days=days)).write_parquet(tmp_path / "e.parquet")
    report = init(zoo, tmp_path / "shop", tmp_path / "e.parquet").json
    assert (report["churn"] or {}).get("horizon") == horizon
    if horizon is None:
        assert "at least 12 days" in report["no_churn"]
        assert list(Project.open(tmp_path / "shop").tasks) == ["recommendation"]


@pytest.mark.parametrize(
    ("kinds", "possible"),
    [
        ([(1, "purchase"), (2, "purchase"), (3, "purchase")], False),  # three events, of three users
        ([(1, "view"), (1, "view"), (1, "purchase")], False),
        ([(1, "purchase"), (1, "purchase"), (2, "view"), (2, "view")], False),
        ([(1, "view"), (1, "purchase"), (1, "purchase"), (2, "purchase")], True),
        ([(1, "purchase"), (1, "purchase"), (1, "purchase")], True),
    ],
)
def test_a_recommendation_is_advised_only_where_one_can_be_trained(
    kinds: list[tuple[int, str]], possible: bool, tmp_path: Path, zoo: Zoo
) -> None:
    users, types = zip(*kinds)
    columns = {"user_id": users, "item_id": range(len(kinds)), "event_type": types, "timestamp": range(START, START + len(kinds))}
    pl.DataFrame(columns).with_columns(pl.from_epoch("timestamp").dt.replace_time_zone("UTC")).write_parquet(
        tmp_path / "e.parquet"
    )
    report = init(zoo, tmp_path / "shop", tmp_path / "e.parquet").json
    assert (report["recommendation"] is not None) == possible
    assert any(" train recommendation" in step for step in report["next"]) == possible
    assert ("recommendation" in Project.open(tmp_path / "shop").tasks) == possible
    if not possible:
        assert "no user has three events, two of them of type purchase" in report["no_recommendation"]
        said = zoo("init", tmp_path / "other", "--events", tmp_path / "e.parquet").out
        assert "No recommendation task: no user has three events" in " ".join(said.split())


@pytest.mark.parametrize(
    ("types", "chosen"),
    [(("view", "Purchase"), "Purchase"), (("visit",), "visit"), (("buy", "view", "view"), "buy"), (("a", "b", "b"), "b")],
)
def test_churn_is_about_purchases_or_what_happens_most(types: tuple[str, ...], chosen: str, tmp_path: Path, zoo: Zoo) -> None:
    timed(frame(types=types)).write_parquet(tmp_path / "e.parquet")
    assert init(zoo, tmp_path / "shop", tmp_path / "e.parquet").json["churn"]["event_type"] == chosen


def test_without_models_there_is_no_task_and_the_reason_is_said(tmp_path: Path, zoo: Zoo) -> None:
    timed(frame()).write_parquet(tmp_path / "e.parquet")
    without = [part for name in ("gbdt", "recurrent", "bert", "gpt", "neighbours") for part in ("--without", name)]
    answer = zoo(*without, "init", tmp_path / "shop", "--events", tmp_path / "e.parquet")
    assert answer.code == 0
    assert "no installed plugin offers a binary model" in answer.out
    assert not Project.open(tmp_path / "shop").tasks


def test_event_types_of_any_text_become_features(tmp_path: Path, zoo: Zoo) -> None:
    types = ('say "hi"', "back\\slash", "line\nbreak", "Größe", "{w}", "visits", "add to cart", "add-to-cart", "ninth", "x\x7fy")
    rows = timed(frame(types=types, days=100))
    rows.write_parquet(tmp_path / "e.parquet")
    report = init(zoo, tmp_path / "shop", tmp_path / "e.parquet").json
    assert set(report["event_types"]) == set(types)
    assert sum(name.startswith("event type ") for name in report["left_out"]) == 2
    subprocess.run([sys.executable, "-m", "ruff", "check", "--line-length", "130", tmp_path / "shop"], check=True)
    features = ready(zoo, tmp_path / "shop", tmp_path / "e.parquet")
    (service,) = [name for name in features.services() if name not in ("behaviour", "items", "recommendation")]
    batch = features.history(service, {"user_id": [2], "time": [(START + 100 * DAY) * 1_000_000]})
    kinds = [name for name in batch.names if name.startswith("user_") and name.endswith("_recency")]
    assert len(kinds) == 9  # eight types and the user's own
    assert Project.open(tmp_path / "shop").task("churn").own["event_type"] in types


def test_a_user_column_with_the_name_of_a_feature_is_left_out(tmp_path: Path, zoo: Zoo) -> None:
    timed(frame(days=60)).write_parquet(tmp_path / "e.parquet")
    init(zoo, tmp_path / "plain", tmp_path / "e.parquet")
    names = zoo("--repo", tmp_path / "plain", "apply", "--json").json["services"]["churn"]
    pl.DataFrame({"user_id": [1, 2], **{name: [1, 2] for name in names}, "user_note": [1, 2]}).write_parquet(
        tmp_path / "u.parquet"
    )
    report = init(zoo, tmp_path / "shop", tmp_path / "e.parquet", "--users", tmp_path / "u.parquet").json
    assert {name for name in report["left_out"] if name.startswith("users.")} == {f"users.{name}" for name in names}
    features = ready(zoo, tmp_path / "shop", tmp_path / "e.parquet")
    assert features.online("churn", {"user_id": [1]}).column("user_note").values[0] == 1


def test_a_log_that_knows_only_an_order_gets_what_works_there(tmp_path: Path, zoo: Zoo) -> None:
    rows = frame(days=30, types=("rating",)).drop("timestamp", "price")
    rows = rows.with_columns(position=pl.int_range(pl.len()).over("user_id"), stars=pl.int_range(pl.len()) % 5)
    rows.write_parquet(tmp_path / "e.parquet")
    pl.DataFrame({"item_id": range(1, 31), "category": ["a", "b", "c"] * 10}).write_parquet(tmp_path / "i.parquet")
    report = init(zoo, tmp_path / "shop", tmp_path / "e.parquet", "--items", tmp_path / "i.parquet").json
    assert (report["clock"], report["churn"], report["first"], report["windows"]) == ("order", None, None, [])
    assert report["next"][-1].endswith("recommend --user ID")
    features = ready(zoo, tmp_path / "shop", tmp_path / "e.parquet")
    assert features.services() == ("items", "recommendation", "users")
    assert zoo("--repo", tmp_path / "shop", "materialize").code == 0
    batch = features.online("users", {"user_id": [2]})
    own = rows.filter(pl.col("user_id") == 2)
    assert batch.column("user_events").values[0] == len(own)
    assert batch.column("user_items").values[0] == own["item_id"].n_unique()
    assert batch.column("items").lengths[0] == min(60, len(own))
    assert set(features.online("items", {"item_id": [1]}).names) == {"category"}


def test_a_push_through_feast_reaches_the_next_answer(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    root = tmp_path / "shop"
    init(zoo, root, files / "events.parquet")
    features = ready(zoo, root, files / "events.parquet")
    before = features.online("churn", {"user_id": [2]}).column("user_visits").values[0]
    now = pl.Series([START + 200 * DAY]).cast(pl.Int64)
    pushed = pl.DataFrame({"user_id": [2], "item_id": ["sku-1"], "event_type": ["view"], "event_id": ["e1"], "session": ["s"]})
    pushed = pushed.with_columns(price=1.0, shelf=pl.lit("top"), event_timestamp=pl.from_epoch(now).dt.replace_time_zone("UTC"))
    features.store.push("events", pushed.to_pandas())
    assert Features.open(root).online("churn", {"user_id": [2]}).column("user_visits").values[0] == before + 1


def test_identifiers_beyond_exact_floats_in_further_columns_do_no_harm(tmp_path: Path, zoo: Zoo) -> None:
    rows = timed(frame(days=20)).with_columns(category_code=pl.lit(2_053_013_555_631_882_655))
    rows.write_parquet(tmp_path / "e.parquet")
    items = pl.DataFrame({"item_id": range(1, 31), "category_id": [2_053_013_555_631_882_655, 2_053_013_555_631_882_656] * 15})
    items.write_parquet(tmp_path / "i.parquet")
    init(zoo, tmp_path / "shop", tmp_path / "e.parquet", "--items", tmp_path / "i.parquet")
    features = ready(zoo, tmp_path / "shop", tmp_path / "e.parquet")
    column = features.online("items", {"item_id": [1, 2]}).column("category_id")
    assert features.reader.view().names(str(column.dictionary))[column.values].tolist() == [
        str(i) for i in items["category_id"][:2]
    ]


# What it refuses


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path, zoo: Zoo) -> None:
    timed(frame(days=20)).write_parquet(tmp_path / "e.parquet")
    answer = init(zoo, tmp_path, tmp_path / "e.parquet")
    assert answer.code == 2
    assert "is not empty" in answer.err
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet"]
    answer = init(zoo, tmp_path / "e.parquet", tmp_path / "e.parquet")
    assert answer.code == 2
    assert "is a file" in answer.err


@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_nothing_behind(existing: bool, tmp_path: Path, zoo: Zoo) -> None:
    timed(frame(days=20)).write_parquet(tmp_path / "e.parquet")
    pl.DataFrame({"item_id": [1, 1]}).write_parquet(tmp_path / "i.parquet")
    root = tmp_path / "new" / "shop"
    if existing:
        root.mkdir(parents=True)
    answer = init(zoo, root, tmp_path / "e.parquet", "--items", tmp_path / "i.parquet")
    assert answer.code == 1
    assert "in more than one row" in answer.err
    assert list(root.iterdir()) == [] if existing else not (tmp_path / "new").exists()
    assert init(zoo, root, tmp_path / "e.parquet").code == 0


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("events.xlsx", "", 2, "unknown kind of file"),
        ("events.csv", "", 1, "is empty"),
        ("events.csv", "user_id,item_id,event_type,timestamp\n", 1, "holds no rows"),
        ("events.csv", "a,b\n1,2\n", 1, "no column holds times"),
        ("events.csv", "user_id,item_id,event_type,timestamp\n,1,v,2024-01-01T00:00:00Z\n", 1, "none of its 1 rows can be taken"),
        ("events.parquet", "not parquet", 1, "is the file whole?"),
        ("events.ndjson", "[1, 2]\n", 1, "no JSON object"),
    ],
)
def test_an_unusable_file_is_refused_with_the_reason(
    name: str, content: str, code: int, said: str, tmp_path: Path, zoo: Zoo
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    answer = init(zoo, tmp_path / "shop", tmp_path / name)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert not (tmp_path / "shop").exists()


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("shelf,weight\n1,2\n", "no column looks like 'item_id'"),
        ("item_id,weight\nseven,2\n", "holds 'seven', which is no whole number"),
        ("item_id,weight\n1,2,3\n", "is no row"),
    ],
)
def test_an_unusable_table_is_refused_with_the_reason(items: str, said: str, tmp_path: Path, zoo: Zoo) -> None:
    timed(frame(days=20)).write_parquet(tmp_path / "e.parquet")
    (tmp_path / "i.csv").write_text(items)
    answer = init(zoo, tmp_path / "shop", tmp_path / "e.parquet", "--items", tmp_path / "i.csv")
    assert answer.code == 1
    assert said in answer.err
    assert not (tmp_path / "shop").exists()


def test_text_tables_keep_what_numbers_would_lose(tmp_path: Path, zoo: Zoo) -> None:
    timed(frame(days=20, text_ids=True)).write_parquet(tmp_path / "e.parquet")
    (tmp_path / "i.csv").write_text("item_id,postcode,size,share,empty,2nd\n007,01234,4,0.5,,1\n7,99999,5,1,,1\n")
    report = init(zoo, tmp_path / "shop", tmp_path / "e.parquet", "--items", tmp_path / "i.csv").json
    table = EventLog.open(tmp_path / "shop/data/log").read_table("items")
    assert table.to_pylist() == [
        {"item_id": "007", "postcode": "01234", "size": 4, "share": 0.5},
        {"item_id": "7", "postcode": "99999", "size": 5, "share": 1.0},
    ]
    assert report["left_out"]["items.empty"] == "empty"
    assert "items.2nd" in report["left_out"]


def test_what_pandas_calls_its_index_is_no_column_of_the_log(tmp_path: Path, zoo: Zoo) -> None:
    events = tmp_path / "events.parquet"
    timed(frame()).with_columns(pl.int_range(pl.len()).alias("__index_level_0__")).write_parquet(events)
    answer = init(zoo, tmp_path / "shop", events)
    assert answer.json["left_out"]["event column __index_level_0__"] == "the index of a pandas frame"
    assert "__index_level_0__" not in answer.json["columns"]


def test_a_file_of_which_nothing_can_be_taken_fails_with_the_reason(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    root, foreign = tmp_path / "shop", tmp_path / "foreign.parquet"
    assert init(zoo, root, files / "events.parquet").code == 0
    pl.read_parquet(files / "events.parquet").head(5).with_columns(user_id=pl.lit(None, pl.Int64)).write_parquet(foreign)
    for _ in range(2):
        answer = zoo("--repo", root, "ingest", foreign)
        assert (answer.code, "no row can be taken" in " ".join(answer.err.split())) == (1, True), answer.err


def test_forgetting_somebody_twice_says_that_nothing_was_found(files: Path, tmp_path: Path, zoo: Zoo) -> None:
    root = tmp_path / "shop"
    assert init(zoo, root, files / "events.parquet").code == 0
    ready(zoo, root, files / "events.parquet")
    assert zoo("--repo", root, "forget", 7, "--json").json["found"]
    answer = zoo("--repo", root, "forget", 7)
    assert (answer.code, "Nothing was found of these people" in " ".join(answer.out.split())) == (0, True), answer.out


@pytest.mark.parametrize("sessions", [True, False])
def test_a_short_log_is_asked_about_its_sessions(sessions: bool, tmp_path: Path, zoo: Zoo) -> None:
    rows = timed(frame(days=6))
    if sessions:
        rows = rows.with_columns(user_session=pl.col("user_id").cast(pl.String) + pl.col("timestamp").dt.date().cast(pl.String))
    rows.write_parquet(tmp_path / "e.parquet")
    report = init(zoo, tmp_path / "shop", tmp_path / "e.parquet").json
    settings = Project.open(tmp_path / "shop").tasks
    assert (report["behaviour"] and report["behaviour"]["horizon"]) == ("session" if sessions else None)
    assert {"behaviour", "propensity"} <= settings.keys() if sessions else not {"behaviour", "propensity"} & settings.keys()
