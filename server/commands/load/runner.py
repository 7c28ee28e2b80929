"""Sends the arrivals of a load by the clock, and never waits for an answer to send the next."""

import asyncio
import resource
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic

from innerloop import Example, calls
from server.commands.load.http import Failed, Http, failing
from server.commands.load.plan import Load, arrivals
from server.commands.load.tally import Tally
from server.commands.load.visits import Visitors

TOLD_S = 0.25
DELETING, DELETING_S = 8, 60.0

Progress = Callable[[float, int, Tally], None]
"""Is told, a few times a second: seconds since the beginning, visits under way, counts so far."""


async def run_load(
    load: Load,
    url: str,
    key: str | None,
    examples: Sequence[Example],
    prefix: str,
    progress: Progress = lambda *_: None,
) -> tuple[Tally, set[str]]:
    """Run a load; gives what came of it, also where Ctrl-C cut it short, and the sessions used."""
    _allow_connections()
    planned = arrivals(load)
    async with Http(url, key, load.timeout_s) as http:
        visitors = Visitors(http, load, examples, prefix, begun := monotonic())
        under_way: set[asyncio.Task[None]] = set()
        teller = asyncio.create_task(_tell(progress, begun, under_way, visitors.tally))
        try:
            for arrival in planned:
                await asyncio.sleep(max(begun + arrival.due_s - monotonic(), 0))
                task = asyncio.create_task(visitors.visit(arrival))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.sleep(max(begun + load.whole_s - monotonic(), 0))
            while under_way:
                await asyncio.wait(set(under_way))
        except asyncio.CancelledError:  # Ctrl-C, by asyncio.run
            visitors.tally.stopped_s = monotonic() - begun
        finally:
            for task in (teller, *under_way):
                task.cancel()
            await asyncio.gather(teller, *under_way, return_exceptions=True)
    return visitors.tally, visitors.used


async def delete_sessions(
    url: str, key: str | None, sessions: Iterable[str], told: Callable[[], None]
) -> int:
    """Delete the sessions of a load; gives how many could not be."""
    left = 0
    turns = asyncio.Semaphore(DELETING)
    async with Http(url, key, DELETING_S) as http:

        async def delete(session: str) -> None:
            nonlocal left
            async with turns:
                try:
                    with failing("delete"):
                        await http.send(calls.session("DELETE", session))
                except Failed as failure:
                    left += failure.kind != "404"
            told()

        await asyncio.gather(*map(delete, sessions))
    return left


async def _tell(
    progress: Progress, begun: float, under_way: set[asyncio.Task[None]], tally: Tally
) -> None:
    while True:
        progress(monotonic() - begun, len(under_way), tally)
        await asyncio.sleep(TOLD_S)


def _allow_connections() -> None:
    """Each connection is an open file, of which a shell often allows 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
