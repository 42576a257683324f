"""A retrieval as a Ray dataset on a local cluster of two nodes: the same answers, computed by tasks on both, none through the driver."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import tiny_shop as shop
from tiny_shop import _applied, repo

from zoo.errors import FeatureError
from zoo.events import build
from zoo.events.view import LogView
from zoo.features import Features

__all__ = ["_applied", "repo"]

TESTS = Path(__file__).parents[1]
REFS = ["user_sequence:items", "user_sequence:values", "user_windows:n_7d", "user_windows:spend", "item_windows:item_n_7d"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    found.add_node(num_cpus=1, object_store_memory=100 << 20)
    path = os.environ.get("PYTHONPATH", "")
    ray.init(address=found.address, runtime_env={"env_vars": {"PYTHONPATH": f"{TESTS}{os.pathsep}{path}"}}, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def test_blocks_are_the_partitions_and_say_what_the_table_says(cluster: Any, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    monkeypatch.setattr(build, "PARTITION", 50)
    features = Features.open(repo)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(1), 200)))
    rng = np.random.default_rng(2)
    rows = pd.DataFrame(shop.keys(rng, 60))
    rows["row"] = np.arange(60)
    rows["event_timestamp"] = pd.to_datetime(shop.START + rng.integers(0, 70, 60) * shop.DAY, unit="us", utc=True)
    job = features.store.get_historical_features(rows, REFS)
    expected = job.to_polars()
    # pushed after the answers were asked for: no task may see it
    features.append(shop.events_table(shop.random_events(np.random.default_rng(3), 50, first=200)))
    dataset = job.to_ray_dataset()
    blocks = [ray.get(ref) for ref in dataset.to_arrow_refs()]
    view = features.reader.view()
    users = [np.unique(view.codes("user_id", block["user_id"]) % 4) for block in blocks]
    assert [part.tolist() for part in users] == [[0], [1], [2], [3]]
    found = pl.concat([pl.from_arrow(block) for block in blocks]).sort("row")  # type: ignore[misc]
    assert found.equals(expected)


def test_a_log_that_a_task_cannot_see_is_an_error_that_says_so(repo: Path) -> None:
    features = Features.open(repo)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(1), 20)))
    lineage = features.reader.view().lineage()
    root = features.reader.root
    assert LogView.open(root, lineage).count == 20
    with pytest.raises(FeatureError, match="expected at least"):
        LogView.open(root, {**lineage, "events": 21})
    with pytest.raises(FeatureError, match="of the same epoch"):
        LogView.open(root, {**lineage, "epoch": 1})
