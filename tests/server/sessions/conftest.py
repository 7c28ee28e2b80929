"""What the store's tests need besides the store: the same Redis, seen without it."""

from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from server.sessions import SessionStore

Dump = Callable[[], dict[str, object]]


@pytest.fixture
def raw(redis_url: str) -> Iterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    client.close()


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
