"""Tokens are drawn from exactly the distribution that was asked for, by each request's own dice."""

import pytest
import torch
from engine_harness import World, collect, gather, run, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.chat import PromptError
from adapters.prefix import Prefix
from server.engine import InvalidRequest, RequestTooLong, Sampling
from server.engine import choices as engine_choices
from server.engine.sampling import Dice, choose

TEXT = "Where is my order?"


def draw(logits: torch.Tensor, sampling: Sampling, count: int) -> torch.Tensor:
    """How often each token is drawn, in ``count`` rows."""
    rows = logits.expand(count, -1)
    chosen = choose(rows, [sampling] * count, [Dice(seed) for seed in range(count)])
    tokens = torch.tensor([item.token for item in chosen])
    return torch.bincount(tokens, minlength=logits.shape[-1]) / count


def test_frequencies_are_the_models_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    for temperature in (0.5, 1.0, 2.0):
        seen = draw(logits, Sampling(1, temperature), 4000)
        expected = (logits / temperature).softmax(0)
        torch.testing.assert_close(seen, expected, atol=0.03, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(0.05, 1.0),
    st.integers(0, 6),
    st.sampled_from([1e-9, 0.3, 1.0, 50.0]),
)
def test_only_allowed_tokens_are_drawn(
    seed: int, top_p: float, top_k: int, temperature: float
) -> None:
    logits = torch.randn(8, generator=torch.Generator().manual_seed(seed)) * 3
    seen = draw(logits, Sampling(1, temperature, top_p, top_k), 64)
    order = logits.argsort(descending=True)
    probabilities = (logits.double() / max(temperature, 1e-6)).softmax(0)[order]
    before = probabilities.cumsum(0) - probabilities
    allowed = (before < top_p + 1e-6) & (torch.arange(8) < (top_k or 8))
    allowed[0] = True
    assert set(seen.nonzero().flatten().tolist()) <= set(order[allowed].tolist())


def test_barred_tokens_are_not_drawn_and_log_probabilities_stay_the_models() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]]).repeat(3, 1)
    samplings = [Sampling(2, logprobs=True), Sampling(2, 1.0, logprobs=True), Sampling(2)]
    chosen = choose(logits, samplings, [Dice(1)] * 3, {0: {0}, 1: {0, 1}})
    assert [item.token for item in chosen] == [1, 2, 0]
    expected = logits[0].log_softmax(0)
    assert chosen[0].logprob == pytest.approx(float(expected[1]))
    assert chosen[1].logprob == pytest.approx(float(expected[2]))


def test_an_answer_does_not_end_before_min_tokens(world: World) -> None:
    """Neither by the end token nor by a stop text; afterwards both count again."""

    async def main() -> None:
        async with running(world.artifact) as engine:
            for session in (None, "ann", "bob", "cem"):
                free = await collect(engine, world.request(TEXT, session, max_tokens=40))
                for least in (0, 3, min(len(free.tokens) + 2, 40), 40):
                    request = world.request(TEXT, session, max_tokens=40, min_tokens=least)
                    tokens = (await collect(engine, request)).tokens
                    assert len(tokens) >= least
                    assert world.encoder.end_id not in tokens[:least]
                    if least < len(free.tokens):
                        assert tokens == free.tokens
                stop = free.text[2:4]
                if len(free.tokens) == 40 and stop:
                    late = world.request(TEXT, session, max_tokens=40, min_tokens=20, stop=(stop,))
                    assert len((await collect(engine, late)).tokens) >= 20

    run(main())


def test_a_row_is_drawn_the_same_in_any_company() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    samplings = [
        Sampling(1, 1.0, seed=7),
        Sampling(1),
        Sampling(1, 0.7, 0.9, seed=8),
        Sampling(1, 1.3, top_k=5, seed=9),
        Sampling(1),
    ]
    together = choose(logits, samplings, [Dice(s.seed) for s in samplings])
    for row, sampling in enumerate(samplings):
        alone = choose(logits[row : row + 1], [sampling], [Dice(sampling.seed)])
        assert alone[0].token == together[row].token
    assert together[1].token == int(logits[1].argmax())


def test_rows_that_are_not_finite_give_no_token_and_harm_no_other() -> None:
    logits = torch.zeros(4, 5)
    logits[0, 2] = 1.0
    logits[1, 3] = float("nan")
    logits[2, 3] = float("inf")
    logits[3] = float("-inf")
    logits[3, 4] = 0.0  # a model may forbid tokens
    for temperature in (0.0, 1.0):
        chosen = choose(logits, [Sampling(1, temperature)] * 4, [Dice(1) for _ in range(4)])
        assert [item.token is None for item in chosen] == [False, True, True, False]
        assert chosen[3].token == 4


def test_seeds_repeat_and_differ(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:

            def asks(**sampling: object) -> list:
                return [world.request(TEXT, "ann", temperature=1.5, **sampling) for _ in range(4)]

            same = await gather(engine, asks(seed=11))
            assert len({tuple(answer.tokens) for answer in same}) == 1
            others = [world.request(TEXT, "ann", temperature=1.5, seed=n) for n in range(6)]
            different = await gather(engine, others)
            assert len({tuple(answer.tokens) for answer in different}) > 3
            without = await gather(engine, asks())
            assert len({tuple(answer.tokens) for answer in without}) > 1
            greedy = await gather(engine, [world.request(TEXT, seed=n) for n in (None, 1, 2)])
            assert len({tuple(answer.tokens) for answer in greedy}) == 1

    run(main())


CHOICES = ("Yes", "No", "Yes, of course, your order is on its way", "naïve 🙂", "No.")


@pytest.mark.parametrize("scope", ["activated", "full"])
@pytest.mark.parametrize("session", [None, "bob"])
def test_choices_are_scored_by_the_model(
    world: World, full_world: World, scope: str, session: str | None
) -> None:
    world = world if scope == "activated" else full_world
    prompt = world.prompt(TEXT)
    expected = {}
    for choice in CHOICES:
        tokens = world.encoder.completion(choice)
        logprobs = world.logits(prompt, tokens[:-1], session).log_softmax(-1)
        expected[choice] = float(logprobs[range(len(tokens)), list(tokens)].sum())
    best = max(CHOICES, key=expected.__getitem__)
    shares = torch.tensor(list(expected.values())).log_softmax(0).tolist()

    async def main() -> None:
        for prefill_tokens in (1, 24, 512):  # one by one, some together, all together
            async with running(world.artifact, prefill_tokens=prefill_tokens) as engine:
                request = world.request(TEXT, session, choices=CHOICES, logprobs=True)
                answer = await collect(engine, request)
                assert answer.text == best
                assert answer.finished.finish_reason == "stop"
                assert answer.finished.choice_logprobs == pytest.approx(
                    dict(zip(expected, shares, strict=True)), abs=1e-3
                )
                assert tuple(answer.tokens) == world.encoder.completion(best)
                assert sum(answer.logprobs) == pytest.approx(expected[best], abs=1e-3)

    run(main())


SAMPLINGS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 20),
        "min_tokens": st.integers(0, 20),
        "temperature": st.sampled_from([0.0, 1e-9, 0.3, 1.0, 2.0, 1e6]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 1.0]),
        "top_k": st.sampled_from([0, 1, 2, 50, 10**6]),
        "stop": st.lists(st.sampled_from(["e", " t", "ing", ".", "é", "zzz"]), max_size=3).map(
            tuple
        ),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "logprobs": st.booleans(),
    }
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,  # a draw on the very edge between two tokens may fall to either
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=st.lists(SAMPLINGS, min_size=1, max_size=4), session=st.sampled_from([None, "bob"]))
def test_any_sampling_gives_an_answer_of_its_own(
    world: World, drawn: list[dict[str, object]], session: str | None
) -> None:
    """Whatever is asked for, beside whatever else: as alone, and within what was asked for."""
    possible = [sampling for sampling in drawn if sampling["min_tokens"] <= sampling["max_tokens"]]  # type: ignore[operator]
    for sampling in drawn:
        if sampling not in possible:
            with pytest.raises(InvalidRequest, match="min_tokens"):
                world.request(TEXT, session, **sampling)
    requests = [world.request(TEXT, session, **sampling) for sampling in possible]

    async def main() -> None:
        async with running(world.artifact) as engine:
            together = await gather(engine, requests)
            for request, answer in zip(requests, together, strict=True):
                asked, finished = request.sampling, answer.finished
                assert (await collect(engine, request)).tokens == answer.tokens
                assert asked.min_tokens <= len(answer.tokens) <= asked.max_tokens
                ended = answer.tokens[-1] == world.encoder.end_id
                assert world.encoder.end_id not in answer.tokens[:-1]
                if finished.finish_reason == "length":
                    assert len(answer.tokens) == asked.max_tokens
                    assert not ended
                if not asked.min_tokens:
                    assert not [text for text in asked.stop if text in answer.text]
                    whole = world.decode(answer.tokens)
                    assert whole.startswith(answer.text)
                    stopped = bool([text for text in asked.stop if text in whole])
                    assert (finished.finish_reason == "stop") == (ended or stopped)
                assert len(answer.logprobs) == (len(answer.tokens) if asked.logprobs else 0)
                assert all(value <= 1e-6 for value in answer.logprobs)
                greedy = asked.top_k == 1 or min(asked.temperature, asked.top_p) <= 1e-9
                if greedy and not (asked.min_tokens or asked.stop):
                    world.check_greedy(request, answer.tokens)

    run(main())


def test_the_prompts_of_many_choices_fit_the_memory_for_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each choice has the whole prompt before it, however few tokens of its own it has."""
    config, choices = world.model.config, tuple(f"no. {number}" for number in range(20))
    token_bytes = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    passes: list[int] = []
    real = engine_choices.continue_from

    def counted(model: torch.nn.Module, prefix: Prefix, ids: torch.Tensor) -> torch.Tensor:
        passes.append(len(ids))
        return real(model, prefix, ids)

    monkeypatch.setattr(engine_choices, "continue_from", counted)

    async def main() -> None:
        answers = []
        for rows in (20, 3):
            passes.clear()
            async with running(world.artifact, kv_bytes=rows * 64 * token_bytes) as engine:
                answers.append(await collect(engine, world.request(TEXT, choices=choices)))
            assert max(passes) <= rows
            assert sum(passes) == 20
        assert len(passes) > 6
        few, many = (answer.finished.choice_logprobs for answer in answers)
        assert many == pytest.approx(few, abs=1e-3)

    run(main())


def test_choices_beside_other_requests(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, rows=2) as engine:
            requests = [
                world.request(text, session, **extra)
                for text in (TEXT, "Hi")
                for session in ("ann", None)
                for extra in ({}, {"choices": CHOICES})
            ]
            answers = await gather(engine, requests)
            for request, answer in zip(requests, answers, strict=True):
                if request.sampling.choices:
                    scores = answer.finished.choice_logprobs
                    assert answer.text == max(scores, key=scores.__getitem__)
                else:
                    world.check_greedy(request, answer.tokens)

    run(main())


def test_choices_that_cannot_be_given_are_refused(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            with pytest.raises(PromptError, match="control token"):
                await collect(engine, world.request(TEXT, choices=("Yes", "<|end|>")))
            with pytest.raises(RequestTooLong):
                await collect(engine, world.request(TEXT, choices=("Yes " * 300,)))
            with pytest.raises(InvalidRequest, match="differ"):
                world.request(TEXT, choices=("Yes", "Yes"))

    run(main())
