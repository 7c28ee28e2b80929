"""A real Redis for the tests of the server, on a data folder of its own, ended with the tests."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from server.sessions import EmbeddedRedis, SessionStore


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[SessionStore]:
    """A store under a namespace of its own, so that no test sees another's sessions."""
    async with await SessionStore.open(redis_url, namespace=secrets.token_hex(4)) as opened:
        yield opened
