"""A Redis that fails as servers and networks do, many writers, and readers that give up: right answers or clear errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_shop as shop
from proxy import Proxy, proxied
from test_stores import assert_parity, everyone
from tiny_shop import _applied, repo

from zoo.errors import FeatureError
from zoo.features import Features

__all__ = ["_applied", "repo"]

REDIS = '  type: zoo.stores.RedisEventOnlineStore\n  connection_string: "127.0.0.1:{port},db={db},socket_timeout=0.5"'


async def read(features: Features, rows: dict[str, list[int]]) -> Any:
    try:
        return await features.online_async("users", rows)
    finally:
        await features.aclose()


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with proxied(redis_url) as found:
        yield found


@pytest.fixture
def features(repo: Path, proxy: Proxy, redis_url: str) -> Features:
    """The shop with its events in a Redis behind the proxy, which answers so far."""
    opened = shop.opened(repo, online=REDIS.format(port=proxy.port, db=redis_url.rpartition("/")[2]))
    opened.append(shop.events_table(shop.random_events(np.random.default_rng(0), 60)))
    assert_parity(opened, everyone())
    return opened


def test_a_redis_that_refuses_is_named_and_found_again(features: Features, proxy: Proxy, redis_url: str) -> None:
    proxy.close()
    for _ in range(2):
        with pytest.raises(FeatureError, match=r"Redis at 127\.0\.0\.1:\d+ does not answer.*Start it"):
            features.online("users", {"user_id": [1]})
        with pytest.raises(FeatureError, match="does not answer"):
            asyncio.run(read(features, {"user_id": [1]}))


@pytest.mark.parametrize("cut", [0, 1, 7, 200])
def test_a_reply_that_breaks_off_is_asked_for_again_or_refused(features: Features, proxy: Proxy, cut: int) -> None:
    expected = features.online("users", {"user_id": [1, 2]})
    proxy.cut, proxy.cuts = cut, 1
    shop.assert_same(features.online("users", {"user_id": [1, 2]}), expected)  # asked once more
    proxy.cuts = 1_000
    with pytest.raises(FeatureError, match="does not answer"):
        features.online("users", {"user_id": [1, 2]})
    events = shop.events_table(shop.random_events(np.random.default_rng(1), 10, 100))
    with pytest.raises(FeatureError, match="does not answer"):
        features.append(events)
    proxy.cut = None
    assert features.append(events).added == 0  # it was durable, and is visible now
    assert_parity(features, everyone())


def test_an_append_whose_reply_breaks_off_is_not_made_twice(features: Features, proxy: Proxy) -> None:
    for n in range(4):
        proxy.cut, proxy.cuts = 0, 1
        features.append(shop.events_table(shop.random_events(np.random.default_rng(n), 5, 200 + 5 * n)))
        assert_parity(features, shop.keys(np.random.default_rng(n), 10))


def test_a_reply_that_is_late_is_an_error_within_the_deadline_and_nobody_elses_answer(features: Features, proxy: Proxy) -> None:
    first, second = {"user_id": [1]}, {"user_id": [2]}
    expected = features.online("users", second)
    proxy.flowing.clear()
    with pytest.raises(FeatureError, match="Timeout"):
        features.online("users", first)
    with pytest.raises(FeatureError, match="Timeout"):
        asyncio.run(read(features, first))
    proxy.flowing.set()
    shop.assert_same(features.online("users", second), expected)
    shop.assert_same(asyncio.run(read(features, second)), expected)


def test_a_look_at_the_log_that_fails_leaves_no_reply_to_the_next_reader(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(reader: Any) -> Any:
        raise FeatureError("the disk is gone")

    expected = features.online("users", {"user_id": [2]})
    with monkeypatch.context() as patch:
        patch.setattr(type(features.reader), "view", fails)
        with pytest.raises(FeatureError, match="the disk is gone"):
            features.online("users", {"user_id": [1]})  # Redis was asked by then
    shop.assert_same(features.online("users", {"user_id": [2]}), expected)


# Readers that give up


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_cancelled_reads_never_take_another_ones_answer(repo: Path, redis_url: str, kind: str) -> None:
    features = shop.opened(repo, online=redis_url if kind == "redis" else shop.SQLITE)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 60)))
    expected = {user: features.online("users", {"user_id": [user]}) for user in range(1, 7)}
    rng = np.random.default_rng(1)

    async def one(number: int) -> Any:
        return number % 6 + 1, await features.online_async("users", {"user_id": [number % 6 + 1]})

    async def many() -> tuple[int, int]:
        answered = cancelled = 0
        for start in range(0, 320, 64):
            tasks = [asyncio.ensure_future(one(n)) for n in range(start, start + 64)]
            while waiting := [task for task in tasks if not task.done()]:
                if rng.random() < 0.7:  # at whatever point it has reached
                    waiting[int(rng.integers(len(waiting)))].cancel()
                await asyncio.sleep(0)
            for found in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(found, asyncio.CancelledError):
                    cancelled += 1
                else:
                    user, batch = found
                    shop.assert_same(batch, expected[user])
                    answered += 1
        return answered, cancelled

    async def closing() -> tuple[int, int]:
        try:
            return await many()
        finally:
            await features.aclose()

    answered, cancelled = asyncio.run(closing())
    assert answered + cancelled == 320
    assert min(answered, cancelled) > 0


# Many writers


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_eight_writers_with_repeats_in_any_order_end_where_the_log_does(repo: Path, redis_url: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    columns = shop.random_events(rng, 160)
    shop.opened(repo, online=redis_url if kind == "redis" else shop.SQLITE)
    writers = [Features.open(repo) for _ in range(8)]  # each with connections of its own, as processes have
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            own = np.random.default_rng(number)
            mine = own.permutation([n for n in range(160) if n % 8 in (number, (number + 1) % 8)])  # each event has two writers
            for part in np.array_split(mine, 4):
                writers[number].append(shop.events_table({name: [values[i] for i in part] for name, values in columns.items()}))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert writers[0].reader.log.count() == 160
    for features in (writers[0], writers[7]):
        assert_parity(features, everyone())
