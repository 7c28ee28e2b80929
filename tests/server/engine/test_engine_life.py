"""Starting, stopping, going away, being full, and failing alone."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from engine_harness import Answer, World, collect, gather, holding, run, running, until

from adapters.config import LoraSpec
from adapters.state import AdapterState
from server.engine import (
    AdapterMismatch,
    AdapterRef,
    AdaptRequest,
    Delta,
    Engine,
    EngineBusy,
    EngineFailed,
    EngineLimits,
    EngineStopped,
    Finished,
    GenerateRequest,
)
from server.engine.traffic import LOADS_A_TURN

TEXT = "Where is my order?"
LONG = {"max_tokens": 150, "temperature": 2.0}


async def started(engine: Engine, request: GenerateRequest, sink: list) -> asyncio.Task:
    """Begin an answer in the background and wait for its first piece."""

    async def read() -> None:
        async with aclosing(engine.generate(request)) as items:
            async for item in items:
                sink.append(item)

    task = asyncio.ensure_future(read())
    await until(lambda: bool(sink) or task.done())
    return task


def test_closing_the_iterator_frees_the_row(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, rows=1, slots=1) as engine:
            long = world.request(TEXT, "ann", **LONG, seed=1)
            with holding(engine, decoding=9):
                async with aclosing(engine.generate(long)) as gen:
                    async for _ in gen:
                        break
                await until(lambda: engine.status().requests_cancelled == 1)
            status = engine.status()
            assert status.decoding == status.slots_pinned == 0
            request = world.request(TEXT, "bob")
            world.check_greedy(request, (await collect(engine, request)).tokens)

    run(main())


def test_cancelled_rows_do_not_disturb_the_others(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            sinks: list[list] = [[], [], []]
            requests = [world.request(TEXT, s, **LONG, seed=2) for s in ("ann", None, "cem")]
            tasks = [
                await started(engine, request, sink)
                for request, sink in zip(requests, sinks, strict=True)
            ]
            kept = asyncio.ensure_future(collect(engine, world.request("Hi", "bob", max_tokens=60)))
            for task in tasks:
                await asyncio.sleep(0.005)
                task.cancel()
            world.check_greedy(world.request("Hi", "bob", max_tokens=60), (await kept).tokens)
            await until(lambda: engine.status().decoding == 0)

    run(main())


def test_a_full_queue_is_busy_and_empties(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, rows=1, queue=2) as engine:
            sink: list = []
            with holding(engine, decoding=9):
                first = await started(engine, world.request(TEXT, **LONG, seed=3), sink)
                waiting = [asyncio.ensure_future(collect(engine, world.request("Hi", "ann")))]
                await until(lambda: engine.status().waiting == 1)
                waiting.append(asyncio.ensure_future(collect(engine, world.request("Hi", "bob"))))
                await until(lambda: engine.status().waiting == 2)
                with pytest.raises(EngineBusy, match="2 requests are waiting") as busy:
                    await collect(engine, world.request("Hi", "cem"))
                assert busy.value.retry_after_s > 0
                assert "cem" not in world.loads, "nothing is loaded for a request that is refused"
                with pytest.raises(EngineBusy):
                    await engine.adapt(AdaptRequest((world.example("Hi", "Yes"),)))
                first.cancel()
            for answer, session in zip(await asyncio.gather(*waiting), ("ann", "bob"), strict=True):
                world.check_greedy(world.request("Hi", session), answer.tokens)
            assert (await collect(engine, world.request("Hi"))).tokens

    run(main())


def test_stopping_finishes_what_is_inside_and_refuses_what_comes(world: World) -> None:
    async def main() -> None:
        engine = Engine(world.artifact, EngineLimits(threads=1, rows=2))
        with pytest.raises(EngineStopped):
            await collect(engine, world.request(TEXT))
        engine.start()
        with pytest.raises(EngineStopped, match="runs once"):
            engine.start()
        with holding(engine, decoding=0, learning=1):
            answers = asyncio.ensure_future(
                gather(engine, [world.request(TEXT, s) for s in ("ann", "bob", None, "cem")])
            )
            adapting = asyncio.ensure_future(
                engine.adapt(AdaptRequest((world.example("Hi", "Yes"),), steps=20))
            )
            await until(lambda: engine.status().adapts_learning == 1)
            await until(lambda: engine.status().decoding == engine.status().waiting == 2)
            stopping = asyncio.ensure_future(engine.stop(600.0))
            await until(lambda: not engine.status().running)
            with pytest.raises(EngineStopped):
                await collect(engine, world.request(TEXT))
            with pytest.raises(EngineStopped):
                await engine.adapt(AdaptRequest((world.example("Hi", "Yes"),)))
        await stopping
        for session, answer in zip(("ann", "bob", None, "cem"), await answers, strict=True):
            world.check_greedy(world.request(TEXT, session), answer.tokens)
        assert (await adapting).steps == 20
        await engine.stop(0.0)

    run(main())


def test_what_does_not_finish_in_time_is_cut(world: World) -> None:
    async def main() -> None:
        engine = Engine(world.artifact, EngineLimits(threads=1, rows=1, slots=1))
        engine.start()
        sink: list = []
        with holding(engine, decoding=9):
            running_task = await started(engine, world.request(TEXT, "ann", **LONG, seed=1), sink)
            queued = asyncio.ensure_future(collect(engine, world.request(TEXT, "bob")))
            example = world.example("Hi", "Yes")
            adapting = asyncio.ensure_future(engine.adapt(AdaptRequest((example,), steps=100_000)))
            await until(lambda: engine.status().adapts_learning == 1)
            await until(lambda: engine.status().waiting == 1)
            await engine.stop(0.0)
        await running_task
        answer = Answer([item for item in sink if isinstance(item, Delta)], sink[-1])
        assert isinstance(sink[-1], Finished)
        assert sink[-1].finish_reason == "cancelled"
        assert answer.text == world.decode(answer.tokens)
        for refused in (queued, adapting):
            with pytest.raises(EngineStopped):
                await refused
        status = engine.status()
        assert status.decoding == status.waiting == status.adapts_learning == 0
        assert status.slots_pinned == 0

    run(main())


def test_an_engine_that_never_started_stops(world: World) -> None:
    run(Engine(world.artifact).stop(0.0))


@contextmanager
def poisoned(world: World, token: int) -> Iterator[None]:
    """Make the model raise whenever it reads ``token``."""

    def refuse(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if bool((inputs[0] == token).any()):
            raise ValueError("this token is poison")

    handle = world.artifact.model.get_input_embeddings().register_forward_pre_hook(refuse)
    yield
    handle.remove()


SESSIONS = (None, "ann", "bob", "cem")


def test_a_prompt_that_breaks_its_batch_fails_alone(world: World) -> None:
    expected = [world.greedy("Hi", session, 24) for session in SESSIONS]
    poison = next(t for t in range(300, 400) if not any(t in tokens for tokens in expected))
    prompt = world.prompt("Hi")

    async def main() -> None:
        async with running(world.artifact) as engine:
            requests = [world.request("Hi", session, max_tokens=24) for session in SESSIONS]
            with holding(engine, decoding=0):
                good = asyncio.ensure_future(gather(engine, requests))
                await until(lambda: engine.status().decoding == len(requests))
            bad_prefix = replace(prompt, prefix=(poison, *prompt.prefix))
            bad_header = replace(prompt, header=(poison, *prompt.header))
            for bad in (bad_prefix, bad_header):
                with pytest.raises(EngineFailed, match="this token is poison"):
                    await collect(engine, replace(world.request("Hi", "ann"), prompt=bad))
            assert [answer.tokens for answer in await good] == expected
            await until(lambda: engine.status().requests_failed == 2)
            await until(lambda: engine.status().slots_pinned == 0)

    with poisoned(world, poison):
        run(main())


def test_a_token_that_breaks_a_step_ends_its_own_answer(world: World) -> None:
    expected = [world.greedy("Hi", session, 24) for session in SESSIONS]
    others = {token for row in (0, 2, 3) for token in expected[row]} | set(world.prompt("Hi").ids)
    poison = next(token for token in expected[1][2:-1] if token not in others)

    async def main() -> None:
        async with running(world.artifact) as engine:
            requests = [world.request("Hi", session, max_tokens=24) for session in SESSIONS]
            jobs = [collect(engine, request) for request in requests]
            nobody, ann, bob, cem = await asyncio.gather(*jobs, return_exceptions=True)
            assert isinstance(ann, EngineFailed)
            assert [answer.tokens for answer in (nobody, bob, cem)] == [
                expected[row] for row in (0, 2, 3)
            ]

    with poisoned(world, poison):
        run(main())


def test_an_adapter_that_makes_nonsense_fails_its_own_request(world: World) -> None:
    name = next(iter(world.states["bob"].tensors))
    tensors = dict(world.states["bob"].tensors)
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    world.states["bob"] = replace(world.states["bob"], tensors=tensors)

    async def main() -> None:
        async with running(world.artifact) as engine:
            requests = [world.request(TEXT, session) for session in ("ann", "bob", None)]
            requests.append(world.request(TEXT, "bob", choices=("Yes", "No")))
            jobs = [collect(engine, request) for request in requests]
            ann, bob, nobody, choosing = await asyncio.gather(*jobs, return_exceptions=True)
            for error in (bob, choosing):
                assert isinstance(error, EngineFailed)
                assert "tenant/bob/1" in str(error)
            world.check_greedy(requests[0], ann.tokens)
            world.check_greedy(requests[2], nobody.tokens)

    run(main())


def test_a_foreign_adapter_is_refused(world: World) -> None:
    own = world.states["ann"]
    name = next(iter(own.tensors))
    foreign = {
        "another base": replace(own, base_fingerprint="0" * 64),
        "another form": replace(own, tensors={**own.tensors, name: torch.zeros(3, 3)}),
        "rank 2": AdapterState(LoraSpec(2, ("q_proj",)), {}, own.base_fingerprint),
    }

    async def main() -> None:
        async with running(world.artifact) as engine:
            for message, state in foreign.items():
                world.states["ann"] = state
                with pytest.raises(AdapterMismatch, match=message):
                    await collect(engine, world.request(TEXT, "ann"))
            assert engine.status().slots_resident == 0

    run(main())


def test_what_loading_raises_reaches_the_caller(world: World) -> None:
    async def load() -> AdapterState:
        raise ConnectionError("the store is away")

    async def main() -> None:
        async with running(world.artifact) as engine:
            request = replace(world.request(TEXT), adapter=AdapterRef("t/s/1", load))
            with pytest.raises(ConnectionError, match="the store is away"):
                await collect(engine, request)
            assert (await collect(engine, world.request(TEXT))).tokens

    run(main())


def test_an_unforeseen_error_ends_what_is_inside_and_the_engine_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            batch = engine._worker._traffic.batch

            def broken() -> None:
                monkeypatch.undo()
                raise MemoryError("no room for the next step")

            monkeypatch.setattr(batch, "step", broken)
            job = asyncio.ensure_future(engine.adapt(lesson(world)))
            # Nobody in particular did it, so whoever asks again may well be answered.
            with pytest.raises(EngineStopped, match="try again"):
                await collect(engine, world.request(TEXT, "ann"))
            with suppress(EngineStopped):  # where it was inside already
                assert (await job).verdict.accepted
            await until(lambda: engine.status().requests_failed == 1)
            status = engine.status()
            assert status.decoding == status.slots_pinned == status.prefilling == 0
            request = world.request(TEXT, "ann")
            world.check_greedy(request, (await collect(engine, request)).tokens)

    run(main())


def lesson(world: World) -> AdaptRequest:
    return AdaptRequest((world.example(TEXT, "On its way."),))


@pytest.mark.parametrize("way", ["ending", "device"])
def test_a_dead_engine_turns_everybody_away_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """As after an error of the device, which every later operation has as well."""

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("device-side assert triggered")

    async def main() -> None:
        async with running(world.artifact, rows=1) as engine:
            worker = engine._worker
            monkeypatch.setattr(worker._traffic.batch, "step", broken)
            with holding(engine, decoding=0):
                long = asyncio.ensure_future(collect(engine, world.request(TEXT, "ann", **LONG)))
                waiting = asyncio.ensure_future(collect(engine, world.request(TEXT, "bob")))
                job = asyncio.ensure_future(engine.adapt(lesson(world)))
                await until(lambda: engine.status().decoding == 1)
                if way == "ending":
                    monkeypatch.setattr(worker._traffic.batch, "drop", broken)
                else:
                    monkeypatch.setattr("server.engine.worker._ask", broken)
            ended = await asyncio.gather(long, waiting, job, return_exceptions=True)
            assert all(isinstance(error, EngineStopped) for error in ended), ended
            await until(lambda: not engine.status().running)
            for again in (collect(engine, world.request(TEXT)), engine.adapt(lesson(world))):
                with pytest.raises(EngineStopped, match="restart the server"):
                    await again

    run(main())
    assert "restart the server" in caplog.text
    assert "device-side assert" in caplog.text


def test_adapters_stay_until_their_slot_is_needed(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, slots=2, host_adapter_bytes=0) as engine:
            order = ["ann", "ann", "bob", "ann", "cem", "ann", "bob"]
            for session in order:
                request = world.request("Hi", session)
                world.check_greedy(request, (await collect(engine, request)).tokens)
            assert world.loads == ["ann", "bob", "cem", "bob"], "cem took bob's slot, not ann's"
            assert engine.status().slots_resident == 2

    run(main())


def test_adapters_without_a_slot_stay_in_the_hosts_memory(world: World) -> None:
    size = sum(tensor.nbytes for tensor in world.states["ann"].tensors.values())

    async def main() -> None:
        async with running(world.artifact, slots=1, host_adapter_bytes=2 * size) as engine:
            for session in ("ann", "bob", "ann", "bob", "cem", "bob", "ann"):
                request = world.request("Hi", session)
                world.check_greedy(request, (await collect(engine, request)).tokens)
            assert world.loads == ["ann", "bob", "cem", "ann"]
            status = engine.status()
            assert (status.host_adapters, status.host_adapter_bytes) == (2, 2 * size)
            assert (status.adapter_hits, status.adapter_misses) == (3, 4)

    run(main())


def test_who_finds_no_place_in_time_is_told_to_come_back(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, rows=1, patience_s=0.05) as engine:
            short = [world.request("Hi", "ann"), world.request(TEXT)]
            with holding(engine, decoding=0):
                long = asyncio.ensure_future(collect(engine, world.request("Hi", max_tokens=150)))
                await until(lambda: engine.status().decoding == 1)
                for outcome in await gather_outcomes(engine, short):
                    assert isinstance(outcome, EngineBusy)
                    assert outcome.retry_after_s > 0
            assert len((await long).tokens) > 1, "who has a place keeps it"
            world.check_greedy(short[0], (await collect(engine, short[0])).tokens)

    run(main())


async def gather_outcomes(engine: Engine, requests: list[GenerateRequest]) -> list[object]:
    return await asyncio.gather(
        *(collect(engine, request) for request in requests), return_exceptions=True
    )


def test_more_sessions_than_slots_wait_and_nobody_fails(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, slots=1, rows=4) as engine:
            sessions = ["ann", "bob", None, "cem", "dan", "ann", "eve", None]
            requests = [world.request(TEXT, session) for session in sessions]
            for request, answer in zip(requests, await gather(engine, requests), strict=True):
                world.check_greedy(request, answer.tokens)

    run(main())


@pytest.mark.parametrize("writing", [True, False])
def test_adapters_are_loaded_a_few_a_turn_while_text_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch, writing: bool
) -> None:
    async def main() -> None:
        async with running(world.artifact, slots=5, rows=8) as engine:
            worker = engine._worker
            admit, load = worker._traffic.admit, worker.slots._load
            loads: list[int] = []  # of each turn

            def begin_turn() -> None:
                loads.append(0)
                admit()

            def count(slot: int, state: AdapterState) -> object:
                loads[-1] += 1
                return load(slot, state)

            monkeypatch.setattr(worker._traffic, "admit", begin_turn)
            monkeypatch.setattr(worker.slots, "_load", count)
            requests = [world.request("Hi", session) for session in world.states]
            with holding(engine, decoding=1):
                if writing:
                    text = await started(engine, world.request(TEXT, **LONG, seed=1), [])
                with worker._door:  # the engine takes all in together
                    answers = asyncio.ensure_future(gather(engine, requests))
                    await until(lambda: len(worker._inbox) == len(requests))
                await until(lambda: sum(loads) == len(requests))
            assert [n for n in loads if n] == ([LOADS_A_TURN, 1] if writing else [5])
            for request, answer in zip(requests, await answers, strict=True):
                world.check_greedy(request, answer.tokens)
            if writing:
                await text

    run(main())


def test_requests_wait_for_room_in_the_kv_memory(world: World) -> None:
    """Two short sequences fit together, a long one only alone; each gets its answer."""
    per_token = sum(form.token_bytes for form in Engine(world.artifact)._base.layers)

    async def main() -> None:
        async with running(world.artifact, kv_bytes=192 * per_token) as engine:
            requests = [
                world.request("Hi", s, max_tokens=n)
                for s, n in (("ann", 5), ("bob", 120), (None, 5), ("cem", 5), ("dan", 100))
            ]
            answers = await gather(engine, requests)
            for request, answer in zip(requests, answers, strict=True):
                world.check_greedy(request, answer.tokens)

    run(main())


def test_a_new_version_takes_a_new_slot_and_streams_finish_on_theirs(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            sink: list = []
            old = world.request(TEXT, "ann", max_tokens=60)
            task = await started(engine, old, sink)
            state = world.states["bob"]

            async def load() -> AdapterState:
                return state

            new = replace(old, adapter=AdapterRef("tenant/ann/2", load))
            answer = await collect(engine, new)
            await task
            tokens = [token for item in sink[:-1] for token in item.token_ids]
            world.check_greedy(old, tokens)
            world.check_greedy(world.request(TEXT, "bob", max_tokens=60), answer.tokens)

    run(main())
