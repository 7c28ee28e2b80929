"""Several sessions learning together: one lesson, cut into micro-steps that others run between.

Every session starts from session_init and takes its own number of inner steps over its own
examples; each is answered as soon as its steps are done. Knows the inner step and the guard; knows
nothing about queues, or when a micro-step may run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adapters.artifact import Artifact
from adapters.chat import user_turn
from adapters.config import Gate, InnerRule
from adapters.gate import remember
from adapters.guard import check, update_norm
from adapters.inner_loop import (
    Anchors,
    Example,
    Support,
    make_turns,
    move,
    support_gradients,
    support_losses,
)
from adapters.prefix import Prefix, continue_from, prefill
from adapters.state import AdapterState, Taught, Tensors, repeat, take
from server.engine.base import Base
from server.engine.outbox import Outbox
from server.engine.prefill import Prompt, merge
from server.engine.types import AdaptRequest, Candidate


@dataclass(frozen=True)
class Course:
    """What every derivation shares: its start, the rule, and the anchors' untaught answers."""

    session_init: Tensors
    rule: InnerRule
    anchors: Anchors | None

    @property
    def anchor_tokens(self) -> int:
        """Padded tokens that the anchors add to a step for every session, prompts included."""
        if self.anchors is None:
            return 0
        rows, tokens = self.anchors.turns.ids.shape
        return rows * (tokens + self.anchors.turns.prefix.width)


@torch.no_grad()
def make_course(base: Base, artifact: Artifact) -> Course:
    """Compute once what the untaught model says to the rule's anchors."""
    device, rule = base.device, artifact.rule
    sizes = {name: values.to(device) for name, values in rule.step_sizes.items()}
    init = {name: tensor.to(device) for name, tensor in artifact.session_init.items()}
    anchors = None
    if rule.anchors:
        examples = [
            base.encoder.example(user_turn(anchor.prompt), anchor.completion)
            for anchor in rule.anchors
        ]
        with base.hooks.use(None):
            prefix = prefill(base.model, [example.prompt for example in examples], device)
            turns = make_turns(examples, prefix, base.spec.scope, device)
            logits = continue_from(base.model, turns.prefix, turns.ids)
        anchors = Anchors(turns, logits.float().log_softmax(-1))
    return Course(init, replace(rule, step_sizes=sizes), anchors)


@dataclass(eq=False)
class Job:
    """One adapt request inside the engine, and what its steps saw so far."""

    request: AdaptRequest
    steps: int
    outbox: Outbox[Candidate]
    prompts: list[Prompt] = field(default_factory=list)  # of its examples, in their order
    alone: bool = False  # a lesson with others failed: learn without them
    done: bool = False  # answered or failed
    started_s: float = field(default_factory=time.perf_counter)
    loss_before: float = 0.0
    step_losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)

    @property
    def waited_s(self) -> float:
        """Seconds since the job was asked for."""
        return time.perf_counter() - self.started_s

    @property
    def width(self) -> int:
        """Tokens of the longest example, prompt included."""
        return max(
            len(example.prompt) + len(example.header) + len(example.completion)
            for example in self.request.examples
        )


def _taught(job: Job, gate: Gate | None) -> Taught | None:
    """What the gate remembers: the job's own prompts as the base saw them, and their answers."""
    if gate is None:
        return None
    seen = [
        (prompt.prefix.summaries, example)
        for prompt, example in zip(job.prompts, job.request.examples, strict=True)
        if prompt.prefix is not None and prompt.prefix.summaries is not None
    ]
    if not seen:
        return None
    return remember(
        gate,
        torch.cat([summary for summary, _ in seen]),
        [example.prompt for _, example in seen],
        [example.completion for _, example in seen],
    )


class Lesson:
    """S sessions' derivations, side by side in one forward and backward pass a step."""

    def __init__(
        self, base: Base, course: Course, jobs: Sequence[Job], step_tokens: Callable[[], int]
    ) -> None:
        """Lay out the examples of ``jobs``, whose prompts must be ready.

        ``step_tokens`` says how many padded tokens a micro-step may have now.
        """
        self.jobs = list(jobs)
        self._base = base
        self._course = course
        self._step_tokens = step_tokens
        self._support = self._make_support()
        # A step makes new tensors, so all sessions can begin as views of the same memory.
        self._tensors = repeat(course.session_init, len(self.jobs))

    def run(self) -> Iterator[None]:
        """Learn, pausing after every micro-step; close the iterator to stop."""
        zeros = {name: torch.zeros_like(t) for name, t in self._course.session_init.items()}
        losses = yield from self._losses(repeat(zeros, len(self.jobs)))
        for job, loss in zip(self.jobs, losses.tolist(), strict=True):
            job.loss_before = loss
        for step in range(max(job.steps for job in self.jobs)):
            self._leave([job for job in self.jobs if job.outbox.cancelled])
            if not self.jobs:
                return
            yield from self._step(step)
            finished = [job for job in self.jobs if job.steps == step + 1]
            if finished:
                yield from self._answer(finished)

    def _make_support(self) -> Support:
        base = self._base
        examples: list[Example] = []
        sessions: list[int] = []
        prefixes: list[Prefix] = []
        for session, job in enumerate(self.jobs):
            examples += job.request.examples
            sessions += [session] * len(job.request.examples)
            prefixes += [prompt.prefix for prompt in job.prompts if prompt.prefix is not None]
        prefix = merge(prefixes, base.device) if prefixes else None
        turns = make_turns(examples, prefix, base.spec.scope, base.device)
        owners = torch.tensor(sessions, device=base.device)
        return Support(turns, owners, len(self.jobs), self._course.anchors)

    def _step(self, step: int) -> Iterator[None]:
        """An inner step in as many micro-steps as it has parts."""
        base, rule = self._base, self._course.rule
        sums: Tensors = {}
        losses = torch.zeros(len(self.jobs), device=base.device)
        for part in self._support.parts(self._step_tokens):
            loss, gradients = support_gradients(
                base.model, base.hooks, self._tensors, part, rule.anchor_weight
            )
            losses += loss
            for name, gradient in gradients.items():
                sums[name] = sums[name] + gradient if name in sums else gradient
            yield
        with torch.no_grad():
            self._tensors, norms = move(self._tensors, sums, rule.sizes_at(step), rule.clip)
        for job, loss, norm in zip(self.jobs, losses.tolist(), norms.tolist(), strict=True):
            job.step_losses.append(loss)
            job.gradient_norms.append(norm)

    def _answer(self, finished: Sequence[Job]) -> Iterator[None]:
        now = yield from self._losses(self._tensors)
        losses = dict(zip(map(id, self.jobs), now.tolist(), strict=True))
        for job in finished:
            job.outbox.put(self._candidate(job, losses[id(job)]))
            job.done = True
        self._leave(finished)

    def _candidate(self, job: Job, loss_after: float) -> Candidate:
        init = self._course.session_init
        adapted = take(self._tensors, self.jobs.index(job))
        verdict = check(adapted, init, job.loss_before, loss_after)
        # States live on the host: they go to storage, and to slots from there.
        tensors = {name: tensor.cpu() for name, tensor in adapted.items()}
        taught = _taught(job, self._base.gate)
        return Candidate(
            state=AdapterState(self._base.spec, tensors, self._base.fingerprint, taught),
            loss_before=job.loss_before,
            loss_after=loss_after,
            step_losses=tuple(job.step_losses),
            gradient_norms=tuple(job.gradient_norms),
            update_norm=update_norm(adapted, init),
            verdict=verdict,
            steps=job.steps,
            duration_ms=job.waited_s * 1e3,
        )

    def _losses(self, tensors: Tensors) -> Generator[None, None, Tensor]:
        """Each session's demonstration loss, (S,), without the anchors; a micro-step a part."""
        losses = torch.zeros(len(self.jobs), device=self._base.device)
        for part in replace(self._support, anchors=None).parts(self._step_tokens):
            with torch.no_grad():
                losses += support_losses(self._base.model, self._base.hooks, tensors, part, 0.0)
            yield
        return losses

    def _leave(self, leaving: Sequence[Job]) -> None:
        """Go on with the other sessions only."""
        if not leaving:
            return
        keep = [index for index, job in enumerate(self.jobs) if job not in leaving]
        self.jobs = [self.jobs[index] for index in keep]
        if self.jobs:
            rows = torch.tensor(keep, device=self._base.device)
            self._tensors = {name: t.index_select(0, rows) for name, t in self._tensors.items()}
            self._support = self._make_support()
