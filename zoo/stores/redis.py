"""Recent events in Redis: one blob an entity, updated by compare-and-set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig

from zoo.contract import Array
from zoo.errors import FeatureError
from zoo.stores.blob import merge
from zoo.stores.online import EventOnlineStore

_ATTEMPTS = 50


class RedisEventOnlineStoreConfig(RedisOnlineStoreConfig):
    """``online_store`` in feature_store.yaml."""

    type: Literal["zoo.stores.RedisEventOnlineStore"] = "zoo.stores.RedisEventOnlineStore"

    max_events: int = 20_000
    """Events kept for one entity; windows that reach further back answer for these only."""


class RedisEventOnlineStore(EventOnlineStore, RedisOnlineStore):
    """Any number of writers: an update that meets another is tried again on what the other left."""

    # Feast's Redis store reads all views in one pipeline of hashes; ours are computed, one view at a time
    _read_features_per_fv = OnlineStore._read_features_per_fv

    def _keys(self, config: Any, entity: str, codes: Any) -> list[str]:
        return [f"{config.project}:zoo:{entity}:{int(code)}" for code in codes]

    def load(self, config: Any, entity: str, codes: Array) -> list[bytes | None]:
        if not len(codes):
            return []
        return self._answer(config, lambda client: client.mget(self._keys(config, entity, codes)))  # type: ignore[no-any-return]

    def merge(self, config: Any, entity: str, blobs: Mapping[int, bytes]) -> None:
        if not blobs:
            return
        from redis.exceptions import WatchError

        keys = self._keys(config, entity, blobs)

        def update(client: Any) -> bool:
            with client.pipeline() as pipe:
                try:
                    pipe.watch(*keys)
                    kept = pipe.mget(keys)
                    pipe.multi()
                    pipe.mset({k: merge(o, n, config.online_store.max_events) for k, o, n in zip(keys, kept, blobs.values())})
                    pipe.execute()
                except WatchError:
                    return False
            return True

        for _ in range(_ATTEMPTS):
            if self._answer(config, update):
                return
        raise FeatureError(
            f"{_ATTEMPTS} other writers came first to the same {entity} keys; push smaller batches or fewer at once"
        )

    def _answer(self, config: Any, ask: Callable[[Any], Any]) -> Any:
        from redis.exceptions import RedisError

        try:
            return ask(self._get_client(config.online_store))
        except RedisError as error:
            where = config.online_store.connection_string.split(",")[0]
            raise FeatureError(
                f"Redis at {where} does not answer: {error}. Start it, or name another in feature_store.yaml"
            ) from error
