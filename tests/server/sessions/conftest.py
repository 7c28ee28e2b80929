"""What the store's tests need besides the store: the same Redis, seen without it."""

import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from server.sessions import EmbeddedRedis, SessionStore

Dump = Callable[[], dict[str, object]]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a busy machine is not lost: a child that starts, or a free connection."""
    monkeypatch.setitem(EmbeddedRedis.__init__.__kwdefaults__, "start_timeout_s", 600.0)
    for module in ("link", "cluster"):
        monkeypatch.setattr(f"server.sessions.{module}.CONNECTION_WAIT_S", 600.0)


@pytest.fixture
def raw(redis_url: str) -> Iterator[Redis]:
    scheme, _, rest = redis_url.partition("+cluster://")
    if not rest:
        client = Redis.from_url(redis_url)
    else:  # a Cluster's client has the same methods
        client = cast(Redis, RedisCluster.from_url(f"{scheme}://{rest.split(',')[0]}"))
    yield client
    client.close()


@pytest.fixture
def age(raw: Redis) -> Callable[[SessionStore, str, str, float], None]:
    """Sets a session back, as if it had not been made, changed or used for so many seconds."""

    def set_back(store: SessionStore, tenant: str, session_id: str, seconds: float) -> None:
        at_ms, keys = int((time.time() - seconds) * 1000), store._room.keys
        times = dict.fromkeys(("created_ms", "updated_ms", "used_ms"), at_ms)
        raw.hset(keys.session(tenant, session_id).meta, mapping=times)
        for index in (keys.updated(tenant), keys.created(tenant)):
            raw.zadd(index, {session_id: at_ms})

    return set_back


@pytest.fixture
def keys_of(raw: Redis) -> Callable[[SessionStore], set[str]]:
    """All keys under a store's namespace."""

    def scan(store: SessionStore) -> set[str]:
        namespace = store._room.keys.namespace
        return {key.decode() for key in raw.scan_iter(f"{namespace}:*", count=1000)}

    return scan


@pytest.fixture
def dump_of(
    raw: Redis, keys_of: Callable[[SessionStore], set[str]]
) -> Callable[[SessionStore], dict[str, object]]:
    """Everything under a store's namespace, to see that nothing changed."""

    def dump(store: SessionStore) -> dict[str, object]:
        return {key: raw.dump(key) for key in keys_of(store)}

    return dump
