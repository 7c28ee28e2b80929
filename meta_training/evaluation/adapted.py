"""Adapters after a rule's inner steps on tasks, and their loss on the tasks' queries.

The adapter alone, without a gate. Knows a learner and tasks; knows nothing about who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.inner_loop import adapt
from adapters.layer import rows_of
from adapters.objective import IGNORE, demonstration_loss
from adapters.prefix import continue_from
from adapters.state import Tensors, repeat
from adapters.support import make_turns
from meta_training.evaluation.cells import Task
from meta_training.learner import Learner
from meta_training.tasks.batches import encode_turn


@dataclass(frozen=True)
class Adapted:
    """Adapters of S tasks, and what they say to B queries.

    ``tensors``: stacked, S first. ``losses``: (B,) nats a token of each query's answer.
    ``lengths``: (B,) tokens of it. ``sessions``: (B,) the task that each query belongs to.
    """

    tensors: Tensors
    losses: Tensor
    lengths: Tensor
    sessions: Tensor

    def means(self) -> list[float]:
        """The loss of each task."""
        count = len(next(iter(self.tensors.values())))
        return [float(self.losses[self.sessions == s].mean()) for s in range(count)]


def adapted(learner: Learner, tasks: Sequence[Task], steps: int | None = None) -> Adapted:
    """``learner`` after ``steps`` inner steps on each task's support, its rule's K by default.

    Every task has an example.
    """
    support = [(turn, s) for s, task in enumerate(tasks) for turn in task.episode.support]
    query = [(turn, s) for s, task in enumerate(tasks) for turn in task.episode.query]
    examples = [encode_turn(turn, learner.encoder) for turn, _ in support + query]
    taught = len(support)
    with torch.no_grad():
        prefix = learner.prefill([example.prompt for example in examples])
        device, scope = prefix.lengths.device, learner.spec.scope
        rows = torch.arange(len(examples), device=device)
        asked = make_turns(examples[taught:], prefix.select(rows[taught:]), scope, device)
        anchors = None
        if learner.anchor_examples:
            anchors = learner.prefill([e.prompt for e in learner.anchor_examples])
        owners = [s for _, s in support]
        learned = learner.support(examples[:taught], owners, prefix.select(rows[:taught]), anchors)
        start, rule = repeat(learner.tensors(), len(tasks)), learner.rule()
    sessions = torch.tensor([s for _, s in query], device=device)
    moved, _ = adapt(learner.model, learner.hooks, start, learned, rule, steps)
    with torch.no_grad(), learner.hooks.use(rows_of(moved, sessions, asked.active)):
        logits = continue_from(learner.model, asked.prefix, asked.ids)
    losses = demonstration_loss(logits, asked.targets)
    tensors = {name: tensor.detach() for name, tensor in moved.items()}
    return Adapted(tensors, losses, (asked.targets != IGNORE).sum(1), sessions)
