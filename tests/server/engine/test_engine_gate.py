"""The gate in the engine: an adapter answers what is near to what was taught, the base the rest."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import World, collect, gather, make_artifact, run, running, until

from adapters.artifact import Artifact
from adapters.config import Gate, Mix
from adapters.gate import (
    answer_number,
    choice_likeness,
    choice_scores,
    house_answers,
    prompt_vectors,
    together,
)
from adapters.prefix import prefill
from adapters.spelling import BUCKETS
from adapters.state import Taught
from adapters.support import Example
from adapters.words import make_words
from server.engine import AdapterMismatch, AdaptRequest, GenerateRequest, Sampling

TAUGHT, FAR = "Can I return a jug?", "Where is my parcel, and is the cat still asleep in it?"
LAYER, WIDTH = 1, 5
CHOICES = ("yes", "no, never", "perhaps")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact whose gate opens for a taught prompt itself and for nothing else."""
    folder: Path = tmp_path_factory.mktemp("gated") / "artifact"
    plain = make_artifact(folder, anchors=False)
    vectors = torch.randn(BUCKETS, WIDTH, generator=torch.Generator().manual_seed(3))
    words = make_words(vectors, torch.ones(BUCKETS), plain.tokenizer)
    gate = Gate(LAYER, 0.9999, mix=Mix(0.4, 15.0), words=words)
    return replace(plain, rule=replace(plain.rule, gate=gate))


@pytest.fixture
def world(artifact: Artifact) -> World:
    world = World(artifact)
    number = answer_number(world.encoder.completion(CHOICES[1]))
    gate = artifact.rule.gate
    assert gate is not None
    taught = Taught(vector(world, TAUGHT), torch.tensor([number]), gate.view)
    world.states = {name: replace(state, taught=taught) for name, state in world.states.items()}
    return world


@torch.no_grad()
def vector(world: World, text: str) -> torch.Tensor:
    """(1, E) how the gate sees a prompt."""
    gate, prompts = world.artifact.rule.gate, [world.prompt(text).prefix]
    summaries = prefill(world.model, prompts, torch.device("cpu"), LAYER).summaries
    assert gate is not None
    assert summaries is not None
    return prompt_vectors(gate, summaries, prompts)


def test_the_adapter_answers_the_taught_prompt_and_the_base_the_others(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            taught, far, other = await gather(
                engine,
                [
                    world.request(TAUGHT, "ann"),
                    world.request(FAR, "ann"),
                    world.request(TAUGHT, "bob"),
                ],
            )
            assert taught.tokens == world.greedy(TAUGHT, "ann")
            assert far.tokens == world.greedy(FAR)
            assert [a.finished.adapter_used for a in (taught, far, other)] == [True, False, True]
            assert other.tokens == world.greedy(TAUGHT, "bob")
            await until(lambda: engine.status().slots_pinned == 0)

    run(main())
    assert world.greedy(FAR) != world.greedy(FAR, "ann"), "the adapter would have changed it"


def test_recall_says_what_was_taught_beside_other_rows(world: World) -> None:
    answer = world.encoder.completion("On its way.")
    state = world.states["ann"]
    assert state.taught is not None
    taught = replace(
        state.taught,
        answers=torch.tensor([answer_number(answer)]),
        completions=torch.tensor([answer]),
    )
    world.states["ann"] = replace(state, taught=taught)

    async def main() -> None:
        async with running(world.artifact) as engine:
            plain = world.request(TAUGHT, "ann")
            recalling, other, far, alone = await gather(
                engine,
                [
                    replace(plain, recall=True),
                    world.request(TAUGHT, "bob"),
                    replace(world.request(FAR, "ann"), recall=True),
                    plain,
                ],
            )
            assert recalling.finished.text == "On its way."
            assert alone.tokens == world.greedy(TAUGHT, "ann")
            assert other.tokens == world.greedy(TAUGHT, "bob")
            assert far.tokens == world.greedy(FAR), "where the gate is shut, nothing is recalled"

    run(main())


def test_a_long_prompt_in_pieces_passes_the_same_gate(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, prefill_tokens=4) as engine:
            taught = await collect(engine, world.request(TAUGHT, "ann"))
            assert taught.tokens == world.greedy(TAUGHT, "ann")
            far = await collect(engine, world.request(FAR, "ann"))
            assert far.tokens == world.greedy(FAR)

    run(main())


def test_choices_are_the_adapters_whatever_the_prompt(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            sampling = Sampling(max_tokens=8, choices=CHOICES)
            prompt = world.prompt(FAR)
            taught = await collect(engine, GenerateRequest(prompt, sampling, world.ref("ann")))
            untaught = await collect(engine, GenerateRequest(prompt, sampling, None))
            assert taught.finished.adapter_used
            assert taught.finished.choice_logprobs != untaught.finished.choice_logprobs

    run(main())


@pytest.mark.parametrize("text", [TAUGHT, FAR])
def test_what_was_taught_has_its_say_in_a_choice(world: World, text: str) -> None:
    gate, taught = world.artifact.rule.gate, world.states["ann"].taught
    assert gate is not None
    assert gate.mix is not None
    assert taught is not None
    options = [world.encoder.completion(choice) for choice in CHOICES]
    prompt, logprobs = world.prompt(text), []
    for option in options:
        logits = world.logits(prompt, option[:-1], "ann").log_softmax(-1)
        logprobs.append(float(logits[range(len(option)), list(option)].sum()))
    likeness = choice_likeness(gate, taught, vector(world, text), options)
    assert likeness[0].isnan().tolist() == [True, False, True]
    alone = torch.tensor(logprobs).log_softmax(0)
    expected = choice_scores(gate.mix, likeness, torch.tensor([logprobs]))[0].log_softmax(0)
    assert torch.equal(expected, alone) == (text == FAR), "memory speaks of what it knows"

    async def main() -> None:
        async with running(world.artifact) as engine:
            for _ in range(2):  # the second time, the prompt is found in the cache
                answer = await collect(engine, world.request(text, "ann", choices=CHOICES))
                found = answer.finished.choice_logprobs
                assert found == pytest.approx(
                    dict(zip(CHOICES, expected.tolist(), strict=True)), abs=1e-3
                )
                assert answer.text == CHOICES[int(expected.argmax())]

    run(main())


@pytest.mark.parametrize("before", ["no words", "other words"])
def test_a_session_taught_under_another_gate_is_refused(world: World, before: str) -> None:
    """It is derived again from its log then."""
    taught = world.states["ann"].taught
    assert taught is not None
    old = replace(taught, view=f"layer {LAYER}, {before}")
    if before == "no words":
        old = replace(old, keys=taught.keys[:, : world.model.config.hidden_size])
    world.states["ann"] = replace(world.states["ann"], taught=old)

    async def main() -> None:
        async with running(world.artifact) as engine:
            with pytest.raises(AdapterMismatch, match="another gate"):
                await collect(engine, world.request(TAUGHT, "ann"))

    run(main())


def test_an_adapted_candidate_knows_its_own_prompts(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            examples = (world.example(TAUGHT, "Gladly."), world.example(FAR, "On the roof."))
            candidate = await engine.adapt(AdaptRequest(examples, None))
            taught = candidate.state.taught
            assert taught is not None
            expected = torch.cat([vector(world, TAUGHT), vector(world, FAR)])
            torch.testing.assert_close(taught.keys, expected, atol=1e-4, rtol=0)
            assert taught.answers.tolist() == [answer_number(e.completion) for e in examples]
            world.states["ann"] = candidate.state
            for text in (TAUGHT, FAR):
                answer = await collect(engine, world.request(text, "ann"))
                logits = world.logits_under(world.prompt(text), [], candidate.state)
                assert answer.tokens[0] == int(logits[-1].argmax())

    run(main())


def test_a_prompt_that_was_only_answered_badly_is_left_to_the_base(
    world: World,
) -> None:
    """Which does not say that answer again; several, none of them."""
    told = world.example(TAUGHT, "Gladly.")
    base = [world.greedy(FAR)]

    def disliked(tokens: Sequence[int]) -> Example:
        return replace(told, prompt=world.prompt(FAR).prefix, completion=tuple(tokens), rating=-1)

    async def main() -> None:
        async with running(world.artifact) as engine:
            plain = await engine.adapt(AdaptRequest((told,)))
            for session in ("ann", "bob", "cyn"):
                items = [disliked(tokens) for tokens in base]
                left = await engine.adapt(AdaptRequest((*items, told)))
                taught = left.state.taught
                assert taught is not None
                numbers = [answer_number(told.completion), *(~answer_number(t) for t in base)]
                assert taught.answers.tolist() == numbers
                for name, tensor in plain.state.tensors.items():
                    assert torch.equal(tensor, left.state.tensors[name]), "no step is over it"
                assert left.loss_before == plain.loss_before
                assert left.loss_after == plain.loss_after
                world.states[session] = left.state
                answers = await gather(engine, [world.request(p, session) for p in (TAUGHT, FAR)])
                assert [a.finished.adapter_used for a in answers] == [True, False]
                assert answers[1].tokens not in base
                base.append(answers[1].tokens)
            assert world.greedy(FAR) == base[0], "without a session nothing is kept down"

    run(main())


def test_where_nothing_is_taught_nothing_is_learned(world: World) -> None:
    said = world.greedy(FAR)
    only = replace(world.example(FAR, "No."), completion=tuple(said), rating=-1)

    async def main() -> None:
        async with running(world.artifact) as engine:
            plain, candidate, again = await asyncio.gather(
                engine.adapt(AdaptRequest((world.example(TAUGHT, "Gladly."),))),
                engine.adapt(AdaptRequest((only,))),
                engine.adapt(AdaptRequest((only, only))),
            )
            for found in (candidate, again):
                assert (found.steps, found.verdict.accepted, found.update_norm) == (0, True, 0.0)
                assert math.isnan(found.loss_before)
                for name, tensor in world.artifact.session_init.items():
                    assert torch.equal(found.state.tensors[name], tensor)
            assert plain.steps > 0
            world.states["bob"] = candidate.state
            far, near, chosen = await gather(
                engine,
                [
                    world.request(FAR, "bob"),
                    world.request(TAUGHT, "bob"),
                    world.request(TAUGHT, "bob", choices=CHOICES),
                ],
            )
            assert not far.finished.adapter_used
            assert far.tokens != said
            assert near.tokens == world.greedy(TAUGHT), "elsewhere the base is as it was"
            assert not chosen.finished.adapter_used
            untaught = await collect(engine, world.request(TAUGHT, choices=CHOICES))
            assert chosen.finished.choice_logprobs == untaught.finished.choice_logprobs
            assert engine.status().adapts_finished == 3

    run(main())


HOUSE = "dan"
HOUSE_PROMPT = "Do you wrap gifts?"


def beside(world: World, text: str, session: str, **sampling: object) -> GenerateRequest:
    """A request of a session whose house was taught another prompt."""
    gate = world.artifact.rule.gate
    assert gate is not None
    number = answer_number(world.encoder.completion(CHOICES[0]))
    taught = Taught(vector(world, HOUSE_PROMPT), torch.tensor([number]), gate.view)
    world.states[HOUSE] = replace(world.states[HOUSE], taught=taught)
    return replace(world.request(text, session, **sampling), house=world.ref(HOUSE))


@pytest.mark.parametrize("slots", [1, 4])
def test_a_house_answers_what_it_was_taught_the_nearest(world: World, slots: int) -> None:
    """With one slot, requests that want the house's wait until the others are done."""

    async def main() -> None:
        async with running(world.artifact, slots=slots) as engine:
            asked = [TAUGHT, HOUSE_PROMPT, FAR, HOUSE_PROMPT]
            requests = [beside(world, text, name) for text in asked for name in ("ann", "bob")]
            answers = await gather(engine, requests)
            assert [a.finished.house_used for a in answers] == [*[False, False, True, True] * 2]
            assert [a.finished.adapter_used for a in answers[4:6]] == [False, False]
            for request, answer in zip(requests, answers, strict=True):
                assert request.adapter is not None
                name = request.adapter.key.split("/")[1]
                text = asked[requests.index(request) // 2]
                who = {TAUGHT: name, HOUSE_PROMPT: HOUSE, FAR: None}[text]
                assert answer.tokens == world.greedy(text, who)
            await until(lambda: engine.status().slots_pinned == 0)

    run(main())


def test_choices_know_what_both_were_taught(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            house = await collect(engine, beside(world, HOUSE_PROMPT, "ann", choices=CHOICES))
            own = await collect(engine, beside(world, TAUGHT, "ann", choices=CHOICES))
            assert (house.finished.text, house.finished.house_used) == (CHOICES[0], True)
            assert (own.finished.text, own.finished.house_used) == (CHOICES[1], False)

    run(main())


def test_a_session_comes_before_its_house_about_the_same_prompt(world: World) -> None:
    gate = world.artifact.rule.gate
    assert gate is not None
    own, house = world.states["ann"].taught, world.states["ann"].taught
    assert own is not None
    assert house is not None
    asked = vector(world, TAUGHT)
    assert not bool(house_answers(gate, own, house, asked))
    elsewhere = Taught(vector(world, FAR), own.answers, own.view)
    assert bool(house_answers(gate, elsewhere, house, asked))
    assert not bool(house_answers(gate, elsewhere, house, vector(world, HOUSE_PROMPT)))
    both = together(own, Taught(torch.cat([house.keys, elsewhere.keys]), torch.tensor([7, 8]), ""))
    assert both.answers.tolist() == [*own.answers.tolist(), 8]
