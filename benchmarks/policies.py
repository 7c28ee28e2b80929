"""Ways to follow a session that gets one feedback item after another, as adapters.

Deriving again over all items, over a window of them, in fixed blocks, or going on from where the
adapter is. Knows a learner's inner steps and examples; nothing about answers or how good they are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from adapters.artifact import Artifact
from adapters.config import InnerRule
from adapters.inner_loop import inner_step
from adapters.minibatches import minibatches
from adapters.prefix import prefill
from adapters.state import Tensors, repeat
from adapters.support import Example, make_support
from meta_training.learner import Learner

WINDOW = 16
RESERVOIR = 15


class Steps:
    """Inner steps of one model as its rule takes them, and what they cost."""

    def __init__(self, learner: Learner, artifact: Artifact) -> None:
        """Step on ``learner``'s model."""
        self.rule: InnerRule = artifact.rule
        self.start: Tensors = repeat(artifact.session_init, 1)
        self._learner = learner

    def take(
        self,
        tensors: Tensors,
        items: Sequence[Example],
        batches: Sequence[Sequence[int]] = (),
        first: int = 0,
    ) -> Tensors:
        """A step over each of ``batches``, which name ``items`` by their places; K over all of them
        without. The first step has the rule's size of step ``first``."""
        model, device = self._learner.model, self._learner.model.device
        with torch.no_grad():
            prefix = prefill(model, [item.prompt for item in items], device)
        support = make_support([items], prefix, self._learner.spec.scope, device)
        every = batches or [range(len(items))] * self.rule.steps
        for step, batch in enumerate(every, first):
            rows = torch.tensor(batch, device=device)
            own = replace(
                support, turns=support.turns.select(rows), sessions=support.sessions[rows]
            )
            sizes = self.rule.sizes_at(step)
            tensors, _ = inner_step(model, self._learner.hooks, tensors, own, sizes, self.rule.clip)
        return tensors


class Policy:
    """What one way of following gives after each item. ``spent_s``: at the last item's arrival."""

    name = ""

    def __init__(self, steps: Steps) -> None:
        """Be untaught."""
        self.steps = steps
        self.spent_s = 0.0

    def arrive(self, items: Sequence[Example], wanted: bool) -> Tensors | None:
        """Learn the last of ``items``; the adapter, or None where it is not ``wanted`` now and
        need not be known to go on."""
        begun_s = time.process_time()
        found = self._learn(items, wanted)
        self.spent_s = time.process_time() - begun_s
        return found

    def _learn(self, items: Sequence[Example], wanted: bool) -> Tensors | None:
        raise NotImplementedError


class Again(Policy):
    """From session_init over all items, or the last ``window`` of them."""

    def __init__(self, steps: Steps, times: int = 1, window: int | None = None) -> None:
        """Take ``times`` as many steps as the rule has."""
        super().__init__(steps)
        self._count, self._window = times * steps.rule.steps, window
        self.name = "all again" if window is None else f"the last {window} again"
        if times > 1:
            self.name += f", {self._count} steps"

    def _learn(self, items: Sequence[Example], wanted: bool) -> Tensors | None:
        if not wanted:
            return None
        used = items if self._window is None else items[-self._window :]
        return self.steps.take(self.steps.start, used, [range(len(used))] * self._count)


class Minibatches(Policy):
    """From session_init over all items, K times over them, but each step over a few of them.

    The same cost as K steps over all, and as many more steps as a few go into all.
    """

    def __init__(self, steps: Steps, size: int) -> None:
        """Take at most ``size`` items a step."""
        super().__init__(steps)
        self._size = size
        self.name = f"all again, {size} items a step"

    def _learn(self, items: Sequence[Example], wanted: bool) -> Tensors | None:
        if not wanted:
            return None
        batches = list(minibatches(len(items), self.steps.rule.steps, self._size))
        return self.steps.take(self.steps.start, items, batches)


class Blocks(Policy):
    """Fixed blocks, each from where the one before ended; a whole one is never learned again."""

    def __init__(self, steps: Steps, size: int) -> None:
        """Blocks of ``size`` items."""
        super().__init__(steps)
        self._size, self._before = size, steps.start
        self.name = f"blocks of {size}"

    def _learn(self, items: Sequence[Example], wanted: bool) -> Tensors | None:
        whole = len(items) % self._size == 0
        if not wanted and not whole:
            return None
        begin = (len(items) - 1) // self._size * self._size
        found = self.steps.take(self._before, items[begin:])
        if whole:
            self._before = found
        return found


class Onward(Policy):
    """From where the adapter is, over the new item and ``kept`` older ones out of a reservoir.

    Every older item is as likely to be in it (Vitter 1985, algorithm R).
    """

    def __init__(self, steps: Steps, count: int, kept: int = 0) -> None:
        """Take ``count`` steps; a single one has the size of the rule's last."""
        super().__init__(steps)
        self._tensors, self._count, self._kept = steps.start, count, kept
        self._reservoir: list[Example] = []
        self._rng = random.Random(0)
        self.name = f"onward, {count} step{'s' * (count > 1)}"
        if kept:
            self.name += f", {kept} older ones"

    def _learn(self, items: Sequence[Example], wanted: bool) -> Tensors | None:
        first = 0 if self._count > 1 else self.steps.rule.steps - 1
        batch = [*self._reservoir, items[-1]]
        every = [range(len(batch))] * self._count
        self._tensors = self.steps.take(self._tensors, batch, every, first)
        if len(self._reservoir) < self._kept:
            self._reservoir.append(items[-1])
        elif self._kept and (place := self._rng.randrange(len(items))) < self._kept:
            self._reservoir[place] = items[-1]
        return self._tensors


def policies(steps: Steps) -> list[Policy]:
    """All that are compared, the server's own first."""
    return [
        Again(steps),
        Again(steps, times=2),
        Minibatches(steps, WINDOW),
        Blocks(steps, 64),
        Again(steps, window=WINDOW),
        Onward(steps, steps.rule.steps),
        Onward(steps, 1, RESERVOIR),
    ]
