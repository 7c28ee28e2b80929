"""What a clock of Redis that was set ahead, and back again, leaves behind."""

import time
from collections.abc import Callable

import pytest
from redis import Redis

from server.sessions import NewItem, SessionStore
from server.sessions.access_types import Charge
from server.sessions.replicas import Fit

pytestmark = pytest.mark.anyio

DAY_S = 24 * 3600


async def test_work_that_was_named_in_the_future_is_finished_now(
    store: SessionStore, raw: Redis
) -> None:
    await store.append("t", "s", [NewItem("demonstration", {}, "")])
    assert await store.pending_sessions(idle_s=60) == ()  # whoever appended may be at it
    raw.zadd(store._room.keys.pending, {"t/s": (time.time() + DAY_S) * 1000})
    assert [one.session_id for one in await store.pending_sessions(idle_s=60)] == ["s"]


async def test_nobody_is_shut_out_until_the_future_comes(store: SessionStore, raw: Redis) -> None:
    charge = Charge("requests", None, per_s=10.0, burst=1, amount=1)
    assert await store.access.take("t", [charge]) is None
    key = store._room.keys.rate("t", "requests")
    raw.set(key, str(int((time.time() + DAY_S) * 1e6)), px=DAY_S * 1000)
    refused = await store.access.take("t", [charge])
    assert refused is not None
    assert refused[1] <= 0.2  # seconds: as empty as a bucket of one can be


async def test_who_died_in_the_future_keeps_nobody_out(store: SessionStore, raw: Redis) -> None:
    await store.replica(Fit("a", "base-a", "rule"), {}).join(allow_mixed=False)
    replicas = store._room.keys.replicas
    for name, text in raw.hgetall(replicas).items():
        if name != b"last":
            at_ms = int((time.time() + DAY_S) * 1000)
            raw.hset(replicas, name, text.replace(b'"at":', b'"at":%d,"was":' % at_ms))
    await store.replica(Fit("b", "base-b", "rule"), {}).join(allow_mixed=False)


async def test_sessions_expire_when_both_clocks_say_so(
    store: SessionStore,
    age: Callable[[SessionStore, str, str, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await store.create("t", "s")
    age(store, "t", "s", 3600)
    right = time.time
    monkeypatch.setattr("server.sessions.directory.time.time", lambda: right() - DAY_S)
    assert await store.expire(1800) == 0  # Redis' clock may have jumped ahead
    monkeypatch.undo()
    assert await store.expire(7200) == 0
    assert await store.expire(1800) == 1
