"""Houses on a real engine and a real Redis: two replicas, and what a crash leaves half done."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch
from server_model import make_model_folder

from adapters.artifact import Artifact, load_artifact
from adapters.state import AdapterState
from server.engine import AdaptRequest, Engine, EngineLimits, Sampling
from server.flows.answering import Answer, Question, whole
from server.flows.outcome import Lesson
from server.runtime import Runtime, assemble
from server.sessions import HOUSE, SessionStore, SnapshotLost
from server.settings import MODELS, Settings

pytestmark = pytest.mark.anyio

TENANT = "t"


def lesson(prompt: str, completion: str) -> Lesson:
    return Lesson([{"role": "user", "content": prompt}], completion)


WHERE, OWN = (
    lesson("Where is my order?", "In the barn."),
    lesson("Do you sell seeds?", "By the door."),
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def engine(artifact: Artifact) -> AsyncIterator[Engine]:
    engine = Engine(artifact, EngineLimits(threads=1, patience_s=600.0))
    engine.start()
    yield engine
    await engine.stop(0)


@pytest.fixture
def replicas(artifact: Artifact, engine: Engine, store: SessionStore) -> tuple[Runtime, Runtime]:
    """Two servers' flows, with locks and memories of their own, on one Redis."""
    first, second = (assemble(Settings(), artifact, store, engine) for _ in range(2))
    return first, second


async def teach(runtime: Runtime, session_id: str, *lessons: Lesson) -> int:
    appended = await runtime.teacher.append(TENANT, session_id, lessons, None, "")
    outcome = await runtime.teacher.teach(TENANT, session_id, appended.items)
    assert outcome.accepted, outcome.reason
    return outcome.adapter_version


async def ask(runtime: Runtime, session_id: str, about: Lesson) -> Answer:
    question = Question(TENANT, session_id, about.turns, Sampling(20))
    return await whole(runtime.answering.answer(question, "c"))


async def test_another_replica_follows_at_once(replicas: tuple[Runtime, Runtime]) -> None:
    first, second = replicas
    await teach(first, HOUSE, WHERE)
    await teach(second, "s", OWN)
    for runtime, reply in ((first, "See the mill."), (second, "Ask the cook.")):
        await teach(runtime, HOUSE, lesson("Where is my order?", reply))
        for other in replicas:
            assert (await ask(other, "untaught", WHERE)).finished.text == reply
            told = await ask(other, "s", OWN)
            assert told.finished.text == OWN.completion
            assert told.house_version == (await first.store.pointer(TENANT, HOUSE)).version
    # One of both derived it again each time; the other found it done.
    assert (await first.store.pointer(TENANT, "s")).version == 3


async def test_a_crash_between_the_house_and_its_sessions(
    replicas: tuple[Runtime, Runtime], store: SessionStore
) -> None:
    """A house was promoted, and nobody came to its sessions any more: there is nothing to do."""
    first, second = replicas
    await teach(first, HOUSE, WHERE)
    await teach(first, "s", OWN)
    # What `teach` does of the house in the store, and no more.
    await store.append(TENANT, HOUSE, [lesson("a", "b").item(0)])
    pointer = await store.pointer(TENANT, HOUSE)
    assert pointer.unfinished
    await second.background._finish_all(0.0)
    assert not (await store.pointer(TENANT, HOUSE)).unfinished
    assert (await ask(second, "s", OWN)).house_version == 2


async def test_a_crash_while_the_house_forgets(
    replicas: tuple[Runtime, Runtime], store: SessionStore
) -> None:
    first, second = replicas
    await teach(first, HOUSE, WHERE)
    await teach(first, HOUSE, lesson("Where is the key?", "Behind the stove."))
    await teach(first, "s", OWN)
    # What `Houses.forget` does first, and then the process is gone.
    await store.expect_sweep(TENANT)
    await store.forget(TENANT, HOUSE, 2)
    assert (await store.pointer(TENANT, HOUSE)).unpurged
    # A session that is taught now is not derived from what contains the item.
    await teach(second, "new", OWN)
    assert not (await store.pointer(TENANT, HOUSE)).unpurged
    known = await store.version_record(TENANT, "new", 1)
    assert known.record.house_items == (1,)
    await second.background._finish_all(0.0)  # sweeps
    await second.background._finish_all(0.0)  # derives again what the sweep has found
    assert await store.unswept() == ()
    (version,) = await store.versions(TENANT, "s")
    assert (version.number, version.record.house_items) == (2, (1,))
    assert (await ask(second, "s", OWN)).finished.text == OWN.completion


async def test_a_house_whose_bytes_are_lost_is_derived_again(
    replicas: tuple[Runtime, Runtime], store: SessionStore
) -> None:
    first, _ = replicas
    await teach(first, HOUSE, WHERE)
    version = await store.version_record(TENANT, HOUSE, 1)
    keys = store._room.keys.session(TENANT, HOUSE)
    await store._room.connection.write("DEL", keys.snapshot(version.snapshot_id))
    with pytest.raises(SnapshotLost):
        await store.snapshot(TENANT, HOUSE, 1)
    await teach(first, "s", OWN)
    assert (await store.version_record(TENANT, "s", 1)).record.house_items == (1,)
    assert (await store.pointer(TENANT, HOUSE)).version == 1


async def test_the_same_house_and_items_give_the_same_adapter(
    replicas: tuple[Runtime, Runtime], store: SessionStore
) -> None:
    first, second = replicas
    await teach(first, HOUSE, WHERE)
    await teach(first, "s", OWN)
    before = await store.snapshot(TENANT, "s", 1)
    pointer = await store.pointer(TENANT, "s")
    await teach(first, HOUSE, lesson("a", "b"))
    assert await second.rebuilder.restore(pointer, 1), "its house's version is kept"
    assert await store.snapshot(TENANT, "s", 1) == before


async def test_a_derivation_begins_where_it_is_told(engine: Engine, replicas: object) -> None:
    """Two sessions learn together, one from session_init; neither notices the other."""
    first, _ = replicas  # type: ignore[misc]
    examples = await first.rebuilder._deriver.examples([WHERE, OWN])
    init = first.artifact.session_init
    start = {name: tensor + 0.01 for name, tensor in init.items()}
    alone = await engine.adapt(AdaptRequest(examples[:1], 3))
    moved = await engine.adapt(AdaptRequest(examples[:1], 3, start=start))
    assert moved.loss_before != alone.loss_before
    same = await engine.adapt(AdaptRequest(examples[:1], 3, start=init))
    assert close(same.state, alone.state)
    assert not close(moved.state, alone.state)
    stepped = {n: t - start[n] for n, t in moved.state.tensors.items()}
    length = torch.stack([tensor.square().sum() for tensor in stepped.values()]).sum().sqrt()
    assert moved.update_norm == pytest.approx(float(length), rel=1e-3)


def close(one: AdapterState, other: AdapterState) -> bool:
    return all(torch.allclose(one.tensors[n], other.tensors[n], atol=1e-5) for n in one.tensors)


@pytest.mark.parametrize("beside", [False, True])
async def test_sessions_answer_without_a_house_that_nobody_can_have_again(
    beside: bool, artifact: Artifact, store: SessionStore
) -> None:
    """Its bytes are gone, and the rule of today is one whose steps the guard refuses."""
    if beside:
        artifact = load_artifact(MODELS / "innerloop-tiny")
    sizes = {name: 1e4 * each for name, each in artifact.rule.step_sizes.items()}
    reckless = replace(artifact, rule=replace(artifact.rule, step_sizes=sizes))
    async with running(artifact, store) as runtime:
        await teach(runtime, HOUSE, WHERE)
        await teach(runtime, "s", OWN)
        await teach(runtime, "pinned", OWN)
        await runtime.houses.pin(TENANT, "pinned", True)
        assert (await ask(runtime, "new", WHERE)).finished.text == WHERE.completion
    version = await store.version_record(TENANT, HOUSE, 1)
    keys = store._room.keys.session(TENANT, HOUSE)
    await store._room.connection.write("DEL", keys.snapshot(version.snapshot_id))
    async with running(reckless, store) as runtime:
        for session in ("new", "s", "pinned"):
            for about in (WHERE, OWN):
                told = await ask(runtime, session, about)
                assert told.house_version == (0 if beside or session == "new" else 1)
        for session in ("s", "pinned"):
            assert (await ask(runtime, session, OWN)).finished.text == OWN.completion
        assert (await store.pointer(TENANT, HOUSE)).version == 1  # for the day that it can be read
    async with running(artifact, store) as runtime:
        assert (await ask(runtime, "new", WHERE)).finished.text == WHERE.completion


@asynccontextmanager
async def running(artifact: Artifact, store: SessionStore) -> AsyncIterator[Runtime]:
    """A server's flows with an engine of its own."""
    engine = Engine(artifact, EngineLimits(threads=1, recorded=False, patience_s=600.0))
    engine.start()
    try:
        yield assemble(Settings(), artifact, store, engine)
    finally:
        await engine.stop(0)
