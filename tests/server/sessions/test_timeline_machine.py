"""The list by time against a plain-Python model, with writers that die half way and older servers.

Whatever is in the indexes, a walk over the pages misses no session and shows none that is gone.
Once no write can be under way the indexes are mended, and order and totals are exact.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from redis import Redis
from state_machines import run_machine

from server.sessions import NewItem, Pointer, SessionSort, SessionStore, scripts, timeline

names = st.sampled_from([("t", "a"), ("t", "b"), ("t", "c/{}"), ("u", "a"), ("u", "ä")])
sorts = st.sampled_from(["updated_at", "created_at"])
ITEM = NewItem("rating", {})


class TimelineMachine(RuleBasedStateMachine):
    url = ""
    raw: Redis

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        opened = SessionStore.open(self.url, namespace=f"timeline-{secrets.token_hex(4)}")
        self.store = self.runner.run(opened)
        self.alive: set[tuple[str, str]] = set()

    def teardown(self) -> None:
        for name in [("t", "a"), ("t", "b"), ("t", "c/{}"), ("u", "a"), ("u", "ä")]:
            self.runner.run(self.store.delete(*name))
        self.runner.run(self.store.aclose())
        self.runner.close()

    @rule(name=names)
    def append(self, name: tuple[str, str]) -> None:
        self.runner.run(self.store.append(*name, [ITEM], "key", "hash"))  # a repetition, later
        self.runner.run(self.store.append(*name, [ITEM]))
        self.alive.add(name)

    @rule(name=names)
    def repeat(self, name: tuple[str, str]) -> None:
        self.runner.run(self.store.append(*name, [ITEM], "key", "hash"))
        self.alive.add(name)

    @rule(name=names)
    def pin(self, name: tuple[str, str]) -> None:
        if name in self.alive:
            self.runner.run(self.store.pin(*name, pinned=True))
            self.runner.run(self.store.pin(*name, pinned=False))

    @rule(name=names)
    def delete(self, name: tuple[str, str]) -> None:
        assert self.runner.run(self.store.delete(*name)) == (name in self.alive)
        self.alive.discard(name)

    @rule(name=names)
    def die_before_writing(self, name: tuple[str, str]) -> None:
        room = self.store._room
        commands = room.announcement(*name)
        self.runner.run(room.connection.read_batch(commands, scattered=True))

    @rule(name=names)
    def die_deleting(self, name: tuple[str, str]) -> None:
        room = self.store._room
        session = room.keys.session(*name)
        keys = [*session.scripted(), session.completions, session.tokens]
        self.runner.run(room.connection.run(scripts.DELETE, keys, [session.root, ""]))
        self.alive.discard(name)

    @rule(name=names)
    def older_server_appends(self, name: tuple[str, str]) -> None:
        """It keeps the index by name only."""
        with self.times_as_they_were(name):
            self.append(name)

    @rule(name=names)
    def older_server_deletes(self, name: tuple[str, str]) -> None:
        with self.times_as_they_were(name):
            self.delete(name)

    @contextmanager
    def times_as_they_were(self, name: tuple[str, str]) -> Iterator[None]:
        keys = self.store._room.keys.indexes(name[0])[1:]
        member = self.store._room.announcement(*name)[1][6]
        known = [self.raw.zscore(key, member) for key in keys]
        yield
        for key, score in zip(keys, known, strict=True):
            if score is None:
                self.raw.zrem(key, member)
            else:
                self.raw.zadd(key, {member: score})

    @rule()
    def lose_all_times(self) -> None:
        """As before there were these indexes."""
        keys = self.store._room.keys
        for key in [keys.placed, *keys.indexes("t")[1:], *keys.indexes("u")[1:]]:
            self.raw.delete(key)

    @rule(sort=sorts, descending=st.booleans(), size=st.integers(1, 3))
    def mended_in_the_end(self, sort: SessionSort, descending: bool, size: int) -> None:
        with patch.object(timeline, "INDEX_GRACE_S", -1), patch.object(timeline, "PLACED_S", 0):
            self.walk(sort, descending, 50)
        found, totals = self.walk(sort, descending, size)
        times = [getattr(pointer, sort) for pointer in found]
        assert times == sorted(times, reverse=descending)
        assert totals == {len(self.alive)}

    @rule(part=st.sampled_from(["a", "{", "ä", "x"]), size=st.integers(1, 3))
    def filtered(self, part: str, size: int) -> None:
        found, _ = self.walk("updated_at", True, size, contains=part)
        assert named(found) == sorted(name for name in self.alive if part in name[1])

    @invariant()
    def nobody_is_missed(self) -> None:
        time.sleep(0.002)  # no two of them in one millisecond
        for tenant in ("t", "u", None):
            found, totals = self.walk("updated_at", True, 2, tenant=tenant)
            assert named(found) == sorted(n for n in self.alive if tenant in (n[0], None))
            assert all(total >= len(found) for total in totals)

    def walk(
        self,
        sort: SessionSort,
        descending: bool,
        size: int,
        *,
        tenant: str | None = None,
        contains: str = "",
    ) -> tuple[list[Pointer], set[int]]:
        """All pages one after the other; nobody writes meanwhile."""
        found: dict[tuple[str, str], Pointer] = {}
        totals = set()
        for offset in range(0, 20, size):
            page = self.runner.run(
                self.store.sessions(
                    tenant,
                    offset=offset,
                    limit=size,
                    sort=sort,
                    descending=descending,
                    contains=contains,
                )
            )
            totals.add(page.total)
            if not page.sessions:
                break
            found |= {(one.tenant, one.session_id): one for one in page.sessions}
        return list(found.values()), totals


def named(found: list[Pointer]) -> list[tuple[str, str]]:
    return sorted((one.tenant, one.session_id) for one in found)


def test_pages_by_time_agree_with_a_model(redis_url: str, raw: Redis) -> None:
    class Machine(TimelineMachine):
        url = redis_url

    Machine.raw = raw

    run_machine(Machine, examples=12, steps=12)
