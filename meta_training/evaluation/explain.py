"""Why an adapter is what it is: what each example did to it, and where it moved.

Leave-one-out, exactly: influence functions (Koh and Liang 2017, arXiv 1703.04730) approximate it
where training again is too dear, which a few inner steps are not. The adapter alone, without gate
and memory. Knows a learner and tasks; knows nothing about reports.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from adapters.norms import weight_change, weight_changes
from adapters.state import Tensors
from meta_training.evaluation.adapted import Adapted, adapted
from meta_training.evaluation.cells import Cell, Task, TaskDrawer
from meta_training.evaluation.run import chunks, tasks_at_once
from meta_training.learner import Learner


def explained(learner: Learner, drawer: TaskDrawer, cell: Cell, count: int) -> dict[str, Any]:
    """The first ``count`` tasks of ``cell``: its name, and ``tasks`` as of ``explain_task``.

    Raises:
        DataError: too little is held out for such tasks.
    """
    drawn = (drawer.draw(cell, index) for index in range(count))
    return {
        "cell": cell.name,
        "tasks": [explain_task(learner, task, tasks_at_once(cell)) for task in drawn],
    }


def explain_task(learner: Learner, task: Task, at_once: int) -> dict[str, Any]:
    """What one task's examples did to its adapter, and how far its modules' weights moved.

    Returns:
        ``loss`` and ``loss_start``: the queries' nats a token after the rule's inner steps and
        before. ``examples``: what they teach, by ``loss_change``, how much higher the loss is
        where the adapter is learned without the example, greatest first; with ``share``, how far
        that adapter is from the whole one, as a share of its way from the start. ``modules``: by
        name the Frobenius norm of what was added to the weights. What is no number is None.
    """
    whole, before = adapted(learner, [task]), adapted(learner, [task], 0)
    moved, start = _adapter(whole, 0), _adapter(before, 0)
    scale = learner.spec.scale
    way = weight_change(moved, start, scale)
    (loss,), (loss_start,) = whole.means(), before.means()
    examples = [
        {
            "question": turn.question,
            "answer": turn.answer,
            "loss_change": _told(other_loss - loss),
            "share": _told(weight_change(moved, other, scale) / way) if way else None,
        }
        for turn, (other, other_loss) in zip(
            task.episode.support, _without_each(learner, task, before, at_once), strict=True
        )
    ]
    norms = weight_changes(moved, start, scale)
    return {
        "loss": _told(loss),
        "loss_start": _told(loss_start),
        "examples": sorted(examples, key=lambda one: _least_last(one["loss_change"])),
        "modules": {name: _told(norm) for name, norm in norms.items()},
    }


def _without_each(
    learner: Learner, task: Task, start: Adapted, at_once: int
) -> list[tuple[Tensors, float]]:
    """The adapter and the loss without each example; without the only one the ``start``'s."""
    support = task.episode.support
    if len(support) == 1:
        return [(_adapter(start, 0), start.means()[0])]
    found: list[tuple[Tensors, float]] = []
    for places in chunks(list(range(len(support))), at_once):
        some = adapted(learner, [_without(task, place) for place in places])
        found += [(_adapter(some, s), loss) for s, loss in enumerate(some.means())]
    return found


def _without(task: Task, place: int) -> Task:
    support = task.episode.support
    rest = (*support[:place], *support[place + 1 :])
    return replace(task, episode=replace(task.episode, support=rest))


def _adapter(of: Adapted, session: int) -> Tensors:
    return {name: tensor[session] for name, tensor in of.tensors.items()}


def _told(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _least_last(value: float | None) -> float:
    return math.inf if value is None else -value
