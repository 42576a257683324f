"""Feast's extension points over the event log: sources, the offline store and the online stores.

Importing this package imports Feast (six seconds); only a Feast repository and ``zoo.features`` do.
"""

from zoo.stores.offline import EventLogOfflineStore, EventLogOfflineStoreConfig
from zoo.stores.redis import RedisEventOnlineStore, RedisEventOnlineStoreConfig
from zoo.stores.source import EventSource, TableSource
from zoo.stores.sqlite import SqliteEventOnlineStore, SqliteEventOnlineStoreConfig

__all__ = [
    "EventLogOfflineStore",
    "EventLogOfflineStoreConfig",
    "EventSource",
    "RedisEventOnlineStore",
    "RedisEventOnlineStoreConfig",
    "SqliteEventOnlineStore",
    "SqliteEventOnlineStoreConfig",
    "TableSource",
]
