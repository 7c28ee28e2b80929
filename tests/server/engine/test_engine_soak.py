"""A crowd that comes, goes and teaches for a while: nothing is left behind, and memory stays flat.

``INNERLOOP_SOAK_S`` says for how many seconds. A few show what is left behind; a leak shows in
memory after minutes, and five of them are what a release should have seen.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import World, quiet, run, running, until

from adapters.state import AdapterState
from server.engine import AdapterRef, AdaptRequest, Engine

SECONDS = float(os.environ.get("INNERLOOP_SOAK_S", "12"))
CLIENTS, SESSIONS = 6, 40
ALLOWED_BYTES = 16 * 2**20  # of growth after the first third; a thousand adapters take more
LEAST_ACTS = 200  # after which what is made once, and stays, is there
LIMITS = {
    "rows": 4,
    "slots": 5,
    "prefill_tokens": 48,
    "prefix_cache_bytes": 2**18,
    "host_adapter_bytes": 2**17,
}
TEXTS = ("Hi", "Where is my order?", "I want my money back, the shoes are far too small.")


class Crowd:
    """Clients over more sessions than anything holds at once."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world = world
        self.engine = engine
        self.versions: dict[int, tuple[int, AdapterState]] = {}
        self.asked = self.left = self.taught = self.acts = 0

    async def client(self, number: int, until_s: float) -> None:
        rng = random.Random(number)
        # A machine so busy that it does little in this time gets more of it.
        while time.monotonic() < until_s or self.acts < LEAST_ACTS:
            session = rng.randrange(SESSIONS)
            kind = rng.random()
            self.acts += 1
            if kind < 0.2:
                await self.teach(session, rng)
            else:
                await self.ask(session, rng, leaves=kind < 0.4)

    async def teach(self, session: int, rng: random.Random) -> None:
        examples = (self.world.example(rng.choice(TEXTS), f"{rng.randrange(10**6)}"),)
        state = (await self.engine.adapt(AdaptRequest(examples, rng.randint(1, 3)))).state
        number, _ = self.versions.get(session, (0, None))
        self.versions[session] = number + 1, state
        self.taught += 1

    async def ask(self, session: int, rng: random.Random, leaves: bool) -> None:
        text = f"{rng.choice(TEXTS)} {rng.randrange(300)}"
        request = self.world.request(text, max_tokens=rng.randint(1, 12))
        if session in self.versions:
            number, state = self.versions[session]

            async def load() -> AdapterState:
                return state

            request = replace(request, adapter=AdapterRef(f"{session}/{number}", load))
        async with aclosing(self.engine.generate(request)) as items:
            async for _ in items:
                if leaves:
                    self.left += 1
                    return
        self.asked += 1


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat(world: World) -> None:
    grown: list[int] = []

    async def main() -> None:
        async with running(world.artifact, **LIMITS) as engine:
            crowd = Crowd(world, engine)
            for part in (1 / 3, 2 / 3):
                until_s, crowd.acts = time.monotonic() + part * SECONDS, 0
                await asyncio.gather(*(crowd.client(i, until_s) for i in range(CLIENTS)))
                await until(lambda: quiet(engine))
                gc.collect()
                grown.append(resident_bytes())
            status = engine.status()
            assert status.requests_failed == status.adapts_failed == 0
            assert status.requests_finished >= crowd.asked > 0
            assert crowd.left > 0
            assert crowd.taught > 0
            assert status.prefix_cache_bytes <= LIMITS["prefix_cache_bytes"]
            assert status.host_adapter_bytes <= LIMITS["host_adapter_bytes"]
            print(f"{crowd.asked} answers, {crowd.left} left, {crowd.taught} adapts in {SECONDS} s")

    run(main(), limit_s=SECONDS + 600)
    growth = grown[1] - grown[0]
    print(f"{growth / 2**20:.1f} MiB more than after the first third")
    assert growth < ALLOWED_BYTES
