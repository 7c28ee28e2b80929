"""Chooses the gate's threshold on validation intents, after the outer loop.

Knows a learner and a corpus; knows nothing about how the base learned to tell questions apart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product

import numpy as np
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
    """A threshold that grows with the number of taught questions, fitted on validation intents.

    For sessions of every shape, the threshold is found with the best mean of two shares: other
    wordings of taught intents that open the gate, and unrelated training questions that do not.
    A straight line through these over ln N is the gate.

    Raises:
        DataError: fewer validation intents than the widest session is taught.
    """
    rng = random.Random(seed)
    pool = unrelated_questions(corpus.train_intents, corpus.train_personas)
    others = _summaries(learner, [text for _, text in rng.sample(pool, min(UNRELATED, len(pool)))])
    intents = gate_intents(corpus)
    sizes, thresholds = [], []
    for ways, shots in product(WAYS, SHOTS):
        near: list[Tensor] = []
        far: list[Tensor] = []
        for _ in range(EPISODES):
            drawn = [rng.sample(i.questions, shots + QUERIES) for i in rng.sample(intents, ways)]
            keys = gate_keys(_summaries(learner, [q for qs in drawn for q in qs[:shots]]))
            asked = _summaries(learner, [q for qs in drawn for q in qs[shots:]])
            near.append(gate_similarity(keys, asked))
            far.append(gate_similarity(keys, others))
        sizes.append(math.log(ways * shots))
        thresholds.append(best_threshold(torch.cat(near), torch.cat(far)))
    growth, threshold = np.polyfit(sizes, thresholds, 1)
    return Gate(learner.summary_layer, round(float(threshold), 3), round(max(0.0, growth), 3))


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
    return learner.summaries(prompts)
