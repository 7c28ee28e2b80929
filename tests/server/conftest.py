"""A real Redis and a real server for the tests, in folders of their own, ended with the tests."""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from server_harness import LiveServer, make_settings
from server_model import make_model_folder

from server.sessions import EmbeddedRedis, SessionStore

KEYED = {"api_keys": "acme:acme-key", "operator_keys": "operator-key"}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def the_log_as_it_was() -> Iterator[None]:
    """A server that starts in this process writes its log to a stream that ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def patience_with_redis() -> Iterator[None]:
    """A disk that other programs keep busy for some seconds is no Redis that is away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SessionStore.open.__func__.__kwdefaults__, "timeout_s", 60.0)
        yield


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An embedded Redis, or the one that TEST_REDIS_URL names."""
    named = os.environ.get("TEST_REDIS_URL")
    if named:
        yield named
        return
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[SessionStore]:
    """A store under a namespace of its own, so that no test sees another's sessions."""
    async with await SessionStore.open(redis_url, namespace=secrets.token_hex(4)) as opened:
        yield opened


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of a small model for each file that asks it: once open, once asking for keys."""
    folder = tmp_path_factory.mktemp("models") / "tiny-test"
    make_model_folder(folder)
    with LiveServer(make_settings(folder, tmp_path_factory.mktemp("data")), [{}, KEYED]) as server:
        yield server
