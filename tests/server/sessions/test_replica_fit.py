"""Which servers may live on one Redis together, and which Redis is none of ours."""

import json
import logging
import re
import secrets
import time

import pytest
from redis import Redis

from server.sessions import Fit, NewItem, Replica, SessionStore, StoreCorrupt, StoreRefused

pytestmark = pytest.mark.anyio

LIFETIME_S = 3600.0

FIT = Fit("tiny", "base-a", "rule-a")
OTHERS = [Fit("tiny", "base-b", "rule-a"), Fit("tiny", "base-a", "rule-b")]
SETTINGS = {"session_lifetime_s": 0}


@pytest.fixture(autouse=True)
def patience_with_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them beats by itself here, so a busy machine must not take so long for gone."""
    monkeypatch.setattr("server.sessions.replicas.REPLICA_LIFETIME_S", LIFETIME_S)


async def joined(store: SessionStore, fit: Fit = FIT, **settings: object) -> Replica:
    replica = store.replica(fit, {**SETTINGS, **settings})
    await replica.join(allow_mixed=False)
    return replica


@pytest.mark.parametrize("fit", OTHERS, ids=["base", "rule"])
async def test_another_model_waits_until_the_last_has_left(
    store: SessionStore, fit: Fit, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await joined(store), await joined(store, Fit("other name", "base-a", "rule-a"))
    await first.beat()
    assert (first.live, second.live) == (2, 2)
    await first.leave()
    with pytest.raises(StoreRefused, match=r"serves other name .*INNERLOOP_ALLOW_MIXED"):
        await joined(store, fit)
    await second.beat()
    assert second.live == 1, "whoever is refused does not count"
    await second.leave()
    assert not caplog.records
    third = await joined(store, fit)
    assert "was last served with other name" in caplog.text
    assert third.live == 1


async def test_mixed_on_purpose(store: SessionStore, caplog: pytest.LogCaptureFixture) -> None:
    first = await joined(store)
    second = store.replica(OTHERS[0], {**SETTINGS, "session_lifetime_s": 60})
    await second.join(allow_mixed=True)
    await first.beat()
    await first.beat()
    told = [r.getMessage() for r in caplog.records if "on the same Redis differs" in r.getMessage()]
    assert len(told) == 2, "each says so once"
    assert "INNERLOOP_SESSION_LIFETIME_S 60 (here 0)" in told[1]
    assert "base-b" in told[1]


async def test_a_killed_one_counts_as_gone_after_a_while(store: SessionStore, raw: Redis) -> None:
    await joined(store)
    key = store._room.keys.replicas
    (name,) = {field for field in raw.hkeys(key) if field != b"last"}
    entry = json.loads(raw.hget(key, name) or b"")
    entry["at"] -= int(LIFETIME_S * 1000) + 1
    raw.hset(key, name, json.dumps(entry))
    assert (await joined(store, OTHERS[0])).live == 1
    assert not raw.hexists(key, name)
    raw.hset(key, "last", json.dumps({"fit": 3}))
    with pytest.raises(StoreCorrupt):
        await joined(store)


async def test_a_redis_of_another_program_is_left_alone(redis_url: str, raw: Redis) -> None:
    raw.set("celery", 1)
    name = secrets.token_hex(4)
    with pytest.raises(StoreRefused, match="of another program"):
        await SessionStore.open(redis_url, namespace=name, shared=False)
    assert not raw.keys(f"{name}:*"), "nothing was written"
    async with await SessionStore.open(redis_url, namespace=name):
        pass
    async with await SessionStore.open(redis_url, namespace=name, shared=False) as known:
        await known.ping()
    raw.delete("celery")


@pytest.mark.parametrize("apart_s", [-3600.0, 3600.0])
async def test_clocks_apart_are_told_and_harm_nothing(
    store: SessionStore,
    redis_url: str,
    raw: Redis,
    apart_s: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A clock behind by more than ten minutes had pending feedback taken out of its index."""
    right = time.time
    monkeypatch.setattr("server.sessions.connection.time.time", lambda: right() + apart_s)
    namespace = store._room.keys.namespace
    with caplog.at_level(logging.WARNING):
        async with await SessionStore.open(redis_url, namespace=namespace) as wrong:
            told = re.search(r" ([\d.]+) s apart", caplog.text)
            assert told is not None
            # It is read between two readings of ours, which may lie seconds apart.
            assert abs(float(told[1]) - abs(apart_s)) < 600
            await wrong.append("t", "s", [NewItem("demonstration", {})], None, "")
            written = raw.zscore(wrong._room.keys.pending, "t/s")
    assert isinstance(written, float)
    assert abs(written / 1000 - right()) < 600
