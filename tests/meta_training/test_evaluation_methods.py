"""Cells draw the same tasks for every method, and every method learns from the same examples."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoken import KNOWN, make_spoken
from transformers import PreTrainedTokenizerFast

from adapters.artifact import load_artifact
from adapters.chat import user_turn
from adapters.inner_loop import adapt
from adapters.state import repeat
from meta_training.algorithms.metric import Matching, Prototypical, Siamese
from meta_training.corpus import Corpus
from meta_training.evaluation.cells import (
    CELLS,
    HOUSE_REPLY_TOKENS,
    UNRELATED_PER_EPISODE,
    Cell,
    Task,
    TaskDrawer,
    held_out_questions,
)
from meta_training.evaluation.judge import Judge
from meta_training.evaluation.methods import (
    InContext,
    MetaLearned,
    Method,
    NearestTaught,
    PlainLora,
    Shown,
    TfidfCentroid,
)
from meta_training.learner import Learner
from meta_training.pipeline import label_words, token_counts
from meta_training.tasks.episodes import Episode, Turn, unrelated_questions
from meta_training.tasks.families import Families

PROPERTY = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SMALL = [Cell("label", 5, 3), Cell("house_reply", 1, 5), Cell("house_reply", 3, 1)]
SMALL += [Cell("persona", 3, 1)]


@pytest.fixture(scope="module")
def held_out(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> TaskDrawer:
    families = Families(
        corpus.held_out_intents,
        corpus.test_replies,
        corpus.held_out_personas,
        label_words(tokenizer),
        token_counts(corpus.test_replies, tokenizer),
    )
    return TaskDrawer(families, held_out_questions(corpus), seed=5)


@pytest.fixture(scope="module")
def large(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> TaskDrawer:
    """Training material, which is enough for the widest cells."""
    families = Families(
        corpus.train_intents,
        corpus.train_replies,
        corpus.train_personas,
        label_words(tokenizer),
        token_counts(corpus.train_replies, tokenizer),
    )
    questions = unrelated_questions(corpus.train_intents, corpus.train_personas)
    return TaskDrawer(families, questions + held_out_questions(corpus), seed=5)


@pytest.fixture(scope="module")
def learner(finished: Path) -> Learner:
    return Learner.from_artifact(load_artifact(finished / "maml" / "artifact"))


def test_cells_have_names_of_their_own() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS) == 18
    assert Cell("label", 20, 3).name == "label 20-way 3-shot"
    assert {cell.ways * cell.queries for cell in CELLS if cell.family == "label"} == {20}


@PROPERTY
@given(cell=st.sampled_from(SMALL), index=st.integers(0, 10**6))
def test_a_task_is_held_out_and_the_same_every_time(
    held_out: TaskDrawer,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    cell: Cell,
    index: int,
) -> None:
    task = held_out.draw(cell, index)
    assert task == held_out.draw(cell, index)
    assert task != held_out.draw(cell, index + 1)
    assert len(set(task.unrelated)) == len(task.unrelated) == UNRELATED_PER_EPISODE
    kinds: dict[str, set[str]] = {}
    for kind, question in held_out_questions(corpus):
        kinds.setdefault(question, set()).add(kind)
    assert all(kinds[question] - task.episode.taught for question in task.unrelated)
    asked = {turn.question for turn in task.episode.support + task.episode.query}
    assert not asked & set(task.unrelated)
    if cell.family == "house_reply":
        replies = sorted({turn.answer for turn in task.episode.query})
        least, most = HOUSE_REPLY_TOKENS
        assert set(replies) <= set(corpus.test_replies)
        assert all(least <= count <= most for count in token_counts(replies, tokenizer))


def test_another_seed_gives_other_tasks(held_out: TaskDrawer, corpus: Corpus) -> None:
    other = TaskDrawer(held_out._families, held_out_questions(corpus), seed=6)
    assert other.draw(SMALL[0], 0) != held_out.draw(SMALL[0], 0)


def test_there_are_as_many_unrelated_questions_as_are_left(held_out: TaskDrawer) -> None:
    few = TaskDrawer(held_out._families, [("k", "Only one?"), ("k", "Or two?")] * 9, seed=5)
    assert sorted(few.draw(SMALL[0], 0).unrelated) == ["Only one?", "Or two?"]
    none = TaskDrawer(held_out._families, [], seed=5)
    assert none.draw(SMALL[0], 0).unrelated == ()
    assert none.draw(SMALL[0], 0).episode == held_out.draw(SMALL[0], 0).episode


def test_held_out_questions_are_intents_personas_and_first_turns(corpus: Corpus) -> None:
    kinds = {kind.split("/")[0] for kind, _ in held_out_questions(corpus)}
    assert kinds == {"clinc150", "bitext-support", "persona", "dialogue"}


def test_tfidf_solves_an_obvious_task() -> None:
    words = {"lamp": "red", "boat": "blue", "goat": "green"}
    support = tuple(Turn(f"Where is my {w} now?", c, w) for w, c in words.items())
    query = tuple(Turn(f"Tell me, did the {w} get lost?", c, w) for w, c in words.items())
    episode = Episode("label", support, query, tuple(words.values()), frozenset(words))
    method: Method = TfidfCentroid()
    assert method.scores([Task(episode, ())]) == {"-": [{"choice": 1.0}]}


def test_tfidf_gets_swapped_answers_wrong() -> None:
    support = (Turn("Where is my lamp?", "a", "lamp"), Turn("Where is my boat?", "b", "boat"))
    query = (Turn("my lamp is lost", "b", "boat"), Turn("my boat is lost", "a", "lamp"))
    episode = Episode("label", support, query, ("a", "b"), frozenset({"lamp", "boat"}))
    assert TfidfCentroid().scores([Task(episode, ())]) == {"-": [{"choice": 0.0}]}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_examples_in_the_prompt_leave_room_for_the_answer(
    learner: Learner, large: TaskDrawer, cell: Cell
) -> None:
    context_tokens = 256
    tokenizer = learner.encoder.tokenizer
    examples = Shown(tokenizer, context_tokens)
    for index in range(3):
        task = large.draw(cell, index)
        history = examples.turns(task)
        shown = [message["content"] for message in history]
        taught = [text for turn in task.episode.support for text in (turn.question, turn.answer)]
        assert shown == taught[: len(shown)]
        assert len(shown) % 2 == 0
        longest = 0
        for question in (*task.unrelated, *(turn.question for turn in task.episode.query)):
            prompt = learner.encoder.prompt(history + user_turn(question))
            longest = max(longest, len(prompt.ids))
        answers = [turn.answer for turn in task.episode.query]
        most = max(len(learner.encoder.completion(answer)) for answer in answers)
        assert longest + max(most, 40) <= context_tokens
        if len(shown) < len(taught):
            whole = tokenizer(" ".join(taught))["input_ids"]
            assert len(whole) > context_tokens - 150, "what would fit was left out"


def test_every_method_scores_what_it_promises(learner: Learner, held_out: TaskDrawer) -> None:
    methods: list[Method] = [
        MetaLearned("ours", learner),
        PlainLora("lora", learner, 1e-2),
        InContext("prompt", learner, Shown(learner.encoder.tokenizer, 256)),
    ]
    plain, persona = Cell("house_reply", 1, 1), Cell("persona", 2, 1)
    for cell, judged in ((plain, methods), (persona, methods[2:])):
        tasks = [held_out.draw(cell, index) for index in range(2)]
        for method in judged:
            scores = method.scores(tasks)
            assert tuple(scores) == method.checkpoints
            for figures in scores.values():
                assert len(figures) == 2
                wanted = {"exact", "changed", "changed_first", "kl"}
                wanted |= {"chrf", "nats"} if cell.family == "persona" else set()
                assert all(set(figure) == wanted for figure in figures)
                assert all(math.isfinite(v) for figure in figures for v in figure.values())


def test_hidden_states_pick_the_label_of_what_they_lie_near_to(learner: Learner) -> None:
    """What was taught lies on itself, whatever the metric; asked for another label, it is wrong."""
    questions = [question for question, _ in KNOWN[:3]]
    choices = ("red", "blue", "green")
    support = tuple(Turn(q, c, q) for q, c in zip(questions, choices, strict=True))
    wrong = tuple(Turn(support[n].question, choices[n - 1], questions[n - 1]) for n in range(3))
    episodes = [Episode("label", support, q, choices, frozenset()) for q in (support, wrong)]
    for metric in (Prototypical(), Matching(100.0), Siamese()):
        method: Method = NearestTaught("nearest", learner, metric)
        scores = method.scores([Task(episode, ()) for episode in episodes])
        assert scores == {"-": [{"choice": 1.0}, {"choice": 0.0}]}


def test_examples_in_the_prompt_beside_the_adapter(learner: Learner, held_out: TaskDrawer) -> None:
    tasks = [held_out.draw(Cell("house_reply", 1, 1), index) for index in range(2)]
    shown = Shown(learner.encoder.tokenizer, 256)
    both = MetaLearned("both", learner, shown=shown)
    scores = both.scores(tasks)
    assert tuple(scores) == both.checkpoints
    histories = [shown.turns(task) for task in tasks]
    judge = Judge(learner, tasks, histories)
    with torch.no_grad():
        start = repeat(learner.tensors(), 2)
    moved, _ = adapt(learner.model, learner.hooks, start, judge.support, learner.rule(), 5)
    for alone, together in zip(scores["5 steps"], judge.score(moved), strict=True):
        assert alone == pytest.approx(together, rel=1e-3, abs=1e-5)
    assert scores["5 steps"] != MetaLearned("one", learner).scores(tasks)["5 steps"]


def test_ours_takes_the_servers_inner_steps(learner: Learner, held_out: TaskDrawer) -> None:
    """Checkpoint by checkpoint the same figures as ``adapt``, beyond the learned steps too."""
    tasks = [held_out.draw(Cell("house_reply", 1, 3), index) for index in range(2)]
    found = MetaLearned("ours", learner).scores(tasks)
    judge = Judge(learner, tasks)
    with torch.no_grad():
        start = repeat(learner.tensors(), 2)
    for steps in (0, 1, 10):
        moved, _ = adapt(learner.model, learner.hooks, start, judge.support, learner.rule(), steps)
        for a, b in zip(found[f"{steps} steps"], judge.score(moved), strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert found["0 steps"] != found["10 steps"]


def test_plain_lora_starts_untaught_and_learns(tokenizer: PreTrainedTokenizerFast) -> None:
    """Fifty steps swap the answers to two questions; a step size of zero swaps nothing."""
    learner = make_spoken(tokenizer)
    (first, _), (second, _) = KNOWN[:2]
    turns = (Turn(first, KNOWN[1][1], first), Turn(second, KNOWN[0][1], second))
    task = Task(
        Episode("house_reply", turns, turns, (), frozenset({first, second})), (KNOWN[6][0],)
    )
    before = {name: tensor.detach().clone() for name, tensor in learner.state_dict().items()}
    scores = PlainLora("lora", learner, 3e-2).scores([task])
    assert scores["50 steps"][0]["exact"] == 1.0
    still = PlainLora("lora", learner, 0.0).scores([task])
    assert still["50 steps"][0]["exact"] == still["50 steps"][0]["changed"] == 0.0
    after = learner.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_diverged_lora_is_scored_and_not_an_error(learner: Learner, held_out: TaskDrawer) -> None:
    task = held_out.draw(Cell("house_reply", 1, 1), 0)
    scores = PlainLora("lora", learner, math.inf).scores([task])
    assert scores["50 steps"][0]["exact"] == 0.0
    assert not math.isfinite(scores["50 steps"][0]["kl"])


def test_tasks_are_drawn_from_the_seed_alone(held_out: TaskDrawer) -> None:
    random.seed(1)
    first = held_out.draw(SMALL[0], 3)
    random.seed(2)
    assert held_out.draw(SMALL[0], 3) == first


@pytest.mark.parametrize("cell", [Cell("label", 5, 3), Cell("house_reply", 3, 1)])
def test_wrong_examples_are_the_same_task_with_some_answers_swapped(
    held_out: TaskDrawer, cell: Cell
) -> None:
    right = held_out.draw(cell, 0)
    for percent in (20, 50, 100):
        wrong = held_out.draw(replace(cell, wrong_percent=percent), 0)
        assert (
            replace(wrong, episode=replace(wrong.episode, support=right.episode.support)) == right
        )
        pairs = list(zip(right.episode.support, wrong.episode.support, strict=True))
        swapped = [(a, b) for a, b in pairs if a != b]
        assert len(swapped) == round(len(pairs) * percent / 100)
        answers = {turn.answer for turn in right.episode.support}
        assert all(b == replace(a, answer=b.answer) and b.answer in answers for a, b in swapped)


def test_queries_a_class_can_be_asked_for(large: TaskDrawer) -> None:
    cell = Cell("label", 5, 1, asked=5)
    assert len(large.draw(cell, 0).episode.query) == 25
    assert cell.name == "label 5-way 1-shot, 5 queries"
    assert replace(cell, wrong_percent=20).name == "label 5-way 1-shot, 5 queries, 20% wrong"
