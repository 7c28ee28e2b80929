"""New schemas are tried in a process that can be killed, and what fails fails alone."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from engine_harness import World, collect, gather, run, running
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from server.engine import (
    EngineFailed,
    EngineStopped,
    GrammarRefused,
    grammar,
    schema_trial,
    trial_process,
)
from server.engine.base import Base, make_base
from server.engine.grammar import Grammar, Grammars
from server.engine.outbox import Mail, Outbox
from server.engine.sampling import Chosen
from server.engine.ticket import Writing
from server.engine.trial_process import TrialProcess

TEXT = "Where is my order?"
GOOD = json.dumps({"enum": ["barn", "road"]})
# Whether any text fits all of them is looked for in 2 to the 30th states.
ENDLESS = json.dumps(
    {"allOf": [{"type": "string", "pattern": f"^.*a.{{{k}}}$"} for k in range(1, 31)]}
)


@pytest.fixture
def base(world: World) -> Iterator[Base]:
    base = make_base(world.artifact)
    yield base
    base.hooks.remove()


def pid_of(grammars: Grammars) -> int:
    assert grammars._trials is not None
    assert grammars._trials._process is not None
    return grammars._trials._process.pid


def test_an_endless_schema_is_refused_and_holds_up_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, original = threading.Event(), TrialProcess.refusal

    def refusal(self: TrialProcess, schema: str) -> str | None:
        told = original(self, schema)
        answered.wait()  # its time may be over before ours has begun
        return told

    monkeypatch.setattr(TrialProcess, "refusal", refusal)

    async def main() -> None:
        async with running(world.artifact) as engine:
            endless = [
                asyncio.create_task(collect(engine, world.request(TEXT, schema=ENDLESS)))
                for _ in range(3)
            ]
            free = await collect(engine, world.request(TEXT))
            world.check_greedy(world.request(TEXT), free.tokens)
            assert not any(task.done() for task in endless)
            answered.set()
            endless.pop().cancel()  # one client goes; the others get their answer
            for task in endless:
                with pytest.raises(GrammarRefused, match="too long to compile"):
                    await task
            trials = engine._grammars._trials
            assert trials is not None
            assert trials._process is None  # one trial was enough for all of them
            with pytest.raises(GrammarRefused, match="too long to compile"):
                await collect(engine, world.request(TEXT, schema=ENDLESS))
            assert trials._process is None  # and for later ones
            answer = await collect(engine, world.request(TEXT, schema=GOOD, max_tokens=30))
            assert answer.text.strip() in ('"barn"', '"road"')
            pid = pid_of(engine._grammars)
            os.kill(pid, 0)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(main())


def test_closing_ends_a_trial_and_a_lost_process_is_replaced(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = Grammars(base)
    asked, original = threading.Event(), trial_process._ask

    def ask(process: "subprocess.Popen[str]", line: str, limit_s: float) -> str:
        if json.loads(line) == ENDLESS:
            process.send_signal(signal.SIGSTOP)  # no time of its own ends it before we do
            asked.set()
        return original(process, line, limit_s)

    monkeypatch.setattr(trial_process, "_ask", ask)

    async def main() -> None:
        await grammars.begin(GOOD)
        os.kill(first := pid_of(grammars), signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        await grammars.begin('{"const": 1}')
        assert pid_of(grammars) != first
        trial = asyncio.create_task(grammars.begin(ENDLESS))
        await asyncio.to_thread(asked.wait)
        await asyncio.to_thread(grammars.close)
        with pytest.raises(EngineStopped):
            await trial
        await grammars.begin(GOOD)  # is compiled already
        with pytest.raises(EngineStopped):
            await grammars.begin('{"const": 2}')

    run(main())


def test_the_process_ignores_interrupts_and_ends_with_its_input(base: Base) -> None:
    text = grammar._plain_tokenizer(base.tokenizer)
    with subprocess.Popen(
        [sys.executable, "-P", schema_trial.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line, answer in (
            ([text, base.vocabulary, base.encoder.end_id], None),
            (GOOD, None),
            ('{"not": {}}', "the schema cannot be enforced"),
        ):
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            said = json.loads(process.stdout.readline())
            assert said == answer or said.startswith(answer)
            process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.wait() == 0


def test_a_model_whose_tokenizer_cannot_be_read_says_so_once(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(*given: object, **named: object) -> object:
        made.append(1)
        return original(*given, **named)

    original = grammar.LLTokenizer
    monkeypatch.setattr(grammar, "LLTokenizer", counted)
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "<end>": 2}, unk_token="<unk>"))
    for unfit in (
        replace(base, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words)),
        replace(base, vocabulary=3),
    ):
        made.clear()
        grammars = Grammars(unfit)
        for schema in (GOOD, GOOD, '{"const": 1}'):
            with pytest.raises(GrammarRefused, match="this model's tokenizer"):
                run(grammars.begin(schema))
        assert made == [1]
        grammars.close()


def test_a_mask_that_fails_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: dict[Grammar, int] = {}
    original = Grammar.allowed

    def failing(self: Grammar) -> torch.Tensor:
        steps[self] = steps.get(self, 0) + 1
        if self is next(iter(steps)) and steps[self] == 3:
            raise EngineFailed("enough of this")
        return original(self)

    monkeypatch.setattr(Grammar, "allowed", failing)
    schema = json.dumps({"type": "string", "minLength": 9, "maxLength": 20})
    held = [world.request(TEXT, name, max_tokens=24, schema=schema) for name in (None, "ann")]
    free = world.request(TEXT, "bob", max_tokens=24)

    async def main() -> None:
        async with running(world.artifact) as engine:
            tasks = [asyncio.create_task(collect(engine, request)) for request in (*held, free)]
            done = await asyncio.gather(*tasks, return_exceptions=True)
            errors = [item for item in done if isinstance(item, BaseException)]
            assert [str(error) for error in errors] == ["enough of this"]
            (again,) = await gather(engine, [free])
            assert not isinstance(done[2], BaseException)
            assert done[2].finished.text == again.finished.text
        assert "trying each alone" not in caplog.text

    run(main())


def test_no_token_at_all_is_said_as_what_it_is(world: World, base: Base) -> None:
    class Nothing:
        def compute_bitmask(self) -> bytes:
            return bytes(base.vocabulary // 8 + 1)

        def is_error(self) -> bool:
            return False

    nothing = Grammar(Nothing(), base)  # type: ignore[arg-type]
    with pytest.raises(EngineFailed, match="no token goes on"):
        nothing.allowed()

    async def main() -> None:
        for session, held, said in (
            (None, None, "without any adapter: check the model's files"),
            (None, nothing, "on all that the schema allows, without any adapter"),
            ("ann", None, "tenant/ann/1 is not finite: roll the session back"),
            ("ann", nothing, "without response_format, or roll the session back"),
        ):
            state = None if session is None else world.states[session]
            ticket = Writing(base, world.request(TEXT, session), state, Outbox(Mail()), held)
            with pytest.raises(EngineFailed, match=said):
                ticket.accept(Chosen(None, None))

    run(main())
