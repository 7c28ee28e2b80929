"""Episodes: everything that could be known in advance is drawn anew, and nothing overlaps."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from meta_training.corpus import Corpus
from meta_training.pipeline import label_words, token_counts
from meta_training.tasks.episodes import Episode, Shape, kind_of, unrelated_questions
from meta_training.tasks.families import Families
from meta_training.tasks.sources import DataError, Intent, PersonaGroup

SEEDS = st.integers(0, 2**32)
SHAPES = st.builds(Shape, st.integers(1, 20), st.integers(1, 5), st.integers(1, 4))
FEW = st.builds(Shape, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
BANDS = st.sampled_from([(4, 10), (8, 20), (12, 30)])
PROPERTY = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check_turns(episode: Episode, shape: Shape, ways: int) -> None:
    """True of every family: nothing is asked twice, and each kind has one answer of its own."""
    questions = [turn.question for turn in episode.support + episode.query]
    assert len(questions) == len(set(questions))
    assert {turn.kind for turn in episode.support} == episode.taught
    assert {turn.kind for turn in episode.query} == episode.taught
    assert len(episode.taught) == ways
    assert set(Counter(turn.kind for turn in episode.support).values()) <= {shape.shots}
    pairs = {(turn.kind, turn.answer) for turn in episode.support + episode.query}
    assert len(pairs) == ways


@PROPERTY
@given(seed=SEEDS, shape=SHAPES)
def test_labels_are_words_of_their_own(
    families: Families,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    shape: Shape,
) -> None:
    episode = families.label(shape, random.Random(seed))
    check_turns(episode, shape, shape.ways)
    assert len(episode.query) == shape.ways * shape.queries
    assert len(episode.choices) == len(set(episode.choices)) == shape.ways
    assert {turn.answer for turn in episode.query} == set(episode.choices)
    words = [word for choice in episode.choices for word in choice.split()]
    assert len(words) == len(set(words))
    assert set(words) <= set(label_words(tokenizer))
    known = {kind_of(intent): intent.questions for intent in corpus.train_intents}
    assert all(turn.question in known[turn.kind] for turn in episode.support + episode.query)


def test_an_intent_gets_another_label_in_every_episode(families: Families) -> None:
    labels: dict[str, set[str]] = {}
    for seed in range(40):
        for turn in families.label(Shape(20, 1, 1), random.Random(seed)).query:
            labels.setdefault(turn.kind, set()).add(turn.answer)
    assert min(len(seen) for seen in labels.values()) > 25


@PROPERTY
@given(seed=SEEDS, shape=FEW, band=BANDS)
def test_replies_are_different_and_within_their_bounds(
    families: Families,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    shape: Shape,
    band: tuple[int, int],
) -> None:
    episode = families.house_reply(shape, band, random.Random(seed))
    check_turns(episode, shape, shape.ways)
    assert episode.choices == ()
    replies = sorted({turn.answer for turn in episode.query})
    assert len(replies) == shape.ways
    assert set(replies) <= set(corpus.train_replies)
    assert all(band[0] <= count <= band[1] for count in token_counts(replies, tokenizer))


@PROPERTY
@given(seed=SEEDS, shape=FEW)
def test_a_persona_answers_in_its_own_voice(
    families: Families, corpus: Corpus, seed: int, shape: Shape
) -> None:
    episode = families.persona(shape, random.Random(seed))
    groups = {f"persona/persona/{group.group}": group for group in corpus.train_personas}
    turns = episode.support + episode.query
    questions = [turn.question for turn in turns]
    assert len(questions) == len(set(questions))
    assert {turn.kind for turn in episode.support} == episode.taught
    assert {turn.kind for turn in episode.query} == episode.taught
    voices = [{n for n, a in groups[t.kind].answers if a == t.answer} for t in turns]
    assert set.intersection(*voices), "one persona gives all answers of an episode"


@PROPERTY
@given(seed=SEEDS, shape=FEW)
def test_one_seed_one_episode(families: Families, seed: int, shape: Shape) -> None:
    def draw() -> list[Episode]:
        rng = random.Random(seed)
        first = families.label(shape, rng)
        return [first, families.house_reply(shape, (4, 30), rng), families.persona(shape, rng)]

    assert draw() == draw()


def test_other_seeds_give_other_episodes_in_other_order(families: Families) -> None:
    shape = Shape(2, 3, 1)
    episodes = {families.label(shape, random.Random(seed)) for seed in range(20)}
    assert len(episodes) == 20
    orders = {tuple(sorted(e.taught).index(turn.kind) for turn in e.support) for e in episodes}
    assert len(orders) > 3


def test_an_episode_is_of_one_source() -> None:
    intents = [
        Intent(source, "d", name, tuple(f"{source} {name} {i}" for i in range(4)))
        for source in "abc"
        for name in "xyz"
    ]
    families = Families(intents, [], [], ["one", "two", "three", "four", "five", "six"], [])
    sources = [
        {kind.split("/")[0] for kind in families.label(Shape(3, 1, 1), random.Random(i)).taught}
        for i in range(30)
    ]
    assert all(len(source) == 1 for source in sources)
    assert set.union(*sources) == {"a", "b", "c"}


def test_few_wordings_leave_one_to_ask() -> None:
    """A persona question with two wordings teaches one and asks the other."""
    group = PersonaGroup("0", ("Do you sing?", "Can you sing?"), (("dry", "No."),))
    episode = Families([], [], [group], [], []).persona(Shape(1, 3, 2), random.Random(0))
    assert len(episode.support) == len(episode.query) == 1


def test_unrelated_questions_carry_their_kinds(corpus: Corpus) -> None:
    pairs = unrelated_questions(corpus.train_intents, corpus.train_personas)
    assert len(pairs) == 300 + 3 * len(corpus.train_personas)
    by_kind = {kind for kind, _ in pairs}
    assert len(by_kind) == 20 + len(corpus.train_personas)
    assert (kind_of(corpus.train_intents[0]), corpus.train_intents[0].questions[0]) in pairs


def test_too_little_material_is_an_error_that_says_so(families: Families) -> None:
    rng = random.Random(0)
    with pytest.raises(DataError, match="no source has 21 intents"):
        families.label(Shape(21, 1, 1), rng)
    with pytest.raises(DataError, match="with 16 questions or more"):
        families.label(Shape(1, 15, 1), rng)
    with pytest.raises(DataError, match="fewer than 2 replies have 90 to 95 tokens"):
        families.house_reply(Shape(2, 1, 1), (90, 95), rng)
    empty = Families([], ["a", "a"], [], ["word"], [1, 1])
    with pytest.raises(DataError, match="no persona question"):
        empty.persona(Shape(1, 1, 1), rng)
    small = Families([Intent("s", "d", "n", ("a", "b"))], ["a", "a"], [], ["word"], [1, 1])
    with pytest.raises(DataError, match="2 label words are needed"):
        small.label(Shape(1, 1, 1), rng)
