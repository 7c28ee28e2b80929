"""Chooses the gate's numbers on validation intents, after the outer loop.

Knows a learner and a corpus; knows nothing about how the base learned to tell questions apart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from adapters.chat import user_turn
from adapters.config import Gate, Mix
from adapters.encoder import Encoder
from adapters.gate import choice_scores, gate_similarity, prompt_vectors
from adapters.inner_loop import adapt
from adapters.state import Taught, repeat
from adapters.words import Words
from meta_training.corpus import Corpus
from meta_training.evaluation.cells import Cell, Task, TaskDrawer
from meta_training.evaluation.judge import Judge
from meta_training.learner import Learner
from meta_training.tasks.episodes import unrelated_questions
from meta_training.tasks.sources import DataError, Intent

WAYS = (1, 3, 5, 10, 20)  # as many of them as there are validation intents for
LEAST_INTENTS = 5
SHOTS = (1, 3, 5)
EPISODES = 100  # of each shape
QUERIES = 5  # other wordings tried on each intent
UNRELATED = 400
AT_ONCE = 128  # prompts of a forward pass
# With fewer validation intents, as many of them as tasks can be drawn of.
MEMORY_CELLS = (Cell("label", 5, 5), Cell("label", 10, 5), Cell("label", 5, 1))
MEMORY_TASKS = 20  # of each cell
MEMORY_TASKS_AT_ONCE = 5
MIXES = tuple(
    Mix(model, memory)
    for model in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    for memory in (0.0, 2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 20.0, 30.0, 40.0)
)


@torch.no_grad()
def calibrate_gate(
    learner: Learner, corpus: Corpus, words: Words | None, seed: int, encoder: Encoder | None = None
) -> Gate:
    """A threshold that grows with the number of prompts an answer, fitted on validation intents.

    For sessions of every shape, the threshold is found with the best mean of two shares: other
    wordings of taught intents that open the gate, and questions that nothing was taught for and
    that do not. These are of the taught intents' own domains, as what a shop's customer asks next;
    of training, where these domains have no other intents. A straight line through the thresholds
    over ln n, with n prompts an answer, is the gate.

    Raises:
        DataError: fewer than ``LEAST_INTENTS`` validation intents.
    """
    rng = random.Random(seed)
    gate = Gate(learner.summary_layer, 0.0, words=words, encoder=encoder)
    pool = unrelated_questions(corpus.train_intents, corpus.train_personas)
    others = _vectors(
        learner, gate, [text for _, text in rng.sample(pool, min(UNRELATED, len(pool)))]
    )
    intents = gate_intents(corpus)
    known = {id(i): _vectors(learner, gate, i.questions) for i in corpus.validation_intents}
    sizes, thresholds = [], []
    for ways, shots in product([ways for ways in WAYS if ways <= len(intents)], SHOTS):
        near: list[Tensor] = []
        akin: list[Tensor] = []
        far: list[Tensor] = []
        for _ in range(EPISODES):
            taught = rng.sample(intents, ways)
            drawn = [known[id(i)][_rows(rng, i, shots + QUERIES)] for i in taught]
            keys = torch.cat([rows[:shots] for rows in drawn])
            asked = torch.cat([rows[shots:] for rows in drawn])
            memory = Taught(keys, torch.arange(ways).repeat_interleave(shots), gate.view)
            near.append(gate_similarity(memory, asked))
            akin += [gate_similarity(memory, known[id(i)]) for i in _akin(corpus, taught)]
            far.append(gate_similarity(memory, others))
        sizes.append(math.log(shots))
        thresholds.append(best_threshold(torch.cat(near), torch.cat(akin or far)))
    growth, threshold = np.polyfit(sizes, thresholds, 1)
    return replace(
        gate, threshold=round(float(threshold), 3), growth=round(max(0.0, float(growth)), 3)
    )


def calibrate_memory(learner: Learner, gate: Gate, drawer: TaskDrawer) -> Gate:
    """``gate`` with the mix at which the targets of validation choices are likeliest.

    Raises:
        DataError: too few validation intents for the episodes.
    """
    learner.gate = gate
    scores: list[Tensor] = []
    for tasks in [memory_tasks(drawer, cell) for cell in MEMORY_CELLS]:
        for first in range(0, MEMORY_TASKS, MEMORY_TASKS_AT_ONCE):
            some = tasks[first : first + MEMORY_TASKS_AT_ONCE]
            scores.append(_target_logprobs(learner, gate, some).mean(1))
    return replace(gate, mix=MIXES[int(torch.stack(scores).mean(0).argmax())])


def calibrate_with(
    learner: Learner,
    corpus: Corpus,
    words: Words | None,
    drawer: TaskDrawer,
    seed: int,
    encoder: Encoder,
) -> Gate:
    """Both for a sentence encoder: its threshold, and then the mix on tasks of ``drawer``.

    Raises:
        DataError: too few validation intents.
    """
    return calibrate_memory(learner, calibrate_gate(learner, corpus, words, seed, encoder), drawer)


def memory_tasks(drawer: TaskDrawer, cell: Cell) -> list[Task]:
    """Tasks of ``cell``, or of the widest cell below it whose tasks all leave something alone.

    Raises:
        DataError: not even two classes can be told apart from something else.
    """
    try:
        tasks = [drawer.draw(cell, index) for index in range(MEMORY_TASKS)]
        if all(task.unrelated for task in tasks):
            return tasks
        raise DataError(f"{cell.shape} leaves no validation class to tell others from")
    except DataError:
        if cell.ways <= 2:
            raise
    return memory_tasks(drawer, replace(cell, ways=cell.ways - 1))


def _target_logprobs(learner: Learner, gate: Gate, tasks: Sequence[Task]) -> Tensor:
    """(mixes, B) log-probability of each query's target among its choices, once adapted."""
    judge = Judge(learner, tasks)
    with torch.no_grad():
        start = repeat(learner.tensors(), len(tasks))
    rule = learner.rule()
    adapted, _ = adapt(learner.model, learner.hooks, start, judge.support, rule, rule.steps)
    logprobs, likeness = judge.choice_logprobs(adapted), judge.choice_likeness(gate)
    mixed = [choice_scores(mix, likeness, logprobs).log_softmax(1) for mix in MIXES]
    targets = judge.choice_targets().unsqueeze(1)
    return torch.stack([rows.gather(1, targets).squeeze(1) for rows in mixed])


def _rows(rng: random.Random, intent: Intent, count: int) -> Tensor:
    return torch.tensor(rng.sample(range(len(intent.questions)), count))


def _akin(corpus: Corpus, taught: Sequence[Intent]) -> list[Intent]:
    """Validation intents of the same domains that were not taught."""
    domains = {(intent.source, intent.domain) for intent in taught}
    return [
        intent
        for intent in corpus.validation_intents
        if (intent.source, intent.domain) in domains and intent not in taught
    ]


def gate_intents(corpus: Corpus) -> list[Intent]:
    """The validation intents that a gate can be tried on; worth asking before training starts.

    Raises:
        DataError: there are fewer than ``LEAST_INTENTS``.
    """
    enough = max(SHOTS) + QUERIES
    intents = [i for i in corpus.validation_intents if len(i.questions) >= enough]
    if len(intents) < LEAST_INTENTS:
        raise DataError(
            f"the gate needs {LEAST_INTENTS} validation intents of {enough} questions, found "
            f"{len(intents)}: name more sources under data.validation, or set inner.gate to false"
        )
    return intents


def best_threshold(near: Tensor, others: Tensor) -> float:
    """Threshold t with the highest share of ``near`` >= t plus share of ``others`` < t.

    Youden's J (Youden 1950); of equal ones the lowest, rounded down to three digits.
    """
    candidates = torch.linspace(-1, 1, 2001)
    opened, closed = 1 - _share_below(near, candidates), _share_below(others, candidates)
    return round(float(candidates[int((opened + closed).argmax())]), 3)


def _share_below(values: Tensor, candidates: Tensor) -> Tensor:
    """(C,) share of ``values`` below each of C ascending candidates."""
    return torch.searchsorted(values.sort().values, candidates) / len(values)


def _vectors(learner: Learner, gate: Gate, questions: Sequence[str]) -> Tensor:
    prompts = [learner.encoder.prompt(user_turn(question)).prefix for question in questions]
    parts = [prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE)]
    return torch.cat([prompt_vectors(gate, learner.summaries(part), part) for part in parts])
