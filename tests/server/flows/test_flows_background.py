"""Work that no request waits for: how it ends."""

import asyncio

import pytest
from server_model import make_model_folder

from adapters.chat import ChatEncoder
from server.engine import Engine, EngineLimits
from server.flows.background import Background
from server.flows.deriving import Deriver
from server.flows.encoding import Encoding
from server.flows.housing import Houses
from server.flows.loading import Loader
from server.flows.locks import SessionLocks
from server.flows.rebuilding import Rebuilder
from server.flows.spending import Spending, budgets
from server.flows.teaching import Teacher
from server.sessions import SessionStore
from server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def background(tmp_path_factory: pytest.TempPathFactory, store: SessionStore) -> Background:
    artifact = make_model_folder(tmp_path_factory.mktemp("models") / "tiny")
    encoding = Encoding(ChatEncoder(artifact.tokenizer))
    spending, locks = Spending(store.access, budgets(Settings())), SessionLocks()
    deriver = Deriver(artifact, Engine(artifact, EngineLimits()), encoding, spending)
    rebuilder = Rebuilder(deriver, store, locks)
    houses = Houses(Loader(artifact, store), store, rebuilder)
    return Background(Teacher(deriver, store, locks, houses), rebuilder, store)


async def test_jobs_get_their_time(background: Background) -> None:
    ended: list[str] = []

    async def work(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        ended.append(name)

    background.spawn(work(0.05, "short"), "short")
    background.spawn(work(60.0, "long"), "long")
    background.start()
    await background.stop(1.0)
    assert ended == ["short"]


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_stops_waiting_for_them_is_heard_at_any_moment(
    background: Background, turns: int
) -> None:
    """A second Ctrl-C once came while the endless tasks ended, and was swallowed with theirs."""
    cancelled = asyncio.Event()

    async def job() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            cancelled.set()

    background.spawn(job(), "job")
    background.start()
    await asyncio.sleep(0)
    stopping = asyncio.create_task(background.stop(60.0))
    for _ in range(turns):
        await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(stopping, 600.0)
    assert turns == 0 or cancelled.is_set()
