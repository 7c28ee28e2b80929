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
from transformers import PreTrainedTokenizerBase

from adapters.encoder import Encoder
from adapters.inner_loop import inner_step, support_losses
from adapters.state import Tensors, repeat
from meta_training.algorithms.metric import Metric
from meta_training.evaluation.cells import Cell, Task, TaskDrawer, drawable_cells
from meta_training.evaluation.judge import Judge, Scores
from meta_training.evaluation.report import right_figure
from meta_training.learner import Learner
from meta_training.tasks.batches import encode_turn
from meta_training.tasks.episodes import Turn

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TUNING_CELLS = (Cell("label", 5, 5), Cell("house_reply", 1, 5))  # where there are such
TUNING_TASKS = 6  # of each
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

    def __init__(
        self,
        name: str,
        learner: Learner,
        recall: bool = False,
        shown: Shown | None = None,
        steps: Sequence[int] = INNER_STEPS,
    ) -> None:
        """Adapt ``learner`` by its own inner rule.

        Args:
            name: of the method, in reports.
            learner: what adapts.
            recall: answer with the memory of what was taught beside the adapter.
            shown: the examples are in the prompt as well.
            steps: after how many it is judged, beside as many as the rule has.
        """
        self.name = name
        self._learner = learner
        self._recall = recall
        self._shown = shown
        self._steps = sorted({*steps, learner.rule().steps})
        self.checkpoints = tuple(f"{step} steps" for step in self._steps)

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Scores after each of the numbers of inner steps."""
        if self._shown is None:
            return self._scores(Judge(self._learner, tasks, recall=self._recall), len(tasks))
        # One by one: a judge of one task computes its examples once for all its questions.
        parts = [
            self._scores(Judge(self._learner, [task], [self._shown.turns(task)], self._recall), 1)
            for task in tasks
        ]
        return {place: [part[place][0] for part in parts] for place in self.checkpoints}

    def _scores(self, judge: Judge, count: int) -> dict[str, Scores]:
        learner = self._learner
        with torch.no_grad():
            tensors: Tensors = repeat(learner.tensors(), count)
            rule = learner.rule()
        scores = {}
        for step in range(self._steps[-1] + 1):
            if step in self._steps:
                scores[f"{step} steps"] = judge.score(tensors)
            if step == self._steps[-1]:
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
        self.learning_rate = learning_rate

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Scores after 5 and 50 steps of AdamW."""
        judge = Judge(self._learner, tasks)
        tensors = {
            name: tensor.clone().requires_grad_()
            for name, tensor in repeat(self._start(), len(tasks)).items()
        }
        optimizer = torch.optim.AdamW(tensors.values(), lr=self.learning_rate)
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
                start[name] = ((2 * uniform - 1) * bound).to(tensor.device)
            else:
                start[name] = torch.zeros(tensor.shape, device=tensor.device)
        return start


def tuned_lora(name: str, learner: Learner, drawer: TaskDrawer) -> PlainLora:
    """Plain LoRA at the learning rate of five that is best on ``drawer``'s tasks.

    One rate for all cells and both numbers of steps: the best sum, over 5 and 50 steps, of the
    share of labels right and minus one reply's nats a token. A rate tuned for one of them alone may
    do better there.
    """
    return max(
        (PlainLora(name, learner, rate) for rate in LEARNING_RATES),
        key=lambda method: _right(method, drawer),
    )


def _right(method: Method, drawer: TaskDrawer) -> float:
    total = 0.0
    cells = [cell for cell in TUNING_CELLS if drawer.can_draw(cell)]
    for cell in cells or drawable_cells(drawer)[:2]:
        tasks = [drawer.draw(cell, index) for index in range(TUNING_TASKS)]
        for scores in method.scores(tasks).values():
            total += sum(_goodness(score) for score in scores)
    return total


def _goodness(score: dict[str, float]) -> float:
    # Of free answers hardly one is right word for word, so that it is their likelihood that counts.
    return -score["nats"] if "nats" in score else score[right_figure(score)]


class InContext:
    """The examples in the prompt; no adapter."""

    checkpoints: tuple[str, ...] = ("prompt",)

    def __init__(self, name: str, learner: Learner, shown: Shown) -> None:
        """Prompt ``learner``'s base."""
        self.name = name
        self._learner = learner
        self._shown = shown

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Scores of the prompt with examples."""
        judges = (Judge(self._learner, [task], [self._shown.turns(task)]) for task in tasks)
        return {"prompt": [judge.score(None)[0] for judge in judges]}


class Shown:
    """Examples as earlier turns of the chat, as many as fit the context."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_tokens: int) -> None:
        """Fill a context of that size, up to what a question and its answer need."""
        self._tokenizer = tokenizer
        self._room_tokens = context_tokens - 96

    def turns(self, task: Task) -> list[dict[str, str]]:
        """A task's support as messages, from its first example on."""
        messages: list[dict[str, str]] = []
        used = 0
        for turn in task.episode.support:
            if turn.rating < 0:  # nothing that should be said
                continue
            used += len(self._tokenizer(turn.question + turn.answer)["input_ids"]) + 6
            if used > self._room_tokens:
                break
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages


class NearestTaught:
    """A label by what the prompts' vectors lie near to; no adapter, no gate."""

    checkpoints: tuple[str, ...] = ("-",)

    def __init__(
        self, name: str, learner: Learner, metric: Metric, encoder: Encoder | None = None
    ) -> None:
        """Compare by ``metric`` the summaries of ``learner``'s base, or what ``encoder`` says."""
        self.name = name
        self._chat = learner.encoder
        self._vectors = learner.summaries if encoder is None else encoder.vectors
        self._metric = metric

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """Share of queries whose best class is right."""
        return {"-": [{"choice": self._accuracy(task)} for task in tasks]}

    @torch.no_grad()
    def _accuracy(self, task: Task) -> float:
        support, query = task.episode.support, task.episode.query
        prompts = [encode_turn(turn, self._chat).prompt for turn in (*support, *query)]
        vectors = self._vectors(prompts)
        names = sorted({turn.answer for turn in support})
        labels = torch.tensor([names.index(turn.answer) for turn in support])
        known, asked = vectors.split((len(support), len(query)))
        best = self._metric.scores(known, labels.to(known.device), asked).argmax(1).tolist()
        return _share_right([names[i] for i in best], query)


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
        labels = np.array([turn.answer for turn in support])
        names = sorted(set(labels))
        centroids = np.stack([seen[labels == kind].mean(0) for kind in names])
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True) + 1e-9
        asked = vectorizer.transform([turn.question for turn in query]).toarray()
        best = (asked @ centroids.T).argmax(1)
        return _share_right([names[i] for i in best], query)


def _share_right(picked: Sequence[str], query: Sequence[Turn]) -> float:
    return float(np.mean([name == turn.answer for name, turn in zip(picked, query, strict=True)]))
