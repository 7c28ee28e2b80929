"""The judge's quick figures against decoding and scoring one token at a time."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spoken import KNOWN, make_spoken, nudged, plain_answer, plain_logits
from transformers import PreTrainedTokenizerFast

from adapters.chat import user_turn
from adapters.config import Gate, Mix
from adapters.gate import answer_scores, gate_opens, gate_similarity, prompt_vectors, threshold_of
from adapters.spelling import BUCKETS
from adapters.state import Taught, Tensors, take
from adapters.support import Example
from adapters.words import make_words
from meta_training.evaluation.cells import Task
from meta_training.evaluation.intervals import interval, student
from meta_training.evaluation.judge import ANSWER_TOKENS, Judge
from meta_training.learner import Learner
from meta_training.tasks.episodes import Episode, Turn

UNRELATED = ("Where is the lamp?", "Can you dance?", "please print an invoice", "Thank you.")
NUDGES = (0.12, 0.3)  # of two sessions: one changes few answers, one changes most


@pytest.fixture(scope="module")
def learner(tokenizer: PreTrainedTokenizerFast) -> Learner:
    return make_spoken(tokenizer)


def tasks() -> list[Task]:
    """Two tasks whose queries the base knows by heart, except for one of each."""
    made = []
    for half in (KNOWN[:4], KNOWN[4:]):
        support = tuple(Turn(f"{q} Please.", a, q) for q, a in half)
        query = (*(Turn(q, a, q) for q, a in half), Turn("Why?", "Because.", half[0][0]))
        taught = frozenset(question for question, _ in half)
        made.append(Task(Episode("house_reply", support, query, (), taught), UNRELATED))
    return made


def label_tasks() -> list[Task]:
    made = []
    for half, choices in ((KNOWN[:3], ("lamp", "open", "sing")), (KNOWN[4:7], ("in", "we", "day"))):
        turns = [Turn(q, choice, q) for (q, _), choice in zip(half, choices, strict=True)]
        taught = frozenset(turn.kind for turn in turns)
        made.append(Task(Episode("label", tuple(turns), tuple(turns), choices, taught), UNRELATED))
    return made


def asked(learner: Learner, question: str) -> Example:
    return learner.encoder.example(user_turn(question), "")


def plain_exact(learner: Learner, adapter: Tensors | None, turn: Turn) -> bool:
    target = learner.encoder.completion(turn.answer)
    return plain_answer(learner, adapter, asked(learner, turn.question), len(target)) == target


def plain_changed(learner: Learner, adapter: Tensors | None, question: str) -> bool:
    example = asked(learner, question)
    before = plain_answer(learner, None, example, ANSWER_TOKENS)
    return plain_answer(learner, adapter, example, len(before)) != before


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def test_exact_and_changed_agree_with_real_decoding(learner: Learner) -> None:
    drawn, adapters = tasks(), nudged(learner, *NUDGES)
    scores = Judge(learner, drawn).score(adapters)
    for session, (task, figures) in enumerate(zip(drawn, scores, strict=True)):
        adapter = take(adapters, session)
        exact = [plain_exact(learner, adapter, turn) for turn in task.episode.query]
        changed = [plain_changed(learner, adapter, question) for question in task.unrelated]
        assert figures["exact"] == pytest.approx(share(exact))
        assert figures["changed"] == pytest.approx(share(changed))
    assert 0 < sum(figures["exact"] for figures in scores) < 2, "all or nothing proves little"
    assert 0 < sum(figures["changed"] for figures in scores) < 2
    assert all(figures["kl"] > 0 for figures in scores)


def test_without_an_adapter_nothing_is_changed(learner: Learner) -> None:
    for figures in Judge(learner, tasks()).score(None):
        assert figures["exact"] == pytest.approx(4 / 5)
        assert figures["changed"] == figures["changed_first"] == 0
        assert figures["kl"] == pytest.approx(0, abs=1e-6)
        assert "opened" not in figures


def test_a_task_with_nothing_unrelated_has_no_figures_of_that(learner: Learner) -> None:
    """Alone, or beside one that has some, whose figures stay as they are."""
    drawn, adapters = tasks(), nudged(learner, *NUDGES)
    full = Judge(learner, drawn).score(adapters)
    others = {"changed", "changed_first", "kl"}
    alone = {name: value for name, value in full[0].items() if name not in others}
    drawn[0] = replace(drawn[0], unrelated=())
    first, second = Judge(learner, drawn).score(adapters)
    assert first == pytest.approx(alone)
    assert second == pytest.approx(full[1])
    judge = Judge(learner, [replace(task, unrelated=()) for task in drawn])
    assert all(set(figures) == set(alone) for figures in judge.score(adapters))
    assert judge.changed(adapters).tolist() == []


def test_a_zero_adapter_is_no_adapter(learner: Learner) -> None:
    adapters = {name: torch.zeros_like(t) for name, t in nudged(learner, 0.0, 0.0).items()}
    judge = Judge(learner, tasks())
    assert [f["exact"] for f in judge.score(adapters)] == [f["exact"] for f in judge.score(None)]


def test_one_judge_scores_many_adapters(learner: Learner) -> None:
    judge, adapters = Judge(learner, tasks()), nudged(learner, *NUDGES)
    before = judge.score(adapters)
    judge.score(None)
    assert judge.score(adapters) == before


def test_kl_and_first_token_against_full_forward_passes(learner: Learner) -> None:
    drawn, adapters = tasks(), nudged(learner, *NUDGES)
    for session, figures in enumerate(Judge(learner, drawn).score(adapters)):
        divergences, firsts = [], []
        for question in UNRELATED:
            example = asked(learner, question)
            answer = plain_answer(learner, None, example, ANSWER_TOKENS)
            whole = Example(example.prompt, example.header, answer)
            at = slice(len(example.prompt) + len(example.header) - 1, -1)
            old = plain_logits(learner, None, whole)[at].log_softmax(-1)
            new = plain_logits(learner, take(adapters, session), whole)[at].log_softmax(-1)
            divergences.append(float((old.exp() * (old - new)).sum(-1).mean()))
            firsts.append(int(new[0].argmax()) != answer[0])
        assert figures["kl"] == pytest.approx(statistics.mean(divergences), rel=1e-3)
        assert figures["changed_first"] == pytest.approx(share(firsts))


def test_choice_is_the_likeliest_whole_answer(learner: Learner) -> None:
    drawn, adapters = label_tasks(), nudged(learner, *NUDGES)
    scores = Judge(learner, drawn).score(adapters)
    for session, (task, figures) in enumerate(zip(drawn, scores, strict=True)):
        right = []
        for turn in task.episode.query:
            example = asked(learner, turn.question)
            sums = {}
            for choice in task.episode.choices:
                ids = learner.encoder.completion(choice)
                whole = Example(example.prompt, example.header, ids)
                logits = plain_logits(learner, take(adapters, session), whole)
                places = logits.log_softmax(-1)[len(example.prompt) + len(example.header) - 1 : -1]
                sums[choice] = sum(float(p[i]) for p, i in zip(places, ids, strict=True))
            right.append(max(sums, key=lambda choice: sums[choice]) == turn.answer)
        assert figures["choice"] == pytest.approx(share(right))


def make_gate(learner: Learner, threshold: float, mix: Mix | None = None) -> Gate:
    vectors = torch.randn(BUCKETS, 4, generator=torch.Generator().manual_seed(5))
    words = make_words(vectors, torch.ones(BUCKETS), learner.encoder.tokenizer)
    return Gate(learner.summary_layer, threshold, 0.0, mix, words)


def vector(learner: Learner, question: str) -> torch.Tensor:
    """(1, E) what the gate compares, from a forward pass of its own."""
    prompt = asked(learner, question).prompt
    with torch.no_grad():
        states = learner.model(
            input_ids=torch.tensor([prompt]), output_hidden_states=True
        ).hidden_states
    last: torch.Tensor = states[learner.summary_layer][:, -1]
    return prompt_vectors(make_gate(learner, 0.0), last, [prompt])


def taught_by(learner: Learner, task: Task) -> Taught:
    keys = torch.cat([vector(learner, t.question) for t in task.episode.support])
    answers = [turn.answer for turn in task.episode.support]
    return Taught(keys, torch.tensor([answers.index(answer) for answer in answers]), "view")


def test_a_memory_chooses_with_the_model(learner: Learner) -> None:
    drawn, adapters = label_tasks(), nudged(learner, *NUDGES)
    drawn = [
        replace(
            task,
            episode=replace(
                task.episode,
                query=tuple(
                    replace(turn, question=question)
                    for turn, question in zip(task.episode.query, UNRELATED, strict=False)
                ),
            ),
        )
        for task in drawn
    ]
    alone = Judge(learner, drawn).score(adapters)
    assert all("choice_memory" not in figures for figures in alone)
    learner.gate = gate = make_gate(learner, 0.25, Mix(0.3, 12.0))
    try:
        judge = Judge(learner, drawn)
        logprobs, scores = judge.choice_logprobs(adapters), judge.score(adapters)
    finally:
        learner.gate = None
    rows = iter(logprobs)
    for task, figures, plain in zip(drawn, scores, alone, strict=True):
        known, turns = taught_by(learner, task), task.episode.support
        numbers = known.fitted[0].tolist()
        by_memory, by_both, best, errors = [], [], [], []
        for turn in task.episode.query:
            wanted, row = answer_scores(known, vector(learner, turn.question))[0], next(rows)
            likeness = {
                choice: float(wanted[numbers.index(number)]) - threshold_of(gate, known)
                for choice in task.episode.choices
                for number in [[t.answer for t in turns].index(choice)]
            }
            both = {c: 0.3 * float(row[i]) + 12 * likeness[c] for i, c in enumerate(likeness)}
            by_memory.append(max(likeness, key=likeness.__getitem__) == turn.answer)
            by_both.append(max(both, key=both.__getitem__) == turn.answer)
            odds = {choice: math.exp(score) for choice, score in both.items()}
            shares = {choice: one / sum(odds.values()) for choice, one in odds.items()}
            best.append(max(shares.values()))
            errors.append(sum((p - (c == turn.answer)) ** 2 for c, p in shares.items()))
        assert figures["choice"] == pytest.approx(share(by_both))
        assert figures["choice_memory"] == pytest.approx(share(by_memory))
        assert figures["choice_model"] == pytest.approx(plain["choice"])
        assert figures["confidence"] == pytest.approx(statistics.fmean(best), rel=1e-4)
        assert figures["brier"] == pytest.approx(statistics.fmean(errors), rel=1e-3, abs=1e-6)


def test_memory_does_not_pick_what_was_not_taught(learner: Learner) -> None:
    """As with a wrong example, which takes a class's only answer away."""
    drawn = []
    for task in label_tasks():
        first, second, third = task.episode.support
        support = (first, replace(second, answer=third.answer), third)
        drawn.append(replace(task, episode=replace(task.episode, support=support)))
    learner.gate = make_gate(learner, 0.25, Mix(0.3, 12.0))
    try:
        scores = Judge(learner, drawn).score(nudged(learner, *NUDGES))
    finally:
        learner.gate = None
    # Asked in the very words that were taught: all but the class that was not.
    assert [figures["choice_memory"] for figures in scores] == pytest.approx([2 / 3, 2 / 3])


def middle_threshold(learner: Learner) -> float:
    """Between two similarities, far from both."""
    found = sorted(
        float(gate_similarity(taught_by(learner, task), vector(learner, question)))
        for task in tasks()
        for question in (*UNRELATED, *(turn.question for turn in task.episode.query))
    )
    gap, low = max((high - low, low) for low, high in itertools.pairwise(found))
    return low + gap / 2


@pytest.mark.parametrize("threshold", [-1.0, None, 1.1], ids=["all", "some", "few"])
def test_a_closed_gate_leaves_the_base_to_answer(learner: Learner, threshold: float | None) -> None:
    drawn, adapters = tasks(), nudged(learner, *NUDGES)
    least = middle_threshold(learner) if threshold is None else threshold
    learner.gate = gate = make_gate(learner, least)
    try:
        scores = Judge(learner, drawn).score(adapters)
    finally:
        learner.gate = None
    for session, (task, figures) in enumerate(zip(drawn, scores, strict=True)):
        known = taught_by(learner, task)

        def adapter(question: str, known: Taught = known, s: int = session) -> Tensors | None:
            opens = bool(gate_opens(gate, known, vector(learner, question)))
            return take(adapters, s) if opens else None

        query = task.episode.query
        opened = [adapter(turn.question) is not None for turn in query]
        others = [adapter(question) is not None for question in UNRELATED]
        exact = [plain_exact(learner, adapter(turn.question), turn) for turn in query]
        changed = [plain_changed(learner, adapter(q), q) for q in UNRELATED]
        assert figures["opened"] == pytest.approx(share(opened))
        assert figures["opened_else"] == pytest.approx(share(others))
        assert figures["exact"] == pytest.approx(share(exact))
        assert figures["changed"] == pytest.approx(share(changed))
    if threshold is None:
        assert 0 < sum(figures["opened"] + figures["opened_else"] for figures in scores) < 4


def test_examples_in_the_prompt_are_history(learner: Learner) -> None:
    drawn = tasks()
    turn = drawn[0].episode.support[0]
    history = [*user_turn(turn.question), {"role": "assistant", "content": turn.answer}]
    scores = Judge(learner, drawn, [history, []]).score(None)
    for session, (task, figures) in enumerate(zip(drawn, scores, strict=True)):
        before = [history, []][session]
        exact = []
        for asked_turn in task.episode.query:
            messages = before + user_turn(asked_turn.question)
            example = learner.encoder.example(messages, "")
            target = learner.encoder.completion(asked_turn.answer)
            exact.append(plain_answer(learner, None, example, len(target)) == target)
        assert figures["exact"] == pytest.approx(share(exact))
    assert scores[1]["changed"] == 0, "no history, nothing changed"
    alone = Judge(learner, drawn[:1], [history]).score(None)[0]
    assert alone == pytest.approx(scores[0], rel=1e-4, abs=1e-6), "examples computed once"
    assert scores[0]["kl"] > 0


def test_a_gate_sees_the_question_without_the_examples_before_it(learner: Learner) -> None:
    drawn, adapters = tasks(), nudged(learner, *NUDGES)
    turn = drawn[0].episode.support[0]
    history = [*user_turn(turn.question), {"role": "assistant", "content": turn.answer}]
    least = middle_threshold(learner)
    learner.gate = make_gate(learner, least)
    try:
        plain = Judge(learner, drawn).score(adapters)
        shown = Judge(learner, drawn, [history, history]).score(adapters)
        (alone,) = Judge(learner, drawn[:1], [history]).score(take_one(adapters))
    finally:
        learner.gate = None
    for figure in ("opened", "opened_else"):
        assert [one[figure] for one in shown] == [one[figure] for one in plain]
    assert alone == pytest.approx(shown[0], rel=1e-3, abs=1e-5)


def take_one(adapters: Tensors) -> Tensors:
    return {name: tensor[:1] for name, tensor in adapters.items()}


def test_personas_are_scored_by_likeness_too(learner: Learner) -> None:
    (q, a), (other, _) = KNOWN[2], KNOWN[3]
    episode = Episode(
        "persona", (Turn(q, a, q),), (Turn(q, a, q), Turn(other, "Nothing.", q)), (), frozenset({q})
    )
    (figures,) = Judge(learner, [Task(episode, UNRELATED)]).score(None)
    assert figures["exact"] == 0.5
    assert 0.5 <= figures["chrf"] < 1


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_interval_is_the_textbook_one(values: list[float]) -> None:
    mean, half = interval(values)
    assert mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert half == pytest.approx(student(len(values) - 1) * error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 9, 10, 11, 23, 199, 5000])
def test_students_points_are_scipys(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")  # scikit-learn's
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=3e-4)


def test_one_value_has_no_interval() -> None:
    mean, half = interval([3.0])
    assert mean == 3.0
    assert math.isnan(half)
