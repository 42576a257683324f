"""Recent events in Redis: one string an entity, changed by scripts, each of which is one step to every other client.

A script touches many keys, so a Redis Cluster is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import numpy as np
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig

from zoo.contract import Array
from zoo.deadline import left
from zoo.errors import FeatureError
from zoo.stores.frames import IDENTITY
from zoo.stores.online import EventOnlineStore, Reply
from zoo.stores.packing import Change
from zoo.stores.recent import Space

_TIMEOUT = 5
"""Seconds to wait for an answer where the connection string does not say (``socket_timeout=``)."""
_BYTES = 8 << 20
"""Bytes written in one script: a server does nothing else meanwhile."""
_SCAN = 1_000
_CONNECTIONS = 64
"""Connections of one event loop; further reads wait for one."""

# KEYS: watermark, values. ARGV: the watermark before and after, frames.
_APPEND = """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return false end
local lengths = {}
for i = 2, #KEYS do lengths[i - 1] = redis.call('APPEND', KEYS[i], ARGV[i + 1]) end
redis.call('SET', KEYS[1], ARGV[2])
return lengths
"""
# KEYS: record, values. ARGV: record, bytes that tell a value, then of each its length, those bytes, its successor.
_EXCHANGE = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local others = {}
for i = 2, #KEYS do
    local at = 3 * i - 3
    if redis.call('STRLEN', KEYS[i]) == tonumber(ARGV[at]) and redis.call('GETRANGE', KEYS[i], 0, ARGV[2] - 1) == ARGV[at + 1] then
        redis.call('SET', KEYS[i], ARGV[at + 2])
    else
        others[#others + 1] = i - 2
    end
end
return others
"""
# KEYS: record. ARGV: record before and after.
_MOVE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
# KEYS: record, watermark. ARGV: record, watermark.
_FINISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if tonumber(ARGV[2]) > tonumber(redis.call('GET', KEYS[2]) or '0') then redis.call('SET', KEYS[2], ARGV[2]) end
redis.call('DEL', KEYS[1])
return 1
"""


class RedisEventOnlineStoreConfig(RedisOnlineStoreConfig):
    """``online_store`` in feature_store.yaml."""

    type: Literal["zoo.stores.RedisEventOnlineStore"] = "zoo.stores.RedisEventOnlineStore"

    max_events: int = 20_000
    """Events kept for one entity; windows that reach further back answer for these only."""


class RedisEventOnlineStore(EventOnlineStore, RedisOnlineStore):
    """Any number of writers and readers, in threads or in one event loop at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._idle: tuple[Any, int, list[Any]] = (None, 0, [])
        self._loop: Any = None
        self._asking: set[asyncio.Future[Any]] = set()

    @staticmethod
    def _parse_connection_string(connection_string: str) -> Any:
        nodes, options = RedisOnlineStore._parse_connection_string(connection_string)
        return nodes, {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT, **options}

    def _get_client(self, online_store_config: Any) -> Any:
        if not self._client:
            from redis.backoff import NoBackoff
            from redis.exceptions import ConnectionError
            from redis.retry import Retry

            # once more at once, for a connection that a restarted server dropped; by default the client waits for seconds
            super()._get_client(online_store_config).set_retry(Retry(NoBackoff(), 1, (ConnectionError,)))
        return self._client

    def load(self, config: Any, space: Space, codes: Mapping[str, Array]) -> tuple[dict[str, list[bytes | None]], int]:
        return self.ask(config, space, codes).read()

    def ask(self, config: Any, space: Space, codes: Mapping[str, Array]) -> Reply:
        sent = self._answer(config, lambda client: self._send(client.connection_pool, ("MGET", *_asked(space, codes))))
        return _Reply(sent, config, codes)

    def _send(self, pool: Any, command: Sequence[Any]) -> _Sent:
        if self._idle[0] is not pool or self._idle[1] != os.getpid():  # a child of a fork has its own
            self._idle = (pool, os.getpid(), [])
        return _Sent(pool, self._idle[2], command)

    async def load_async(
        self, config: Any, space: Space, codes: Mapping[str, Array]
    ) -> tuple[dict[str, list[bytes | None]], int]:
        from redis.exceptions import RedisError

        keys = _asked(space, codes)
        client = await self._get_client_async(config.online_store)
        # A reply that nobody waits for any longer is read to its end all the same, so that the connection's next one is its own.
        asking = asyncio.ensure_future(client.mget(keys))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        try:
            return _split(codes, await asyncio.wait_for(asyncio.shield(asking), left()))
        except (asyncio.CancelledError, TimeoutError) as error:
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
            if isinstance(error, TimeoutError):
                raise _unanswered(config, error) from error
            raise
        except RedisError as error:
            raise _unanswered(config, error) from error

    async def _get_client_async(self, online_store_config: Any) -> Any:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError

        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections belong to the loop that made them
            nodes, options = self._parse_connection_string(online_store_config.connection_string)
            options = {"retry": Retry(NoBackoff(), 1, (ConnectionError,)), **nodes[0], **options}
            pool = BlockingConnectionPool(max_connections=_CONNECTIONS, timeout=options["socket_timeout"], **options)
            self._client_async, self._loop = Redis.from_pool(pool), loop
        return self._client_async

    async def close(self) -> None:
        """Feast's: close the connections of this event loop; a loop that ends without it leaves them to the garbage collector."""
        client, self._client_async, self._loop = self._client_async, None, None
        await asyncio.gather(*self._asking, return_exceptions=True)
        if client is not None:
            await client.aclose(close_connection_pool=True)

    def append(
        self, config: Any, space: Space, start: int, stop: int, frames: Sequence[tuple[str, int, bytes]]
    ) -> list[int] | None:
        keys = [f"{space.name}:held", *(f"{space.name}:{entity}:{code}" for entity, code, _ in frames)]
        found = self._run(config, _APPEND, keys, [start, stop, *(frame for *_, frame in frames)])
        return None if found is None else list(found)

    def exchange(self, config: Any, space: Space, change: Change | None, record: str = "", then: str = "") -> list[int] | None:
        failed: list[int] = []
        copying = f"{space.name}:copying"
        entity, codes, olds, news = change or Change("", (), (), ())
        ends = np.cumsum([len(new) for new in news]) // _BYTES
        begins = [0, *(np.flatnonzero(np.diff(ends)) + 1).tolist()] if len(news) else []
        for begin, end in zip(begins, [*begins[1:], len(news)]):
            keys = [f"{space.name}:{entity}:{code}" for code in codes[begin:end]]
            old, new = olds[begin:end], news[begin:end]
            added = self._add(config, copying, record, keys, new) if record and not any(old) else False
            if added:
                continue
            told = [x for o, n in zip(old, new) for x in (len(o or b""), (o or b"")[:IDENTITY], n)]
            found = None if added is None else self._run(config, _EXCHANGE, [copying, *keys], [record, IDENTITY, *told])
            if found is None:
                return None
            failed += [begin + i for i in found]
        if then and not failed and not self._run(config, _MOVE, [copying], [record, then]):
            return None
        return failed

    def _add(self, config: Any, copying: str, record: str, keys: Sequence[str], values: Sequence[bytes]) -> bool | None:
        """Write values where none is: True if so, False (and nothing written) where there is one, None where the record is another.

        The server does this in a third of the time that a script takes.
        """
        from redis.exceptions import WatchError

        def ask(client: Any) -> bool | None:
            with client.pipeline() as pipe:
                pipe.watch(copying)
                if pipe.get(copying) != record.encode():
                    return None
                pipe.multi()
                pipe.msetnx(dict(zip(keys, values)))
                try:
                    return bool(pipe.execute()[0])
                except WatchError:
                    return None

        added: bool | None = self._answer(config, ask)
        return added

    def copying(self, config: Any, space: Space, record: str = "") -> str:
        key = f"{space.name}:copying"
        if record:
            self._answer(config, lambda client: client.set(key, record, nx=True))
        return (self._answer(config, lambda client: client.get(key)) or b"").decode()

    def finish(self, config: Any, space: Space, record: str, count: int) -> bool:
        return bool(self._run(config, _FINISH, [f"{space.name}:copying", f"{space.name}:held"], [record, count]))

    def names(self, config: Any, log: str) -> list[Space]:
        first = f"{config.project}:zoo:{log}:"
        found = self._answer(
            config, lambda client: [key.decode() for key in client.scan_iter(f"{_escaped(first)}*", count=_SCAN)]
        )
        return [Space(config.project, log, first + rest) for rest in sorted({key[len(first) :].split(":")[0] for key in found})]

    def values(self, config: Any, space: Space, entity: str) -> Iterator[tuple[int, bytes]]:
        first, seen = f"{space.name}:{entity}:", set()
        for key in self._answer(config, lambda client: list(client.scan_iter(f"{_escaped(first)}*", count=_SCAN))):
            value = None if key in seen else self._answer(config, lambda client: client.get(key))  # noqa: B023 - called at once
            seen.add(key)
            if value is not None:
                yield int(key[len(first) :]), value

    def drop(self, config: Any, space: Space) -> None:
        # the watermark first: who reads meanwhile then brings in what is gone
        self._answer(config, lambda client: client.unlink(f"{space.name}:held"))
        self._clear(config, f"{space.name}:")

    def _clear(self, config: Any, first: str) -> None:
        def clear(client: Any) -> None:
            found = client.scan_iter(f"{_escaped(first)}*", count=_SCAN)
            while some := list(islice(found, _SCAN)):
                client.unlink(*some)

        self._answer(config, clear)

    def _run(self, config: Any, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The script's answer; it is sent to the server where that does not know it, and goes by its digest from then on."""
        from redis.exceptions import NoScriptError

        command = ("EVALSHA", _digest(script), len(keys), *keys, *arguments)

        def ask(client: Any) -> Any:
            try:
                return self._send(client.connection_pool, command).reply()
            except NoScriptError:
                client.script_load(script)
                return self._send(client.connection_pool, command).reply()

        return self._answer(config, ask)

    def erase(self, config: Any) -> None:
        """Nothing is left to do: what Redis unlinked it holds no longer."""

    def teardown(self, config: Any, tables: Any, entities: Any) -> None:
        self._clear(config, f"{config.project}:zoo:")
        super().teardown(config, tables, entities)

    def _answer(self, config: Any, ask: Callable[[Any], Any]) -> Any:
        from redis.exceptions import RedisError

        try:
            return ask(self._get_client(config.online_store))
        except RedisError as error:
            raise _unanswered(config, error) from error


@lru_cache
def _digest(script: str) -> str:
    """By which Redis knows a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


class _Sent:
    """A command on its way, which is sent once more where the server dropped the connection. Either method is called, once.

    Connections are kept between commands, and none is with a reply unread. A client's own command would count, measure and look at the
    socket, which takes longer than the server does. Under a deadline neither connecting nor the reply is waited for beyond it.
    """

    __slots__ = ("_command", "_connection", "_idle", "_pool")

    def __init__(self, pool: Any, idle: list[Any], command: Sequence[Any]) -> None:
        self._pool, self._idle, self._command = pool, idle, command
        try:
            self._connection = idle.pop()
        except IndexError:
            # the pool would connect with the usual timeout
            self._connection = pool.get_connection() if left() is None else pool.connection_class(**pool.connection_kwargs)
        self._do(self._write, self._write)

    def reply(self) -> Any:
        found = self._do(self._connection.read_response, self._again)
        self._idle.append(self._connection)
        return found

    def close(self) -> None:
        """The reply may still come, and is nobody's."""
        self._connection.disconnect()
        self._pool.release(self._connection)

    def _write(self) -> None:
        self._connection.send_packed_command(self._connection.pack_command(*self._command))

    def _again(self) -> Any:
        self._write()
        return self._connection.read_response()

    def _do(self, first: Callable[[], Any], then: Callable[[], Any]) -> Any:
        """What the first gives, or, where the connection is lost, the other one."""
        from redis.exceptions import ConnectionError

        try:
            try:
                return self._timely(first)
            except ConnectionError:
                self._connection.disconnect()
                return self._timely(then)
        except BaseException:
            self.close()
            raise

    def _timely(self, work: Callable[[], Any]) -> Any:
        seconds, connection = left(), self._connection
        if seconds is None:
            return work()
        usual = connection.socket_timeout, connection.socket_connect_timeout
        _wait_for(connection, max(seconds, 0.001), max(seconds, 0.001))
        try:
            return work()
        finally:
            _wait_for(connection, *usual)


class _Reply(Reply):
    def __init__(self, sent: _Sent, config: Any, codes: Mapping[str, Array]) -> None:
        self._sent, self._config, self._codes = sent, config, codes

    def read(self) -> tuple[dict[str, list[bytes | None]], int]:
        from redis.exceptions import RedisError

        try:
            return _split(self._codes, self._sent.reply())
        except RedisError as error:
            raise _unanswered(self._config, error) from error

    def close(self) -> None:
        self._sent.close()


def _wait_for(connection: Any, reply: float | None, connected: float | None) -> None:
    """Seconds that a connection, open or not, waits for each."""
    connection.socket_timeout, connection.socket_connect_timeout = reply, connected
    if connection._sock is not None:
        connection._sock.settimeout(reply)


def _unanswered(config: Any, error: Exception) -> FeatureError:
    where = config.online_store.connection_string.split(",")[0]
    told = str(error) or "not by the deadline"
    return FeatureError(f"Redis at {where} does not answer: {told}. Start it, or name another in feature_store.yaml")


def _asked(space: Space, codes: Mapping[str, Array]) -> list[str]:
    name = space.name
    return [f"{name}:held", *(f"{name}:{entity}:{code}" for entity, own in codes.items() for code in own.tolist())]


def _split(codes: Mapping[str, Array], found: list[bytes | None]) -> tuple[dict[str, list[bytes | None]], int]:
    values, at = {}, 1
    for entity, own in codes.items():
        values[entity] = found[at : at + len(own)]
        at += len(own)
    return values, int(found[0] or 0)


def _escaped(text: str) -> str:
    """A text that SCAN's pattern takes as it is."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
