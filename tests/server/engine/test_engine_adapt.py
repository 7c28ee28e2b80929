"""Adapting takes THE inner step, beside others, and touches nobody else."""

import asyncio
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from engine_harness import CONTEXT_TOKENS, World, collect, holding, run, running, until
from torch.nn.functional import cross_entropy

from adapters import prefix as prefix_module
from adapters.chat import EncodedPrompt
from adapters.guard import Verdict
from adapters.inner_loop import adapt
from adapters.layer import LoraHooks
from adapters.minibatches import minibatches
from adapters.prefix import continue_from, prefill
from adapters.state import AdapterState, Tensors, repeat, take
from adapters.support import Anchors, Example, Support, make_turns
from server.engine import (
    AdapterRef,
    AdaptRequest,
    Candidate,
    EngineBusy,
    EngineFailed,
    EngineLimits,
    GenerateRequest,
    InvalidRequest,
    RequestTooLong,
    Sampling,
)
from server.engine import lesson as lesson_module
from server.engine.job import Job
from server.engine.learner import Learner
from server.engine.lesson import Lesson

CPU = torch.device("cpu")
LESSONS = [
    [("Where is my order?", "On its way."), ("Is my order lost?", "No, on its way.")],
    [("Hi", "Good day!")],
    [("Refund?", "Sure."), ("Money back", "Of course, sure."), ("I want a refund", "Sure.")],
]


def examples(world: World, lesson: int) -> tuple[Example, ...]:
    return tuple(world.example(*pair) for pair in LESSONS[lesson])


def slow_adapt(world: World, lesson: int, steps: int) -> Tensors:
    """The inner loop called by hand, for one session alone."""
    return slowly(world, examples(world, lesson), steps, world.artifact.session_init)


def slowly(
    world: World, taught: Sequence[Example], steps: int, begin: Tensors, first: int = 0
) -> Tensors:
    """The same over any examples and from anywhere, the first step with the size of ``first``."""
    artifact, scope = world.artifact, world.artifact.spec.scope
    model, hooks = world.model, LoraHooks(world.model, artifact.spec)
    rule = artifact.rule
    sizes = {
        name: torch.stack([rule.sizes_at(first + n)[name] for n in range(steps)]) for name in begin
    }
    rule = replace(rule, steps=steps, step_sizes=sizes)
    anchored = [world.example(a.prompt, a.completion) for a in artifact.rule.anchors]
    with torch.no_grad():
        own = make_turns(taught, prefill(model, [e.prompt for e in taught], CPU), scope, CPU)
        kept = prefill(model, [e.prompt for e in anchored], CPU)
        turns = make_turns(anchored, kept, scope, CPU)
        reference = continue_from(model, turns.prefix, turns.ids).log_softmax(-1)
    owners = torch.zeros(len(taught), dtype=torch.long)
    support = Support(own, owners, 1, Anchors(turns, reference))
    moved, _ = adapt(model, hooks, repeat(begin, 1), support, rule)
    hooks.remove()
    return take(moved, 0)


def plain_loss(world: World, lesson: int, state: AdapterState | None) -> float:
    losses = []
    for example in examples(world, lesson):
        prompt = EncodedPrompt(example.prompt, example.header)
        logits = world.logits_under(prompt, example.completion[:-1], state)
        losses.append(cross_entropy(logits, torch.tensor(example.completion)))
    return float(torch.stack(losses).mean())


def same(left: Tensors, right: Tensors) -> bool:
    return all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_a_candidate_is_what_the_inner_loop_derives(
    world: World, full_world: World, scope: str
) -> None:
    world = world if scope == "activated" else full_world

    async def main() -> Candidate:
        async with running(world.artifact) as engine:
            first = await engine.adapt(AdaptRequest(examples(world, 0)))
            again = await engine.adapt(AdaptRequest(examples(world, 0)))
            assert same(first.state.tensors, again.state.tensors), "alone, it is repeatable"
            return first

    candidate = run(main())
    expected = slow_adapt(world, 0, world.artifact.rule.steps)
    torch.testing.assert_close(candidate.state.tensors, expected, atol=1e-5, rtol=1e-4)
    assert candidate.steps == len(candidate.step_losses) == len(candidate.gradient_norms) == 3
    assert candidate.loss_before == pytest.approx(plain_loss(world, 0, None), rel=1e-4)
    assert candidate.loss_after == pytest.approx(plain_loss(world, 0, candidate.state), rel=1e-3)
    start = world.artifact.session_init
    squares = [(expected[name] - start[name]).square().sum() for name in start]
    assert candidate.update_norm == pytest.approx(math.sqrt(float(sum(squares))), rel=1e-3)
    assert candidate.state.base_fingerprint == world.artifact.fingerprint
    assert candidate.state.spec == world.artifact.spec
    assert candidate.duration_ms > 0


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_sessions_that_learn_together_learn_as_if_alone(
    world: World, full_world: World, scope: str
) -> None:
    world = world if scope == "activated" else full_world
    steps = [5, 1, 3]

    async def main() -> list[Candidate]:
        async with running(world.artifact) as engine:
            requests = [AdaptRequest(examples(world, n), steps[n]) for n in range(3)]
            return await asyncio.gather(*map(engine.adapt, requests))

    for lesson, candidate in enumerate(run(main())):
        assert candidate.steps == len(candidate.step_losses) == steps[lesson]
        torch.testing.assert_close(
            candidate.state.tensors,
            slow_adapt(world, lesson, steps[lesson]),
            atol=1e-4,
            rtol=1e-3,
        )


def test_many_items_are_learned_in_minibatches_beside_few(world: World) -> None:
    """Each step of the long one is over a part of its items, in every pass another part."""
    few = examples(world, 2)
    many = tuple(world.example(f"Is {n} my order?", "No." if n % 3 else "It is.") for n in range(7))
    pair = replace(many[5], rejected=few[0].completion)
    told = AdaptRequest(many, 2, items_a_step=3)
    compared = AdaptRequest((*many[:5], pair, many[6]), 2, items_a_step=3)
    expected = world.artifact.session_init
    batches = list(minibatches(7, 2, 3))
    for step, places in enumerate(batches):
        expected = slowly(world, [many[place] for place in sorted(places)], 1, expected, step)

    async def main() -> None:
        async with running(world.artifact) as engine:
            alone, all_at_once = [
                await engine.adapt(one) for one in (told, replace(told, items_a_step=None))
            ]
            assert not same(alone.state.tensors, all_at_once.state.tensors)
            assert (alone.steps, alone.items_a_step, all_at_once.items_a_step) == (2, 3, None)
            assert len(alone.step_losses) == len(batches) == 6
            assert len(all_at_once.step_losses) == 2
            by_kind = await engine.adapt(compared)
            jobs = (told, AdaptRequest(few, 4), compared)
            together = await asyncio.gather(*map(engine.adapt, jobs))
            torch.testing.assert_close(alone.state.tensors, expected, atol=1e-5, rtol=1e-4)
            four = slow_adapt(world, 2, 4)
            wanted = (expected, four, by_kind.state.tensors)
            for found, own in zip(together, wanted, strict=True):
                torch.testing.assert_close(found.state.tensors, own, atol=1e-4, rtol=1e-3)
            rated = replace(told, examples=(replace(many[0], rating=1), *many[1:]))
            assert (await engine.adapt(rated)).items_a_step is None, "ratings never outweigh"

    run(main())


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_kinds_of_feedback_learn_side_by_side_and_in_parts(
    world: World, full_world: World, scope: str
) -> None:
    world = world if scope == "activated" else full_world
    told, rated, compared = (examples(world, n) for n in range(3))
    requests = [
        AdaptRequest(told, 2),
        AdaptRequest((replace(rated[0], rating=-1),), 4),
        AdaptRequest((replace(compared[0], rejected=told[0].completion), *compared[1:]), 3),
    ]

    async def main() -> None:
        async with running(world.artifact, micro_step_tokens=16) as engine:
            alone = [await engine.adapt(request) for request in requests]
            prompt = world.request("Hi", "ann", max_tokens=150)
            with holding(engine, decoding=0):
                answer = asyncio.ensure_future(collect(engine, prompt))
                await until(lambda: engine.status().decoding == 1)
            together = await asyncio.gather(*map(engine.adapt, requests))
            await answer
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(other.state.tensors, one.state.tensors, atol=1e-4, rtol=1e-3)
            assert other.loss_before == pytest.approx(one.loss_before, rel=1e-4)
            assert other.loss_after == pytest.approx(one.loss_after, rel=1e-3)
        assert alone[1].loss_before == pytest.approx(0.25), "half of a rating's 0.5"
        assert alone[1].loss_after < 0.25

    run(main())


@pytest.mark.parametrize("tokens", [1, 16])
def test_a_step_in_parts_is_the_same_step(world: World, tokens: int) -> None:
    async def main() -> None:
        async with running(world.artifact, micro_step_tokens=tokens) as engine:
            request = world.request("Hi", "ann", max_tokens=150)
            with holding(engine, decoding=0):
                answer = asyncio.ensure_future(collect(engine, request))
                await until(lambda: engine.status().decoding == 1)
            jobs = [engine.adapt(AdaptRequest(examples(world, n))) for n in range(3)]
            for lesson, candidate in enumerate(await asyncio.gather(*jobs)):
                alone = slow_adapt(world, lesson, world.artifact.rule.steps)
                torch.testing.assert_close(candidate.state.tensors, alone, atol=1e-4, rtol=1e-3)
                loss = plain_loss(world, lesson, candidate.state)
                assert candidate.loss_after == pytest.approx(loss, rel=1e-3)
            world.check_greedy(request, (await answer).tokens)

    run(main())


def test_micro_steps_are_short_while_others_wait_and_long_otherwise(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[bool, int]] = []
    real = lesson_module.support_gradients

    async def main() -> None:
        async with running(world.artifact, micro_step_tokens=1) as engine:

            def counting(model, hooks, tensors, support, weight, **options):
                busy = engine.status().decoding > 0
                parts.append((busy, support.turns.ids.shape[0]))
                return real(model, hooks, tensors, support, weight, **options)

            monkeypatch.setattr(lesson_module, "support_gradients", counting)
            jobs = [engine.adapt(AdaptRequest(examples(world, n))) for n in range(3)]
            await asyncio.gather(*jobs)
            request = world.request("Hi", max_tokens=150)
            with holding(engine, decoding=0):
                answer = asyncio.ensure_future(collect(engine, request))
                await until(lambda: engine.status().decoding == 1)
                jobs = [engine.adapt(AdaptRequest(examples(world, n))) for n in (0, 2)]
                await asyncio.gather(*jobs)
            await answer

    run(main())
    assert max(rows for busy, rows in parts if not busy) > 1
    assert {rows for busy, rows in parts if busy} == {0, 1}, "anchors come alone"


def test_one_lesson_takes_several_sessions_within_its_limits(world: World) -> None:
    sizes: list[int] = []
    begin = Lesson.__init__

    def counting(lesson: Lesson, base, course, jobs, *others) -> None:
        sizes.append(len(jobs))
        begin(lesson, base, course, jobs, *others)

    async def main(**limits: int) -> None:
        sizes.clear()
        async with running(world.artifact, **limits) as engine:
            jobs = [engine.adapt(AdaptRequest(examples(world, n % 3))) for n in range(9)]
            assert len(await asyncio.gather(*jobs)) == 9
            await until(lambda: engine.status().adapts_finished == 9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lesson, "__init__", counting)
        run(main(adapt_batch=4))
        assert sum(sizes) == 9
        assert 1 < max(sizes) <= 4
        run(main(adapt_tokens=1))
        assert sizes == [1] * 9


def test_teaching_one_session_changes_nobody_else(world: World) -> None:
    """The adapted session answers differently; untaught and others are bit for bit as before."""
    weights = {name: tensor.clone() for name, tensor in world.artifact.model.state_dict().items()}
    init = {name: tensor.clone() for name, tensor in world.artifact.session_init.items()}

    async def main() -> None:
        async with running(world.artifact) as engine:

            async def ask(session: str | None) -> tuple[list[int], list[float]]:
                request = world.request("Where is my order?", session, logprobs=True)
                answer = await collect(engine, request)
                return answer.tokens, answer.logprobs

            before = [await ask(None), await ask("ann")]
            candidate = await engine.adapt(AdaptRequest(examples(world, 0), steps=8))
            world.states["new"] = candidate.state
            taught = await ask("new")
            assert taught[0] != before[0][0]
            assert [await ask(None), await ask("ann")] == before
            world.check_greedy(world.request("Where is my order?", "new"), taught[0])

    run(main())
    assert same(weights, world.artifact.model.state_dict())
    assert same(init, world.artifact.session_init)


def test_enough_steps_teach_the_answer(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, halvings=0) as engine:  # it goes too far
            candidate = await engine.adapt(AdaptRequest(examples(world, 1), steps=60))
            assert candidate.loss_after < candidate.loss_before
            world.states["new"] = candidate.state
            answer = await collect(engine, world.request("Hi", "new"))
            assert answer.text == "Good day!"
            assert answer.finished.finish_reason == "stop"

    run(main())


def test_text_flows_while_others_learn(world: World) -> None:
    events: list[str] = []

    async def main() -> None:
        async with running(world.artifact) as engine:
            more = {"max_tokens": 120, "min_tokens": 120, "temperature": 2.0, "seed": 4}
            request = world.request("Hi", "ann", **more)
            alone = await collect(engine, request)

            async def teach(lesson: int) -> None:
                await engine.adapt(AdaptRequest(examples(world, lesson), steps=6))
                events.append("end")

            tokens: list[int] = []

            async def ask() -> None:
                async for item in engine.generate(request):
                    events.append("delta")
                    tokens.extend(getattr(item, "token_ids", ()))

            with holding(engine, decoding=20, learning=0):
                asking = asyncio.ensure_future(ask())
                await until(lambda: len(events) >= 5)
                jobs = [asyncio.ensure_future(teach(lesson)) for lesson in range(3)]
                await until(lambda: engine.status().adapts_waiting == 3)
                events.append("begin")
            await asyncio.gather(asking, *jobs)
            assert tokens == alone.tokens

    run(main())
    middle = events[events.index("begin") : events.index("end")]
    assert middle.count("delta") >= 6, "at least one decode step between two micro-steps"


def test_a_cancelled_adapt_is_forgotten(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            long = asyncio.ensure_future(engine.adapt(AdaptRequest(examples(world, 0), 100_000)))
            await until(lambda: engine.status().adapts_learning == 1)
            other = asyncio.ensure_future(engine.adapt(AdaptRequest(examples(world, 1))))
            await until(lambda: engine.status().adapts_waiting == 1)
            gone = asyncio.ensure_future(engine.adapt(AdaptRequest(examples(world, 2))))
            await until(lambda: engine.status().adapts_waiting == 2)
            long.cancel()
            gone.cancel()
            assert (await other).steps == 3
            await until(lambda: engine.status().adapts_finished == 1)
            await until(lambda: engine.status().adapts_learning == 0)
            # Memory is freed, once the engine's thread has left the step that was the last.
            await until(lambda: not [o for o in gc.get_objects() if type(o) is Lesson])

    run(main())


def test_a_job_whose_lesson_cannot_begin_in_time_is_told_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(world.artifact, adapt_batch=1) as engine:
            long = asyncio.ensure_future(engine.adapt(AdaptRequest(examples(world, 0), 100_000)))
            await until(lambda: engine.status().adapts_learning == 1)
            two = asyncio.gather(
                *(engine.adapt(AdaptRequest(examples(world, i))) for i in (1, 2)),
                return_exceptions=True,
            )
            await until(lambda: engine.status().adapts_waiting == 2)
            assert not two.done()
            with monkeypatch.context() as later:
                later.setattr(Job, "waited_s", 1 + engine.limits.patience_s)
                late = await two
            assert [type(outcome) for outcome in late] == [EngineBusy] * 2
            assert engine.status().adapts_learning == 1, "who learns goes on"
            assert engine.status().adapts_waiting == engine.status().adapts_failed == 0
            long.cancel()
            assert (await engine.adapt(AdaptRequest(examples(world, 1)))).steps == 3

    run(main())


def test_jobs_whose_lesson_failed_late_still_get_their_turn_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long their first lesson took before it failed."""
    original = Lesson.run
    refused: list[int] = []

    def run_lesson(self: Lesson) -> Iterator[None]:
        if len(self.jobs) > 1:
            refused.append(len(self.jobs))
            monkeypatch.setattr(Job, "waited_s", 1 + EngineLimits().patience_s * 10)
            raise RuntimeError("too many")
        yield from original(self)

    monkeypatch.setattr(Lesson, "run", run_lesson)

    async def main() -> None:
        async with running(world.artifact, adapt_batch=4) as engine:
            requests = [AdaptRequest(examples(world, i)) for i in range(3)]
            with holding(engine, learning=0):
                jobs = asyncio.gather(*(engine.adapt(request) for request in requests))
                await until(lambda: engine.status().adapts_waiting == 3)
                await until(lambda: engine.status().prefilling == 0)
            found = await jobs
            assert refused == [3]
            assert [candidate.steps for candidate in found] == [3, 3, 3]

    run(main())


def test_the_guards_verdict_comes_with_the_candidate(world: World) -> None:
    wild = {name: sizes * 100 for name, sizes in world.artifact.rule.step_sizes.items()}
    artifact = replace(world.artifact, rule=replace(world.artifact.rule, step_sizes=wild))

    async def main() -> None:
        async with running(world.artifact) as engine:
            candidate = await engine.adapt(AdaptRequest(examples(world, 1), steps=1))
            assert candidate.verdict == Verdict(True)
        async with running(artifact) as engine:
            candidate = await engine.adapt(AdaptRequest(examples(world, 1)))
            assert not candidate.verdict.accepted
            assert "norm" in str(candidate.verdict.reason)

    run(main())


def test_an_update_that_goes_too_far_is_taken_in_part(world: World) -> None:
    """Each as far as it may go, beside one that is fine as it is; without halving, refused."""
    rule = world.artifact.rule
    far = {name: sizes * 2 for name, sizes in rule.step_sizes.items()}
    artifact = replace(world.artifact, rule=replace(rule, step_sizes=far))
    start = artifact.session_init

    async def main() -> None:
        async with running(artifact, halvings=0) as engine:
            whole = await engine.adapt(AdaptRequest(examples(world, 0)))
            assert (whole.verdict.accepted, whole.verdict.scale) == (False, 1.0)
        async with running(artifact) as engine:
            lessons = (AdaptRequest(examples(world, 0)), AdaptRequest(examples(world, 1), 1))
            part, fine = await asyncio.gather(*map(engine.adapt, lessons))
            again = await engine.adapt(AdaptRequest(examples(world, 0), scale=0.5))
        assert fine.verdict == Verdict(True)
        assert (part.verdict.accepted, part.verdict.scale) == (True, 0.5)
        assert part.verdict.reason == f"taken at 0.5 of its length: {whole.verdict.reason}"
        for name, tensor in whole.state.tensors.items():
            wanted = start[name] + 0.5 * (tensor - start[name])
            torch.testing.assert_close(part.state.tensors[name], wanted, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(again.state.tensors[name], wanted, atol=1e-6, rtol=1e-6)
        assert part.update_norm == pytest.approx(whole.update_norm / 2, rel=1e-3)
        assert part.loss_after == pytest.approx(plain_loss(world, 0, part.state), rel=1e-3)
        assert again.verdict == Verdict(True, None, 0.5)

    run(main())


def test_a_part_that_was_accepted_once_is_the_only_one_that_is_judged_again(world: World) -> None:
    rule = world.artifact.rule
    far = {name: sizes * 2 for name, sizes in rule.step_sizes.items()}
    artifact = replace(world.artifact, rule=replace(rule, step_sizes=far))

    async def main() -> None:
        async with running(artifact) as engine:
            refused = await engine.adapt(AdaptRequest(examples(world, 0), scale=0.9))
        async with running(artifact, halvings=0) as engine:
            accepted = await engine.adapt(AdaptRequest(examples(world, 0), scale=0.5))
        assert not refused.verdict.accepted
        assert "norm" in str(refused.verdict.reason)
        assert accepted.verdict == Verdict(True, None, 0.5)

    run(main())


def test_a_job_that_fails_fails_alone(world: World) -> None:
    """Learning together with a poisoned job fails; the others are derived all the same."""
    poison = world.artifact.model.config.vocab_size - 1
    poisoned = Example((1, 2), (3,), (poison, 4))

    def refuse(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if bool((inputs[0] == poison).any()):
            raise ValueError("this token is poison")

    handle = world.artifact.model.get_input_embeddings().register_forward_pre_hook(refuse)

    async def main() -> None:
        async with running(world.artifact) as engine:
            jobs = [engine.adapt(AdaptRequest(examples(world, lesson))) for lesson in range(3)]
            bad = engine.adapt(AdaptRequest((poisoned,)))
            worse = engine.adapt(AdaptRequest((Example((poison,), (3,), (4,)),)))
            results = await asyncio.gather(*jobs[:2], bad, worse, jobs[2], return_exceptions=True)
            for place, lesson in ((0, 0), (1, 1), (4, 2)):
                candidate = results[place]
                assert isinstance(candidate, Candidate)
                torch.testing.assert_close(
                    candidate.state.tensors, slow_adapt(world, lesson, 3), atol=1e-4, rtol=1e-3
                )
            assert isinstance(results[2], EngineFailed)
            assert isinstance(results[3], EngineFailed)
            assert "this token is poison" in str(results[2])
            await until(lambda: engine.status().adapts_failed == 2)
            assert engine.status().adapts_finished == 3

    try:
        run(main())
    finally:
        handle.remove()


def test_what_cannot_be_learned_from_is_refused(world: World) -> None:
    good = world.example("Hi", "Good day!")
    with pytest.raises(InvalidRequest, match="must not be empty"):
        AdaptRequest(())
    with pytest.raises(InvalidRequest, match=r"examples\[1\]"):
        AdaptRequest((good, Example(good.prompt, good.header, ())))
    with pytest.raises(InvalidRequest, match="steps"):
        AdaptRequest((good,), 0)
    for scale in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(InvalidRequest, match="scale"):
            AdaptRequest((good,), scale=scale)

    async def main() -> None:
        async with running(world.artifact) as engine:
            long = Example(good.prompt, good.header, good.completion * CONTEXT_TOKENS)
            with pytest.raises(RequestTooLong, match=r"examples\[1\]"):
                await engine.adapt(AdaptRequest((good, long)))
            strange = Example((-1,), good.header, good.completion)
            with pytest.raises(InvalidRequest, match="vocabulary"):
                await engine.adapt(AdaptRequest((strange,)))

    run(main())


def test_a_candidate_serves_like_any_adapter(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            candidate = await engine.adapt(AdaptRequest(examples(world, 2)))

            async def load() -> AdapterState:
                return candidate.state

            request = GenerateRequest(
                world.prompt("Refund?"), Sampling(max_tokens=5), AdapterRef("t/new/1", load)
            )
            world.states["new"] = candidate.state
            world.check_greedy(request, (await collect(engine, request)).tokens)

    run(main())


def test_a_lesson_pauses_after_a_move_and_makes_masks_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(module: object, name: str, what: str) -> None:
        real = getattr(module, name)

        def call(*arguments: object, **more: object) -> object:
            done.append(what)
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, call)

    noted(lesson_module, "move", "moved")
    noted(lesson_module, "support_gradients", "step")
    noted(Learner, "_micro_step", "|")
    noted(prefix_module, "_masks", "mask")

    async def main() -> None:
        async with running(world.artifact) as engine:
            await engine.adapt(AdaptRequest(examples(world, 0), steps=3))

    run(main())
    anchors = 1 + 3  # for what the untaught model says, and of every step's
    assert done.count("mask") == 1 + anchors, "once for the examples, in five passes"
    steps = "".join(what for what in done if what != "mask")
    assert "moved|" in steps
    assert "movedstep" not in steps
    assert steps.count("moved") == 3
