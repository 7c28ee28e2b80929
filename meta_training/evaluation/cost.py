"""What an adaptation costs, beside the tokens that the same model could have said meanwhile.

Knows a learner and tasks; nothing about how well it learns. One task at a time, in plain PyTorch: a
server shares its batches and computes prompts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from adapters.inner_loop import adapt
from adapters.state import repeat
from meta_training.evaluation.cells import Cell, Task, TaskDrawer
from meta_training.learner import Learner
from meta_training.tasks.batches import encode_turn

TASKS = 3  # of each cell, timed in turn
SAID_TOKENS = 24


def adaptation_costs(
    learner: Learner, drawer: TaskDrawer, cells: Sequence[Cell]
) -> dict[str, dict[str, Any]]:
    """Of each cell: examples, taught tokens, CPU seconds of their prompts, of the rule's inner
    steps and of a decoded token; medians over tasks.

    On a GPU they are the clock's, until it has done what it was told.
    """
    found = {}
    for cell in cells:
        timed = [_task_cost(learner, drawer.draw(cell, index)) for index in range(TASKS)]
        found[cell.name] = {name: median(one[name] for one in timed) for name in timed[0]}
    return found


def _task_cost(learner: Learner, task: Task) -> dict[str, float]:
    examples = [encode_turn(turn, learner.encoder) for turn in task.episode.support]
    with torch.no_grad():
        device = learner.device
        prompts_s, prefix = _timed(device, lambda: learner.prefill([e.prompt for e in examples]))
        anchors = None
        if learner.anchor_examples:
            anchors = learner.prefill([e.prompt for e in learner.anchor_examples])
        support = learner.support(examples, [0] * len(examples), prefix, anchors)
        start, rule = repeat(learner.tensors(), 1), learner.rule()
    steps_s, _ = _timed(device, lambda: adapt(learner.model, learner.hooks, start, support, rule))
    answer_s, answers = _timed(device, lambda: learner.greedy(examples[:1], SAID_TOKENS))
    return {
        "examples": len(examples),
        "taught_tokens": sum(len(example.completion) for example in examples),
        "prompts_s": prompts_s,
        "steps_s": steps_s,
        "token_s": answer_s / max(1, len(answers[0])),
    }


def _timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    begin_s = _clock_s(device)
    result = work()
    return _clock_s(device) - begin_s, result


def _clock_s(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
