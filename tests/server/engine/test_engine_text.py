"""What is shown piece by piece is what decoding everything at once gives, up to the stop text."""

import pytest
from engine_harness import World, collect, gather, run, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine import Finished
from server.engine.detokenize import Detokenizer, StopFilter

QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXTS = [
    " leading",
    "naïve café",
    "日本語🙂",
    "  two  spaces  ",
    "a\nb\n\n",
    "Привет, 世界!",
    "🙂🙂",
]


def pieces(world: World, tokens: list[int]) -> list[str]:
    stream = Detokenizer(world.artifact.tokenizer)
    return [*(stream.push(token) for token in tokens), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back_in_whole_characters(world: World, text: str) -> None:
    tokens = list(world.encoder.completion(text))
    shown = pieces(world, tokens)
    assert "".join(shown) == world.decode(tokens)
    # This tokenizer gives a text its leading space, or takes the one that is there for its own.
    assert "".join(shown) == text.removeprefix(" ")
    assert "\ufffd" not in "".join(shown)
    assert len(shown) > 2


@QUICK
@given(st.lists(st.integers(0, 399), max_size=24))
def test_any_tokens_give_what_decoding_them_at_once_gives(world: World, tokens: list[int]) -> None:
    tokens = [token % len(world.artifact.tokenizer) for token in tokens]
    assert "".join(pieces(world, tokens)) == world.decode(tokens)


def reference_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character until some stop text is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_texts_are_found_wherever_the_pieces_are_cut(cut: list[str], stops: list[str]) -> None:
    stream, shown, stopped = StopFilter(stops), "", False
    for piece in cut:
        text, stopped = stream.push(piece)
        shown += text
        if stopped:
            break
    assert (shown + stream.flush(), stopped) == reference_stop("".join(cut), stops)


def test_text_that_cannot_begin_a_stop_is_not_held_back() -> None:
    stream = StopFilter(["END", "\n\n"])
    assert stream.push("one E") == ("one ", False)
    assert stream.push("N") == ("", False)
    assert stream.push("T\n") == ("ENT", False)
    assert stream.flush() == "\n"


def test_answers_end_before_the_stop_text(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            sampling = {"temperature": 1.0, "seed": 3, "max_tokens": 30}
            whole = await collect(engine, world.request("Hi", **sampling))
            assert whole.text == world.decode(whole.tokens)
            for begin in range(1, len(whole.text) - 3, 6):
                stop = whole.text[begin : begin + 3]
                answer = await collect(engine, world.request("Hi", **sampling, stop=(stop,)))
                assert answer.text == whole.text[: whole.text.index(stop)]
                assert answer.finished.finish_reason == "stop"
                assert answer.tokens == whole.tokens[: len(answer.tokens)]
                assert stop in world.decode(answer.tokens), "and no token was missing"

    run(main())


def test_the_end_token_ends_an_answer_and_is_not_shown(world: World) -> None:
    text = "Where is my order?"
    end = world.encoder.end_id

    async def main() -> None:
        async with running(world.artifact) as engine:
            sampling = {"temperature": 3.0, "max_tokens": 40, "logprobs": True}
            requests = [world.request(text, **sampling, seed=seed) for seed in range(32)]
            reasons = set()
            for answer in await gather(engine, requests):
                assert len(answer.logprobs) == len(answer.tokens)
                reason = answer.finished.finish_reason
                assert reason == ("stop" if answer.tokens[-1] == end else "length")
                assert answer.text == world.decode(answer.tokens)
                reasons.add(reason)
            assert reasons == {"stop", "length"}

    run(main())


def test_pieces_arrive_before_the_answer_is_whole(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            request = world.request("Hi", temperature=2.0, seed=1, max_tokens=40)
            items = [item async for item in engine.generate(request)]
            assert isinstance(items[-1], Finished)
            assert len(items) > 10
            assert items[-1].prompt_tokens == len(request.prompt.ids)

    run(main())
