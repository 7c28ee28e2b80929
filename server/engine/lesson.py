"""Several sessions learning together: one lesson, cut into micro-steps that others run between.

Every session starts from session_init, or where its request says, and takes its own number of
inner steps over its own examples; each is answered as soon as its steps are done. Knows the inner
step and the guard; knows nothing about queues, or when a micro-step may run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from adapters.config import Gate
from adapters.gate import remember
from adapters.guard import Verdict, check, parts, shorten, update_norm
from adapters.inner_loop import move, reference_logprobs, support_gradients, support_losses
from adapters.layer import rows_of
from adapters.lower import Entering
from adapters.minibatches import minibatches
from adapters.prefix import merge
from adapters.state import AdapterState, Taught, Tensors, repeat, stack, take
from adapters.support import Support, make_support
from server.engine.base import Base
from server.engine.course import Course
from server.engine.job import Job
from server.engine.types import Candidate


def _taught(job: Job, gate: Gate | None) -> Taught | None:
    """What the gate remembers: the job's own prompts as the base saw them, and their answers."""
    if gate is None:
        return None
    every = (*job.examples, *job.left_alone)
    # Where something else is taught, a disliked answer has nothing to add to it.
    telling = [bool(example.wanted) for example in job.examples] + [True] * len(job.left_alone)
    seen = [
        (prompt.prefix.summaries, example.prompt, example.completion)
        for prompt, example, tells in zip(job.prompts, every, telling, strict=True)
        if tells and prompt.prefix is not None and prompt.prefix.summaries is not None
    ]
    if not seen:
        return None
    return remember(
        gate,
        torch.cat([summary for summary, _, _ in seen]),
        [prompt for _, prompt, _ in seen],
        [completion for _, _, completion in seen],
        len(job.left_alone),
    )


def nothing_learned(job: Job, base: Base, course: Course) -> Candidate:
    """The answer to a job whose examples are all left alone: an adapter that is never used.

    What the gate remembers is new; there are no steps, and no losses.
    """
    tensors = {name: t.cpu() for name, t in (job.request.start or course.session_init).items()}
    return Candidate(
        state=AdapterState(base.spec, tensors, base.fingerprint, _taught(job, base.gate)),
        loss_before=math.nan,
        loss_after=math.nan,
        step_losses=(),
        gradient_norms=(),
        update_norm=0.0,
        verdict=Verdict(True),
        steps=0,
        items_a_step=job.items_a_step,
        duration_ms=job.waited_s * 1e3,
    )


class Lesson:
    """S sessions' derivations, side by side in one forward and backward pass a step."""

    def __init__(
        self,
        base: Base,
        course: Course,
        jobs: Sequence[Job],
        step_tokens: Callable[[], int],
        halvings: int = 0,
    ) -> None:
        """Lay out the examples of ``jobs``, whose prompts must be ready.

        ``step_tokens`` says how many padded tokens a micro-step may have now, ``halvings`` how
        often an update that the guard refuses is halved.
        """
        self.jobs = list(jobs)
        self._base = base
        self._course = course
        self._step_tokens = step_tokens
        self._parts = parts(halvings)
        # By job, of the rows of its examples:
        self._references: dict[int, Tensor] = {}
        self._entering: dict[int, Tensor] = {}
        self._batches = {  # by job: of each step
            id(job): minibatches(len(job.examples), job.steps, job.items_a_step) for job in jobs
        }
        self._support = self._make_support()
        # A step makes new tensors, so all sessions can begin as views of the same memory.
        self._starts = repeat(course.session_init, len(self.jobs))
        if any(job.request.start is not None for job in self.jobs):
            self._starts = stack([self._start(job) for job in self.jobs])
        self._tensors = self._starts

    def run(self) -> Iterator[None]:
        """Learn, pausing after every micro-step; close the iterator to stop."""
        if self._support.roles is not None:
            yield from self._refer()
        losses = yield from self._losses(self._before())
        for job, loss in zip(self.jobs, losses.tolist(), strict=True):
            job.loss_before = loss
        if self._course.lower.count:
            yield from self._pass_lower_layers()
        for step in range(max(job.steps_in_all for job in self.jobs)):
            self._leave([job for job in self.jobs if job.outbox.cancelled])
            if not self.jobs:
                return
            yield from self._step(step)
            finished = [job for job in self.jobs if job.steps_in_all == step + 1]
            if finished:
                yield from self._answer(finished)

    def _start(self, job: Job) -> Tensors:
        if job.request.start is None:
            return self._course.session_init
        return {name: tensor.to(self._base.device) for name, tensor in job.request.start.items()}

    def _before(self) -> Tensors | None:
        """How each session answers before: by its start, or without an adapter."""
        if all(job.request.start is None for job in self.jobs):
            return None
        from_start = [float(job.request.start is not None) for job in self.jobs]
        factors = torch.tensor(from_start, device=self._base.device)
        return {
            name: tensor * factors.view(-1, *[1] * (tensor.ndim - 1))
            for name, tensor in self._starts.items()
        }

    def _make_support(self) -> Support:
        base = self._base
        prefixes = [
            prompt.prefix
            for job in self.jobs
            for prompt in job.prompts[: len(job.examples)]
            if prompt.prefix is not None
        ]
        support = make_support(
            [job.examples for job in self.jobs],
            merge(prefixes, base.device) if prefixes else None,
            base.spec.scope,
            base.device,
            self._course.anchors,
        )
        return self._with_known(support)

    def _with_known(self, support: Support) -> Support:
        """The support with what was computed once for its rows."""
        if self._entering:
            width = support.turns.ids.shape[1]
            hidden = torch.cat([self._entering[id(job)][:, :width] for job in self.jobs])
            entering = Entering(self._course.lower, hidden)
            support = replace(support, turns=replace(support.turns, entering=entering))
        if self._references and support.roles is not None:
            references = [self._references[id(job)] for job in self.jobs]
            support = replace(support, reference=torch.cat(references))
        return support

    def _refer(self) -> Iterator[None]:
        """Keep what the untaught model says to every completion; a micro-step a part."""
        model, hooks = self._base.model, self._base.hooks
        yield from self._keep(self._references, partial(reference_logprobs, model, hooks))

    def _pass_lower_layers(self) -> Iterator[None]:
        """Keep what enters the lowest layer that learns: the same in every step."""

        def entering(part: Support) -> Tensor:
            rows = rows_of(self._starts, part.sessions, part.turns.active)
            with self._base.hooks.use(rows):
                return self._course.lower.entering(lambda: part.turns.logits(self._base.model))

        yield from self._keep(self._entering, entering)

    def _keep(
        self, kept: dict[int, Tensor], compute: Callable[[Support], Tensor]
    ) -> Iterator[None]:
        """Compute something of every row, a micro-step a part, and keep it by job."""
        found = []
        for part in replace(self._support, anchors=None).parts(self._step_tokens):
            found.append(compute(part))
            yield
        whole = torch.cat(found)
        for session, job in enumerate(self.jobs):
            kept[id(job)] = whole[self._support.sessions == session]
        self._support = self._with_known(self._support)

    def _step(self, step: int) -> Iterator[None]:
        """An inner step in as many micro-steps as it has parts."""
        base, rule = self._base, self._course.rule
        sums: Tensors = {}
        losses = torch.zeros(len(self.jobs), device=base.device)
        for part in self._next_rows().parts(self._step_tokens):
            loss, gradients = support_gradients(
                base.model,
                base.hooks,
                self._tensors,
                part,
                rule.anchor_weight,
                moving=rule.step_sizes,
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
        yield

    def _next_rows(self) -> Support:
        """What the next step is over: of sessions with many examples, not all of them."""
        rows, every = list[int](), 0
        for job in self.jobs:
            sizes = [len(example.rows()) for example in job.examples]
            ends = list(accumulate(sizes, initial=every))
            for place in sorted(next(self._batches[id(job)])):
                rows += range(ends[place], ends[place + 1])
            every = ends[-1]
        if len(rows) == every:
            return self._support
        return self._support.only(torch.tensor(rows, device=self._base.device))

    def _answer(self, finished: Sequence[Job]) -> Iterator[None]:
        """Judge those whose steps are done. What the guard refuses is halved and judged again."""
        found = yield from self._judge(finished, 1.0)
        for scale in self._parts:
            again = [job for job in finished if not found[job].verdict.accepted]
            again = [job for job in again if job.request.scale is None]
            if not again:
                break
            for job, part in (yield from self._judge(again, scale)).items():
                if part.verdict.accepted:
                    verdict = part.verdict.instead_of(found[job].verdict)
                    found[job] = replace(part, verdict=verdict)
        for job, candidate in found.items():
            job.outbox.put(candidate)
            job.done = True
        self._leave(finished)

    def _judge(
        self, jobs: Sequence[Job], scale: float
    ) -> Generator[None, None, dict[Job, Candidate]]:
        """What ``jobs`` have at this part of their updates, or at the part that they ask for."""
        factors = [scale if job.request.scale is None else job.request.scale for job in self.jobs]
        tensors = shorten(self._tensors, self._starts, factors)
        losses = (yield from self._losses(tensors)).tolist()
        found = {}
        for job in jobs:
            session = self.jobs.index(job)
            found[job] = yield from self._candidate(
                job,
                take(tensors, session),
                take(self._starts, session),
                losses[session],
                factors[session],
            )
        return found

    def _candidate(
        self, job: Job, adapted: Tensors, init: Tensors, loss_after: float, scale: float
    ) -> Generator[None, None, Candidate]:
        """What a job has, in as many micro-steps as take about as long as a pass does."""
        verdict = check(adapted, init, job.loss_before, loss_after, scale=scale)
        yield
        taught = _taught(job, self._base.gate)
        yield
        # States live on the host: they go to storage, and to slots from there.
        tensors = {name: tensor.cpu() for name, tensor in adapted.items()}
        return Candidate(
            state=AdapterState(self._base.spec, tensors, self._base.fingerprint, taught),
            loss_before=job.loss_before,
            loss_after=loss_after,
            step_losses=tuple(job.step_losses),
            gradient_norms=tuple(job.gradient_norms),
            update_norm=update_norm(adapted, init),
            verdict=verdict,
            steps=job.steps,
            items_a_step=job.items_a_step,
            duration_ms=job.waited_s * 1e3,
        )

    def _losses(self, tensors: Tensors | None) -> Generator[None, None, Tensor]:
        """Each session's loss on its feedback, (S,), no anchors; a micro-step a part."""
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
            self._starts = {name: t.index_select(0, rows) for name, t in self._starts.items()}
            self._support = self._make_support()
