"""Episodes in tokens, their unrelated questions, and the shapes an outer loop draws."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from adapters.chat import ChatEncoder, user_turn
from adapters.support import Example
from meta_training.corpus import Corpus
from meta_training.tasks.batches import UnrelatedPool, encode_batch
from meta_training.tasks.episodes import Shape, unrelated_questions
from meta_training.tasks.families import Families
from meta_training.tasks.sampler import BATCH_ROWS, EpisodeSampler

PROPERTY = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SEEDS = st.integers(0, 2**32)


class Answers:
    """Answers each question by its own length, and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        self.calls += 1
        return [(self.calls, len(example.prompt)) for example in examples]


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> ChatEncoder:
    return ChatEncoder(tokenizer)


@pytest.fixture(scope="module")
def pool(corpus: Corpus, encoder: ChatEncoder) -> UnrelatedPool:
    questions = unrelated_questions(corpus.train_intents, corpus.train_personas)
    made = UnrelatedPool(questions, encoder, Answers(), 64)
    made.renew(random.Random(0))
    return made


def sampler(
    families: Families, pool: UnrelatedPool, encoder: ChatEncoder, *names: str
) -> EpisodeSampler:
    return EpisodeSampler(families, pool, encoder, dict.fromkeys(names, 1.0), tasks=3)


@PROPERTY
@given(seed=SEEDS)
def test_unrelated_questions_are_never_of_a_taught_kind(
    families: Families, pool: UnrelatedPool, seed: int
) -> None:
    rng = random.Random(seed)
    for episode in (
        families.label(Shape(12, 1, 1), rng),
        families.house_reply(Shape(3, 1, 1), (4, 30), rng),
        families.persona(Shape(3, 1, 1), rng),
    ):
        drawn = pool.draw(episode, 5, rng)
        assert len(drawn) == 5
        assert not {item.kind for item in drawn} & episode.taught
        assert len({item.example.prompt for item in drawn}) == 5


def test_the_pool_keeps_what_the_model_answered(encoder: ChatEncoder) -> None:
    questions = [(f"k{i}", f"Question {i} of many?") for i in range(9)]
    answers = Answers()
    pool = UnrelatedPool(questions, encoder, answers, 4)
    pool.renew(random.Random(0))
    first = pool.state_dict()
    pool.renew(random.Random(1))
    assert answers.calls == 2
    assert len(first["pool"]) == 4
    assert all(row[3] == (1, len(row[1])) for row in first["pool"])
    assert {encoder.prompt(user_turn(text)).prefix for _, text in questions} >= {
        row[1] for row in first["pool"]
    }


def test_a_small_pool_gives_what_it_has(
    encoder: ChatEncoder, families: Families, corpus: Corpus
) -> None:
    questions = unrelated_questions([], corpus.train_personas[:1])
    pool = UnrelatedPool(questions, encoder, Answers(), 64)
    pool.renew(random.Random(0))
    episode = families.label(Shape(2, 1, 1), random.Random(0))
    assert len(pool.draw(episode, 5, random.Random(0))) == 3


def test_a_pool_goes_on_from_its_state(encoder: ChatEncoder, pool: UnrelatedPool) -> None:
    other = UnrelatedPool([], encoder, Answers(), 64)
    other.load_state_dict(pool.state_dict())
    assert other.state_dict() == pool.state_dict()


def test_a_batch_says_whose_each_example_is(
    families: Families, pool: UnrelatedPool, encoder: ChatEncoder
) -> None:
    rng = random.Random(0)
    episodes = [families.label(Shape(2, 2, 1), rng), families.persona(Shape(1, 1, 1), rng)]
    unrelated = [pool.draw(episode, n, rng) for n, episode in enumerate(episodes, 1)]
    batch = encode_batch(episodes, unrelated, encoder)
    assert batch.count == 2
    assert batch.support_sessions == [0, 0, 0, 0, 1]
    assert batch.query_sessions == [0, 0, *[1] * len(episodes[1].query)]
    assert batch.unrelated_sessions == [0, 1, 1]
    turn = episodes[1].support[0]
    prompt = encoder.prompt(user_turn(turn.question))
    assert batch.support[4] == Example(
        prompt.prefix, prompt.header, encoder.completion(turn.answer)
    )
    kinds = [t.kind for e in episodes for t in e.support]
    kinds += [t.kind for e in episodes for t in e.query]
    assert batch.kinds == kinds + [item.kind for items in unrelated for item in items]


@PROPERTY
@given(seed=SEEDS)
def test_every_batch_is_whole(
    families: Families, pool: UnrelatedPool, encoder: ChatEncoder, seed: int
) -> None:
    batch = sampler(families, pool, encoder, "label", "house_reply", "persona").batch(
        random.Random(seed)
    )
    sessions = set(range(batch.count))
    assert set(batch.support_sessions) == set(batch.query_sessions) == sessions
    assert len(batch.unrelated) == 3 * batch.count
    assert batch.count == 3 or len(batch.support) > BATCH_ROWS // 2, "large ones come fewer"
    assert len(batch.support) <= BATCH_ROWS
    assert len(batch.kinds) == len(batch.support) + len(batch.query) + len(batch.unrelated)
    end = encoder.end_id
    assert all(example.completion[-1] == end for example in batch.support + batch.query)
    support, query = len(batch.support), len(batch.query)
    owners = batch.support_sessions + batch.query_sessions
    taught = set(zip(owners, batch.kinds[: support + query], strict=True))
    others = set(zip(batch.unrelated_sessions, batch.kinds[support + query :], strict=True))
    assert not taught & others


@PROPERTY
@given(seed=SEEDS)
def test_one_seed_one_batch(
    families: Families, pool: UnrelatedPool, encoder: ChatEncoder, seed: int
) -> None:
    drawn = sampler(families, pool, encoder, "label", "persona")
    assert drawn.batch(random.Random(seed)) == drawn.batch(random.Random(seed))


@pytest.mark.parametrize("family", ["label", "house_reply", "persona"])
def test_shapes_vary_and_families_keep_to_their_name(
    families: Families, pool: UnrelatedPool, encoder: ChatEncoder, family: str
) -> None:
    rng = random.Random(0)
    drawn = sampler(families, pool, encoder, family)
    batches = [drawn.batch(rng) for _ in range(30)]
    assert {batch.family for batch in batches} == {family}
    assert len({len(batch.support) for batch in batches}) > 3
    shots = [Counter(batch.kinds[: batch.support_sessions.count(0)]) for batch in batches]
    assert min(min(counts.values()) for counts in shots) == 1, "one example must be enough at times"


def test_families_are_drawn_by_weight(
    families: Families, pool: UnrelatedPool, encoder: ChatEncoder
) -> None:
    weights = {"label": 3.0, "persona": 1.0}
    rng = random.Random(0)
    drawn = EpisodeSampler(families, pool, encoder, weights, tasks=1)
    names = [drawn.batch(rng, unrelated=0).family for _ in range(200)]
    assert 120 < names.count("label") < 180
