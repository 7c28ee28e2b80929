"""A sentence encoder at the engine's gate: asked beforehand, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import World, collect, gather, make_artifact, quiet, run, running, until
from tiny_encoder import save_encoder

from adapters.artifact import Artifact
from adapters.config import Gate
from adapters.encoder import Encoder
from adapters.encoder_folder import load_encoder
from adapters.gate import prompt_vectors
from adapters.prefix import prefill
from server.engine import (
    AdapterMismatch,
    AdaptRequest,
    EngineBusy,
    EngineFailed,
    EngineStopped,
)

TAUGHT, FAR = "Can I return a jug?", "Where is my parcel, and is the cat still asleep in it?"
LAYER = 1


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def artifact(tmp_path: Path, encoder_folder: Path) -> Artifact:
    """An artifact whose gate opens for a taught prompt itself and for nothing else."""
    plain = make_artifact(tmp_path / "artifact", anchors=False)
    encoder = load_encoder(str(encoder_folder), plain.tokenizer)
    gate = Gate(LAYER, 0.9999, encoder=encoder)
    return replace(plain, rule=replace(plain.rule, gate=gate))


def encoder_of(artifact: Artifact) -> Encoder:
    encoder = artifact.rule.encoder
    assert encoder is not None
    return encoder


def watch(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that the encoder computes on."""
    encoder, threads = encoder_of(artifact), list[str]()
    encode = encoder._encode

    def noted(texts: Sequence[str]) -> list[torch.Tensor]:
        threads.append(threading.current_thread().name)
        return encode(texts)

    monkeypatch.setattr(encoder, "_encode", noted)
    return threads


def test_taught_prompts_open_the_gate_and_the_engine_thread_never_encodes(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, world = watch(artifact, monkeypatch), World(artifact)

    async def main() -> None:
        async with running(artifact) as engine:
            await collect(engine, world.request(TAUGHT))
            await collect(engine, world.request(TAUGHT, "bob"))
            assert not threads, "a session that was taught nothing is not compared"
            candidate = await engine.adapt(AdaptRequest((world.example(TAUGHT, "Gladly."),)))
            world.states["ann"] = candidate.state
            asked = [world.request(text, "ann") for text in (TAUGHT, FAR)]
            near, far = await gather(engine, asked)
            assert [near.finished.adapter_used, far.finished.adapter_used] == [True, False]
            assert far.tokens == world.greedy(FAR)
            (seen,) = (await engine.look([world.prompt(TAUGHT).prefix], "shop")).unbind()
            assert candidate.state.taught is not None
            torch.testing.assert_close(candidate.state.taught.keys[0], seen, atol=1e-4, rtol=0)
            await until(lambda: quiet(engine))

    run(main())
    assert len(threads) == 2, "each text once"
    assert "innerloop-engine" not in threads
    gate, prompts = artifact.rule.gate, [world.prompt(TAUGHT).prefix]
    assert gate is not None
    with torch.no_grad():
        summaries = prefill(world.model, prompts, torch.device("cpu"), LAYER).summaries
    assert summaries is not None
    expected = prompt_vectors(gate, summaries, prompts)[0]
    taught = world.states["ann"].taught
    assert taught is not None
    torch.testing.assert_close(taught.keys[0], expected, atol=1e-4, rtol=0)


def test_an_encoder_that_fails_fails_its_request_alone(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, encoder = World(artifact), encoder_of(artifact)
    encode = encoder._encode

    def broken(texts: Sequence[str]) -> list[torch.Tensor]:
        if any("parcel" in text for text in texts):
            raise RuntimeError("no memory")
        return encode(texts)

    monkeypatch.setattr(encoder, "_encode", broken)

    async def main() -> None:
        async with running(artifact) as engine:
            candidate = await engine.adapt(AdaptRequest((world.example(TAUGHT, "Gladly."),)))
            world.states["ann"] = candidate.state
            for failing in (
                collect(engine, world.request(FAR, "ann")),
                engine.adapt(AdaptRequest((world.example(FAR, "No."),))),
                engine.look([world.prompt(FAR).prefix], "shop"),
            ):
                with pytest.raises(EngineFailed, match=r"encoding prompts failed: .* no memory"):
                    await failing
            answer = await collect(engine, world.request(TAUGHT, "ann"))
            assert answer.finished.adapter_used
            await until(lambda: quiet(engine))

    run(main())


def test_what_was_taught_without_the_encoder_is_derived_again(artifact: Artifact) -> None:
    world, gate = World(artifact), artifact.rule.gate
    assert gate is not None
    plain = replace(artifact, rule=replace(artifact.rule, gate=replace(gate, encoder=None)))

    async def main() -> None:
        async with running(plain) as engine:
            candidate = await engine.adapt(AdaptRequest((world.example(TAUGHT, "Gladly."),)))
        world.states["ann"] = candidate.state
        async with running(artifact) as engine:
            with pytest.raises(AdapterMismatch, match="taught under another gate"):
                await collect(engine, world.request(TAUGHT, "ann"))

    run(main())


def test_a_question_does_not_wait_for_lessons_that_are_encoded(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a lesson keep the encoder from another one for all of its examples."""
    world, encoder = World(artifact), encoder_of(artifact)
    encode, held, parts = encoder._encode, threading.Event(), list[int]()

    def slow(texts: Sequence[str]) -> list[torch.Tensor]:
        if threading.current_thread().name.startswith("innerloop-encoding"):
            parts.append(len(texts))
            held.wait(60)
        return encode(texts)

    async def main() -> None:
        async with running(artifact) as engine:
            first = await engine.adapt(AdaptRequest((world.example(TAUGHT, "Gladly."),)))
            world.states["ann"] = first.state
            monkeypatch.setattr(encoder, "_encode", slow)
            many = tuple(world.example(f"{number} jugs", "No.") for number in range(10))
            lessons = [asyncio.ensure_future(engine.adapt(AdaptRequest(many)))]
            await until(lambda: bool(parts))
            asked = [world.request(text, "ann") for text in (TAUGHT, FAR)]
            near, far = await gather(engine, asked)
            assert [near.finished.adapter_used, far.finished.adapter_used] == [True, False]
            held.set()
            await asyncio.gather(*lessons)

    run(main())
    assert sum(parts) == 10
    assert max(parts) <= 4


def test_a_house_is_compared_by_what_was_encoded_beforehand(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(artifact)

    async def main() -> None:
        async with running(artifact) as engine:
            house = await engine.adapt(AdaptRequest((world.example(TAUGHT, "Gladly."),)))
            world.states["eve"] = house.state
            threads = watch(artifact, monkeypatch)
            # The session's own adapter was taught nothing that a gate remembers, as an import.
            asked = replace(world.request(FAR, "bob"), house=world.ref("eve"))
            await collect(engine, asked)
            assert len(threads) == 1
            assert "innerloop-engine" not in threads

    run(main())


def test_whoever_waits_to_be_encoded_is_bounded_and_ends_with_the_engine(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, encoder = World(artifact), encoder_of(artifact)
    held, inside = threading.Event(), threading.Event()

    def slow(texts: Sequence[str]) -> list[torch.Tensor]:
        inside.set()
        held.wait(60)
        return [torch.zeros(encoder.width) for _ in texts]

    monkeypatch.setattr(encoder, "_encode", slow)

    async def main() -> None:
        async with running(artifact, queue=2) as engine:
            waiting = [
                asyncio.ensure_future(engine.look([world.prompt(f"{n} jugs").prefix], "shop"))
                for n in range(2)
            ]
            await until(inside.is_set)
            with pytest.raises(EngineBusy, match="wait to be encoded"):
                await engine.look([world.prompt(FAR).prefix], "shop")
            stopping = asyncio.ensure_future(engine.stop(0.0))
            await asyncio.sleep(0.05)
            held.set()
            await stopping
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(error) for error in ended] == [EngineStopped] * 2

    run(main())
