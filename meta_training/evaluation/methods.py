"""Ways to learn from a task's support: ours, and the plain alternatives on the same examples.

Every method gives the scores of a batch of tasks at each of its checkpoints. Knows learners and
judges; knows nothing about which tasks are drawn or how results are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion

from adapters.inner_loop import inner_step, support_losses
from adapters.state import Tensors, repeat
from meta_training.evaluation.cells import Task
from meta_training.evaluation.judge import Judge, Scores
from meta_training.learner import Learner

INNER_STEPS = (0, 1, 3, 5, 10)
LORA_STEPS = (5, 50)


class Method(Protocol):
    """Something that learns from support examples."""

    name: str
    checkpoints: tuple[str, ...]

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Scores of every task at every checkpoint, by the checkpoint's name."""
        ...


class MetaLearned:
    """The artifact: session_init and the learned inner steps."""

    checkpoints = tuple(f"{step} steps" for step in INNER_STEPS)

    def __init__(self, name: str, learner: Learner, recall: bool = False) -> None:
        """Adapt ``learner`` by its own inner rule; answer with ``recall`` or without."""
        self.name = name
        self._learner = learner
        self._recall = recall

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Scores after 0, 1, 3, 5 and 10 inner steps."""
        learner = self._learner
        judge = Judge(learner, tasks, recall=self._recall)
        with torch.no_grad():
            tensors: Tensors = repeat(learner.tensors(), len(tasks))
            rule = learner.rule()
        scores = {}
        for step in range(max(INNER_STEPS) + 1):
            if step in INNER_STEPS:
                scores[f"{step} steps"] = judge.score(tensors)
            if step == max(INNER_STEPS):
                break
            sizes = {name: size.detach() for name, size in rule.sizes_at(step).items()}
            weight = torch.as_tensor(rule.anchor_weight).detach()
            tensors, _ = inner_step(
                learner.model, learner.hooks, tensors, judge.support, sizes, rule.clip, weight
            )
        return scores


class PlainLora:
    """LoRA from PEFT's default start (A Kaiming-uniform, B zero) with AdamW and one step size."""

    checkpoints = tuple(f"{step} steps" for step in LORA_STEPS)

    def __init__(self, name: str, learner: Learner, learning_rate: float) -> None:
        """Adapt a fresh LoRA on ``learner``'s base; ``learning_rate`` comes from tuning."""
        self.name = name
        self._learner = learner
        self._learning_rate = learning_rate

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Scores after 5 and 50 steps of AdamW."""
        judge = Judge(self._learner, tasks)
        tensors = {
            name: tensor.clone().requires_grad_()
            for name, tensor in repeat(self._start(), len(tasks)).items()
        }
        optimizer = torch.optim.AdamW(tensors.values(), lr=self._learning_rate)
        scores = {}
        for step in range(max(LORA_STEPS) + 1):
            if step in LORA_STEPS:
                scores[f"{step} steps"] = judge.score({n: t.detach() for n, t in tensors.items()})
            if step < max(LORA_STEPS):
                self._step(judge, tensors, optimizer)
        return scores

    def _step(self, judge: Judge, tensors: Tensors, optimizer: torch.optim.Optimizer) -> None:
        learner = self._learner
        losses = support_losses(learner.model, learner.hooks, tensors, judge.support, 0.0)
        gradients = torch.autograd.grad(losses.sum(), list(tensors.values()))
        for tensor, gradient in zip(tensors.values(), gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()

    def _start(self) -> Tensors:
        generator = torch.Generator().manual_seed(0)
        start: Tensors = {}
        for name, tensor in self._learner.tensors().items():
            if name.endswith("lora_A"):
                bound = tensor.shape[1] ** -0.5
                uniform = torch.rand(tensor.shape, generator=generator)
                start[name] = (2 * uniform - 1) * bound
            else:
                start[name] = torch.zeros(tensor.shape)
        return start


class InContext:
    """The examples as earlier turns of the chat, as many as fit the context; no adapter."""

    checkpoints: tuple[str, ...] = ("prompt",)

    def __init__(self, name: str, learner: Learner, context_tokens: int) -> None:
        """Prompt ``learner``'s base."""
        self.name = name
        self._learner = learner
        self._room_tokens = context_tokens - 96  # left for the question and its answer

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Scores of the prompt with examples."""
        # One by one: a judge of one task computes its examples once for all its questions.
        judges = (Judge(self._learner, [task], [self._history(task)]) for task in tasks)
        return {"prompt": [judge.score(None)[0] for judge in judges]}

    def _history(self, task: Task) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = []
        tokenizer = self._learner.encoder.tokenizer
        used = 0
        for turn in task.episode.support:
            used += len(tokenizer(turn.question + turn.answer)["input_ids"]) + 6
            if used > self._room_tokens:
                break
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages


class TfidfCentroid:
    """Nearest centroid of TF-IDF over words and 3- to 4-grams of characters; no training."""

    name = "TF-IDF nearest centroid"
    checkpoints: tuple[str, ...] = ("-",)

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Share of queries whose nearest centroid is right."""
        return {"-": [{"choice": self._accuracy(task)} for task in tasks]}

    def _accuracy(self, task: Task) -> float:
        support, query = task.episode.support, task.episode.query
        vectorizer = FeatureUnion(
            [
                ("words", TfidfVectorizer()),
                ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4))),
            ]
        )
        seen = vectorizer.fit_transform([turn.question for turn in support]).toarray()
        labels = np.array([turn.kind for turn in support])
        kinds = sorted(set(labels))
        centroids = np.stack([seen[labels == kind].mean(0) for kind in kinds])
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True) + 1e-9
        asked = vectorizer.transform([turn.question for turn in query]).toarray()
        best = (asked @ centroids.T).argmax(1)
        return float(np.mean([kinds[i] == turn.kind for i, turn in zip(best, query, strict=True)]))
