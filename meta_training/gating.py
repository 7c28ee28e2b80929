"""Chooses the gate's threshold on validation intents, after the outer loop.

Knows a learner and a corpus; knows nothing about how the base learned to tell questions apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from adapters.chat import user_turn
from adapters.config import Gate
from adapters.gate import gate_keys, gate_similarity
from meta_training.corpus import Corpus
from meta_training.learner import Learner
from meta_training.tasks.families import unrelated_questions
from meta_training.tasks.sources import DataError, Intent

WAYS = (1, 3, 5)
SHOTS = (1, 3, 5)
EPISODES = 20  # of each shape
QUERIES = 5  # other wordings tried on each intent
UNRELATED = 400


@torch.no_grad()
def calibrate_gate(learner: Learner, corpus: Corpus, seed: int) -> Gate:
    """The threshold with the best mean of two shares, over sessions taught 1 to 25 questions.

    One is the share of other wordings of taught validation intents that open the gate, the other
    the share of unrelated training questions that do not.

    Raises:
        DataError: fewer validation intents than the widest session is taught.
    """
    rng = random.Random(seed)
    near: list[Tensor] = []
    far: list[Tensor] = []
    pool = unrelated_questions(corpus.train_intents, corpus.train_personas)
    others = _summaries(learner, [text for _, text in rng.sample(pool, min(UNRELATED, len(pool)))])
    intents = gate_intents(corpus)
    for ways, shots in [shape for shape in product(WAYS, SHOTS) for _ in range(EPISODES)]:
        drawn = [rng.sample(i.questions, shots + QUERIES) for i in rng.sample(intents, ways)]
        keys = gate_keys(_summaries(learner, [q for qs in drawn for q in qs[:shots]]))
        asked = _summaries(learner, [q for qs in drawn for q in qs[shots:]])
        near.append(gate_similarity(keys, asked))
        far.append(gate_similarity(keys, others))
    return Gate(learner.summary_layer, best_threshold(torch.cat(near), torch.cat(far)))


def gate_intents(corpus: Corpus) -> list[Intent]:
    """The validation intents that a gate can be tried on; worth asking before training starts.

    Raises:
        DataError: there are fewer than the widest session is taught.
    """
    enough = max(SHOTS) + QUERIES
    intents = [i for i in corpus.validation_intents if len(i.questions) >= enough]
    if len(intents) < max(WAYS):
        raise DataError(
            f"the gate needs {max(WAYS)} validation intents of {enough} questions, found "
            f"{len(intents)}: name more sources under data.validation, or set inner.gate to false"
        )
    return intents


def best_threshold(near: Tensor, far: Tensor) -> float:
    """Threshold t with the highest share of ``near`` >= t plus share of ``far`` < t.

    Youden's J (Youden 1950); of equal ones the lowest, rounded down to three digits.
    """
    candidates = torch.linspace(-1, 1, 2001)
    opened = (near.unsqueeze(0) >= candidates.unsqueeze(1)).float().mean(1)
    closed = torch.stack([(far < t).float().mean() for t in candidates])
    return round(float(candidates[int((opened + closed).argmax())]), 3)


def _summaries(learner: Learner, questions: Sequence[str]) -> Tensor:
    prompts = [learner.encoder.prompt(user_turn(question)).prefix for question in questions]
    return learner.prefill(prompts)[1]
