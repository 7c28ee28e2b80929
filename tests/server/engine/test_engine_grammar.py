"""Answers held to a JSON schema, beside answers that are free."""

import json

import jsonschema
import pytest
import torch
from engine_harness import World, gather, run, running

from server.engine import EngineFailed, GrammarRefused, InvalidRequest, Sampling
from server.engine.base import make_base
from server.engine.grammar import Grammars
from server.engine.sampling import Dice, choose

TEXT = "Where is my order?"
SCHEMA = {
    "type": "object",
    "properties": {"where": {"enum": ["barn", "road"]}, "days": {"type": "integer"}},
    "required": ["where"],
    "additionalProperties": False,
}


def test_masked_tokens_are_not_drawn_and_log_probabilities_stay_the_models() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]]).repeat(3, 1)
    samplings = [Sampling(2, logprobs=True, top_logprobs=2), Sampling(2, 1.0), Sampling(2)]
    masks = {0: torch.tensor([False, True, True]), 1: torch.tensor([False, False, True])}
    chosen = choose(logits, samplings, [Dice(1)] * 3, None, masks)
    assert [item.token for item in chosen] == [1, 2, 0]
    expected = logits[0].log_softmax(0).tolist()
    assert chosen[0].logprob == pytest.approx(expected[1])
    assert [token for token, _ in chosen[0].top] == [0, 1]
    assert [value for _, value in chosen[0].top] == pytest.approx(expected[:2])
    assert chosen[1].top == chosen[2].top == ()


def test_held_and_free_rows_decode_together(world: World) -> None:
    text = json.dumps(SCHEMA)
    free = [world.request(TEXT, name, max_tokens=20) for name in (None, "ann")]
    held = [
        world.request(TEXT, name, max_tokens=60, temperature=2.0, seed=seed, schema=text)
        for seed, name in enumerate((None, "ann", "bob"))
    ]

    async def main() -> None:
        async with running(world.artifact) as engine:
            alone = await gather(engine, free)
            together = await gather(engine, [*free, *held])
            for one, other in zip(alone, together, strict=False):
                assert one.finished.text == other.finished.text
            for answer in together[2:]:
                if answer.finished.finish_reason == "stop":
                    jsonschema.validate(json.loads(answer.finished.text), SCHEMA)
                else:
                    assert answer.finished.text.startswith("{")
            with pytest.raises(GrammarRefused, match="not"):
                await gather(engine, [world.request(TEXT, schema='{"not": {}}')])

    run(main())


def test_a_grammar_follows_its_tokens(world: World) -> None:
    base = make_base(world.artifact)
    grammars = Grammars(base)
    try:
        first, second = (run(grammars.begin('{"const": "ab"}')) for _ in range(2))
        said: list[int] = []
        while not (mask := first.allowed())[list(base.end_ids)].all():
            said.append(int(mask.nonzero()[0]))
            first.accept(said[-1])
        assert world.decode(said).strip() == '"ab"'
        assert first.allowed().sum() == len(base.end_ids)
        assert second.allowed()[said[0]]  # each answer has a place of its own
        with pytest.raises(EngineFailed, match="schema"):
            second.accept(int((~second.allowed()).nonzero()[0]))
        with pytest.raises(GrammarRefused, match="read"):
            run(grammars.begin("[1]"))
    finally:
        grammars.close()
        base.hooks.remove()


def test_a_schema_goes_with_neither_choices_nor_min_tokens() -> None:
    with pytest.raises(InvalidRequest, match="schema"):
        Sampling(3, schema="{}", choices=("a",))
    with pytest.raises(InvalidRequest, match="schema"):
        Sampling(3, schema="{}", min_tokens=1)
    with pytest.raises(InvalidRequest, match="top_logprobs"):
        Sampling(3, top_logprobs=2)
