"""What a retrieval gives: tables, frames and batches that say the same, at one version of the log."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import tiny_shop as shop
from tiny_shop import _applied, repo

from zoo.errors import UsageError
from zoo.events.evaluate import Evaluator
from zoo.features import Features

__all__ = ["_applied", "repo"]

VIEWS = ("user_sequence", "user_windows", "overlap", "item_windows", "user_profile")


def filled(repo: Path) -> Features:
    features: Features = shop.opened(repo)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(1), 120)))
    return features


def asked(features: Features, number: int = 50) -> Any:
    rng = np.random.default_rng(2)
    keys: Any = shop.keys(rng, number)
    times = pd.to_datetime(shop.START + rng.integers(0, 70, number) * shop.DAY, unit="us", utc=True)
    refs = [f"{view}:{field.name}" for view in VIEWS for field in features.store.get_feature_view(view).features]
    return features.store.get_historical_features(pd.DataFrame(keys | {"event_timestamp": times}), refs)


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_batches_are_the_table_piece_by_piece_whatever_is_committed_meanwhile(repo: Path, size: int) -> None:
    features = filled(repo)
    whole = asked(features).to_arrow()
    parts = asked(features).to_arrow_batches(size)
    found = [next(parts)]
    features.append(shop.events_table(shop.random_events(np.random.default_rng(3), 60, first=120)))
    found += list(parts)
    assert [len(part) for part in found] == [min(size, 50 - at) for at in range(0, 50, size)]
    assert pl.from_arrow(pa.concat_tables(found)).equals(pl.from_arrow(whole))  # type: ignore[arg-type]


def test_a_table_answered_in_parts_by_threads_is_the_table(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = filled(repo)
    whole = asked(features, 200).to_arrow()
    monkeypatch.setattr("zoo.stores.job._LARGE", 23)
    parts = asked(features, 200).to_arrow()
    assert parts["items"].num_chunks == 9
    assert pl.from_arrow(parts).equals(pl.from_arrow(whole))  # type: ignore[arg-type]


def test_a_large_logs_table_is_shared_out_by_partition(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asked(filled(repo), 200).to_arrow()
    monkeypatch.setattr("zoo.events.build.PARTITION", 20)
    monkeypatch.setattr("zoo.events.partitions._MANY", 40)
    monkeypatch.setattr("zoo.stores.job._SMALL", 10)
    shutil.rmtree(repo / "data" / "log" / "index")
    seen: set[str] = set()
    answer = Evaluator.evaluate

    def noted(own: Evaluator, *asked: Any) -> Any:
        seen.add(threading.current_thread().name.partition("_")[0])
        return answer(own, *asked)

    monkeypatch.setattr(Evaluator, "evaluate", noted)
    features = Features.open(repo)
    assert len(features.reader.view().partitions("user_id")) > 1
    parts = asked(features, 200).to_arrow()
    assert seen == {"partitions"}
    assert parts["items"].num_chunks == 1
    assert pl.from_arrow(parts).equals(pl.from_arrow(whole))  # type: ignore[arg-type]
    monkeypatch.setattr("zoo.stores.job._MOST", 60)
    parts = asked(features, 200).to_arrow()
    assert parts["items"].num_chunks == 4
    assert pl.from_arrow(parts).equals(pl.from_arrow(whole))  # type: ignore[arg-type]
    seen.clear()
    asked(features, 40).to_arrow()
    assert "partitions" not in seen


def test_a_table_that_is_there_is_not_computed_again(repo: Path) -> None:
    job = asked(filled(repo))
    whole = job.to_arrow()
    part = list(job.to_arrow_batches(20))[1]
    assert part["items"].chunk(0).buffers()[1].address == whole["items"].chunk(0).buffers()[1].address


def test_a_polars_frame_is_the_table(repo: Path) -> None:
    job = asked(filled(repo))
    frame = job.to_polars()
    assert isinstance(frame, pl.DataFrame)
    assert frame.to_dict(as_series=False)["items"] == job.to_arrow()["items"].to_pylist()
    assert frame.shape == (50, job.to_arrow().num_columns)


def test_batches_of_nothing_are_refused(repo: Path) -> None:
    features = filled(repo)
    with pytest.raises(UsageError, match="batches of 0 rows; expected at least 1"):
        next(asked(features).to_arrow_batches(0))
    with pytest.raises(UsageError, match="batches of 0 rows; expected at least 1"):
        features.history_batches("users", {"user_id": [1], "time": [shop.END]}, 0)


def test_history_in_batches_is_history(repo: Path) -> None:
    features = filled(repo)
    rng = np.random.default_rng(4)
    rows = {**shop.keys(rng, 30), "time": shop.START + rng.integers(0, 70, 30) * shop.DAY}
    whole = features.history("shop", rows, context={"user_id": "float64"})
    parts = features.history_batches("shop", rows, 8, context={"user_id": "float64"})
    features.append(shop.events_table(shop.random_events(np.random.default_rng(5), 60, first=120)))
    for number, part in enumerate(parts):
        shop.assert_same(part, whole.take(np.arange(8 * number, min(8 * number + 8, 30))))
    assert number == 3


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_times_are_taken_as_feast_takes_them_where_it_is_told_to_leave_them(repo: Path, zone: str | None) -> None:
    features = filled(repo)
    times = pd.to_datetime(shop.START + np.arange(50) * shop.DAY, unit="us")
    rows = pd.DataFrame(
        {**shop.keys(np.random.default_rng(2), 50), "event_timestamp": times if zone is None else times.tz_localize(zone)}
    )
    refs = [f"user_windows:{field.name}" for field in features.store.get_feature_view("user_windows").features]
    coerced = features.store.get_historical_features(rows, refs).to_arrow()
    features.store.config.coerce_tz_aware = False
    assert features.store.get_historical_features(rows, refs).to_arrow().equals(coerced)
