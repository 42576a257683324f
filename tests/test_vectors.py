"""What a model learnt of items as a feature: written beside the log, read by Feast as it comes, online and in history."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from zoo.cli.app import app
from zoo.errors import SchemaError, UsageError
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema
from zoo.events.view import LogView
from zoo.predictor import Predictor
from zoo.vectors import _table

KINDS, SIZES = ("milk", "tyres", "zoo"), ("one", "two", "six", "ten", "few", "all")
TITLES = [f"{kind} {size}" for kind in KINDS for size in SIZES]
NEW = "sku-17"
"""An item that nobody has taken."""
DAY = 86_400_000_000
START = 1_704_067_200_000_000
CUT = START + 60 * DAY

SETTINGS = """protocol = "time_cut"
test_start = 2024-03-01

[tasks.recommendation.params.bert]
model_name_or_path = "tiny-random"

[tasks.recommendation.params.bert.ranking]
mode = "text"
width = 8
hidden = 16
fades = 2
max_length = 24
epochs = 2
tokens = 400
trained_layers = 1
"""


def zoo(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app([str(each) for each in arguments], prog_name="zoo")
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that ``zoo init`` made, trained: users come daily and take items of one kind."""
    folder = tmp_path_factory.mktemp("vectors")
    draw = np.random.default_rng(0)
    rows = [
        {"user_id": user, "item_id": f"sku-{user % 3 * 6 + draw.integers(0, 5)}", "event_type": "purchase", "at": day}
        for day in range(80)
        for user in range(30)
        if draw.random() < 0.3
    ]
    events = pl.DataFrame(rows).with_columns(
        timestamp=(pl.lit(START) + pl.col("at") * DAY + pl.col("user_id")).cast(pl.Datetime("us", "UTC"))
    )
    events.drop("at").write_parquet(folder / "events.parquet")
    items = pl.DataFrame({"item_id": [f"sku-{number}" for number in range(18)], "title": TITLES})
    items.write_parquet(folder / "items.parquet")
    root = folder / "shop"
    assert zoo("init", root, "--events", folder / "events.parquet", "--items", folder / "items.parquet") == 0
    settings = root / "zoo.toml"
    text = settings.read_text()
    text = re.sub(
        r'members = .*\nevent_type = "purchase"\nprotocol = .*\n', 'members = ["bert"]\nevent_type = "purchase"\n', text
    )
    settings.write_text(text.rstrip() + "\n" + SETTINGS)
    assert zoo("--repo", root, "apply") == 0
    assert zoo("--repo", root, "ingest", folder / "events.parquet") == 0
    assert zoo("--repo", root, "train", "recommendation") == 0
    return root


def ask(root: Path, capfd: pytest.CaptureFixture[str], *more: object) -> dict[str, Any]:
    capfd.readouterr()
    assert zoo("--repo", root, "item-vectors", "recommendation@1", *more, "--json") == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def store(root: Path) -> Any:
    from feast import FeatureStore

    return FeatureStore(repo_path=str(root))


def expected(root: Path) -> dict[str, list[float]]:
    """By item, as the member itself says them, in training's codes."""
    predictor = Predictor.load("recommendation@1", repo=root)
    view = predictor.features.reader.view()
    catalogue = view.catalogue(view.item_dictionaries())
    [member] = predictor.ensemble.members
    vocabulary = predictor.ensemble.known(catalogue)
    batch = predictor.features.described(predictor.features.online("recommendation", {"user_id": [0]}))
    own = member.fitted.item_vectors(vocabulary.apply(batch).catalogue)
    ids = view.ids("item_id", vocabulary.log_codes("item_id", np.arange(len(own)))).to_pylist()
    return {name: row for name, row in zip(ids, own.tolist(), strict=True) if name is not None}


def test_vectors_are_read_back_through_feast_online_and_in_history(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = ask(root, capfd)
    assert said["views"] == []
    said = ask(root, capfd, "--declare")
    assert said == {
        "model": "recommendation@1",
        "member": "bert",
        "table": "item_vectors",
        "items": 18,
        "width": 8,
        "valid_from": CUT,
        "views": ["item_vectors"],
    }
    known = expected(root)
    assert len(known) == 18
    feast = store(root)
    names = ["item_vectors:vector", "item_vectors:model"]
    asked = ["sku-3", NEW, "sku-3", "never heard of"]
    online = feast.get_online_features(names, [{"item_id": name} for name in asked]).to_dict()
    np.testing.assert_array_equal(online["vector"][:3], [known[name] for name in asked[:3]])
    assert online["vector"][3] is None
    assert online["model"][:2] == ["recommendation@1/bert"] * 2
    moments = [CUT, CUT - 1, CUT + 7 * DAY, CUT]
    rows = pd.DataFrame(
        {"item_id": ["sku-3", "sku-3", NEW, "never heard of"], "event_timestamp": pd.to_datetime(moments, unit="us", utc=True)}
    )
    history = feast.get_historical_features(rows, names).to_df()
    assert [list(each) for each in history["vector"]] == [known["sku-3"], [], known[NEW], []]
    assert history["model"].isna().tolist() == [False, True, False, True]


def test_vectors_of_items_that_are_taken_together_are_near(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ask(root, capfd)
    table = EventLog.open(root / "data/log").read_table("item_vectors")
    assert table.schema.field("vector").type == pa.list_(pa.float32())
    found = dict(zip(table["item_id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True))
    unit = np.array([found[f"sku-{number}"] / np.linalg.norm(found[f"sku-{number}"]) for number in range(18)])
    alike = unit @ unit.T
    kind = np.arange(18) // 6
    same = (kind[:, None] == kind) & ~np.eye(18, dtype=bool)
    assert alike[same].mean() > alike[kind[:, None] != kind].mean() + 0.1


def test_other_models_and_other_files_are_refused_with_the_remedy(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for more, remedy in (
        (("--member", "gru"), "choose one of: bert"),
        (("--view", "no view"), "expected letters"),
        (("--view", "services", "--declare"), "services.py is there already"),
    ):
        assert zoo("--repo", root, "item-vectors", "recommendation@1", *more) != 0
        assert remedy in " ".join(capfd.readouterr().err.split())


def test_a_column_of_lists_is_kept_and_answers_as_of_then(tmp_path: Path) -> None:
    log = EventLog.create(tmp_path / "log", LogSchema())
    rows = [
        {"event_id": str(item), "user_id": 1, "item_id": item, "event_type": "view", "time": START + item} for item in (1, 2, 3)
    ]
    log.append(rows)
    since = pa.array([None, START + 10, START + 10], pa.timestamp("us", "UTC"))
    dated = pa.table(
        {"item_id": [1, 1, 2], "v": pa.array([[1.0], [2.0, 3.0], None], pa.list_(pa.float64())), "valid_from": since}
    )
    log.put_table("vectors", dated)
    log.put_table("plain", pa.table({"item_id": [3, 1], "v": pa.array([[5.0, 6.0], [7.0, 8.0]], pa.list_(pa.float32(), 2))}))
    view = LogView.open(log.root)
    codes = view.codes("item_id", [1, 1, 2, 3, 99])
    column = view.entity_table("vectors").attributes["v"].at(codes, np.array([START, START + 10, START + 10, START + 10, START]))
    assert column.values.tolist() == [1, 2, 3]
    assert column.offsets is not None
    assert column.offsets.tolist() == [0, 1, 3, 3, 3, 3]
    plain = view.entity_table("plain").attributes["v"].at(codes, np.zeros(5, np.int64))
    assert plain.values.tolist() == [7, 8, 7, 8, 5, 6]
    assert view.entity_table("plain").block == {}
    with pytest.raises(SchemaError, match="lists of floats"):
        log.put_table("odd", pa.table({"item_id": [1], "v": pa.array([["a"]])}))


def test_more_numbers_than_a_column_of_lists_holds_are_refused() -> None:
    many = np.broadcast_to(np.float32(0), (3_000_000, 768))
    with pytest.raises(UsageError, match=r"3,000,000 vectors of 768 numbers are more than a column of lists holds"):
        _table(None, many, "recommendation@1/bert", None)
