"""Recent events in Redis: one blob an entity, updated by compare-and-set."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig

from zoo.contract import Array
from zoo.errors import FeatureError
from zoo.stores.blob import merge
from zoo.stores.online import EventOnlineStore

_ATTEMPTS = 50
_TIMEOUT = 5
"""Seconds to wait for an answer where the connection string does not say (``socket_timeout=``)."""
_RAISE = """
local held = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[1]) > held then redis.call('SET', KEYS[1], ARGV[1]) end
"""


class RedisEventOnlineStoreConfig(RedisOnlineStoreConfig):
    """``online_store`` in feature_store.yaml."""

    type: Literal["zoo.stores.RedisEventOnlineStore"] = "zoo.stores.RedisEventOnlineStore"

    max_events: int = 20_000
    """Events kept for one entity; windows that reach further back answer for these only."""


class RedisEventOnlineStore(EventOnlineStore, RedisOnlineStore):
    """Any number of writers: an update that meets another is tried again on what the other left."""

    chunk = 250  # a batch that meets another writer is done again, so it is kept small

    # Feast's Redis store reads all views in one pipeline of hashes; ours are computed, one view at a time
    _read_features_per_fv = OnlineStore._read_features_per_fv
    _read_features_per_fv_async = OnlineStore._read_features_per_fv_async

    @staticmethod
    def _parse_connection_string(connection_string: str) -> Any:
        nodes, options = RedisOnlineStore._parse_connection_string(connection_string)
        return nodes, {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT, **options}

    def _get_client(self, online_store_config: Any) -> Any:
        if not self._client:
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            # once more at once, for a connection that a restarted server dropped; by default the client waits for seconds
            super()._get_client(online_store_config).set_retry(Retry(NoBackoff(), 1))
        return self._client

    def load(self, config: Any, log: str, entity: str, codes: Array) -> tuple[list[bytes | None], int]:
        keys = [_held(config, log), *_keys(config, log, entity, codes.tolist())]
        held, *blobs = self._answer(config, lambda client: client.mget(keys))
        return blobs, int(held or 0)

    def merge(self, config: Any, log: str, entity: str, blobs: Mapping[int, bytes], *, whole: bool) -> None:
        if not blobs:
            return
        from redis.exceptions import WatchError

        keys, limit = _keys(config, log, entity, blobs), config.online_store.max_events

        def update(client: Any) -> bool:
            with client.pipeline() as pipe:
                try:
                    pipe.watch(*keys)
                    rows = [
                        (key, old, merge(old, new, limit, whole=whole))
                        for key, old, new in zip(keys, pipe.mget(keys), blobs.values())
                    ]
                    changed = {key: blob for key, old, blob in rows if blob is not old}
                    if changed:
                        pipe.multi()
                        pipe.mset(changed)
                        pipe.execute()
                except WatchError:
                    return False
            return True

        for attempt in range(_ATTEMPTS):
            if self._answer(config, update):
                return
            time.sleep(random.random() * min(0.001 * 2**attempt, 0.1))
        raise FeatureError(
            f"{_ATTEMPTS} other writers came first to the same {entity} keys; push smaller batches or fewer at once"
        )

    def mark(self, config: Any, log: str, count: int) -> None:
        self._answer(config, lambda client: client.eval(_RAISE, 1, _held(config, log), count))

    def teardown(self, config: Any, tables: Any, entities: Any) -> None:
        def clear(client: Any) -> None:
            for key in client.scan_iter(f"{config.project}:zoo:*", count=1000):
                client.unlink(key)

        self._answer(config, clear)
        super().teardown(config, tables, entities)

    def _answer(self, config: Any, ask: Callable[[Any], Any]) -> Any:
        from redis.exceptions import RedisError

        try:
            return ask(self._get_client(config.online_store))
        except RedisError as error:
            where = config.online_store.connection_string.split(",")[0]
            raise FeatureError(
                f"Redis at {where} does not answer: {error}. Start it, or name another in feature_store.yaml"
            ) from error


def _held(config: Any, log: str) -> str:
    return f"{config.project}:zoo:{log}:held"


def _keys(config: Any, log: str, entity: str, codes: Iterable[int]) -> list[str]:
    return [f"{config.project}:zoo:{log}:{entity}:{code}" for code in codes]
