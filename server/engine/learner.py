"""Adapt jobs waiting for their turn, and the lesson that is going on.

Jobs that wait are put into one lesson; a job whose lesson fails learns alone before it counts as
failed. Knows nothing about decoding, or what its time depends on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from server.engine.base import Base
from server.engine.course import Course
from server.engine.errors import EngineBusy, EngineError, EngineFailed
from server.engine.isolation import failure
from server.engine.job import Job
from server.engine.lesson import Lesson, nothing_learned
from server.engine.prefill import Prefills
from server.engine.prefix_cache import prefix_owner
from server.engine.slices import Over, Sliced
from server.engine.types import EngineLimits

_log = logging.getLogger(__name__)
_END: Final = object()


class Learner:
    """Adapt jobs from arrival to answer."""

    def __init__(
        self,
        base: Base,
        course: Course,
        prefills: Prefills,
        limits: EngineLimits,
        sliced: Sliced,
        others_wait: Callable[[], bool],
    ) -> None:
        """Have nothing to learn yet.

        ``sliced`` runs lessons, which can pause inside the model's modules; ``others_wait`` says
        whether parts of a step have to be small.
        """
        self.waiting: deque[Job] = deque()
        self.preparing: list[Job] = []  # their prompts are being computed, for the next lesson
        self.learning: list[Job] = []
        self.finished = 0
        self.failed = 0
        self._steps: Iterator[None] | None = None  # of the lesson that is going on
        self._ended = False  # that lesson
        self._base = base
        self._course = course
        self._prefills = prefills
        self._limits = limits
        self._sliced = sliced
        self._others_wait = others_wait

    @property
    def idle(self) -> bool:
        """Whether there is no job at all."""
        return not (self.waiting or self.preparing or self.learning)

    def prepare(self) -> None:
        """Ask for the prompts of the jobs that could be in the next lesson.

        Who has nothing to learn is answered as soon as they are there.
        """
        self._drop([job for job in (*self.waiting, *self.preparing) if job.outbox.cancelled])
        patience_s = self._limits.patience_s
        for job in [*self.waiting, *self.preparing]:
            if job.waited_s > patience_s and not job.alone:  # which had its lesson already
                self._fail(
                    job, EngineBusy(f"no lesson could begin within {patience_s:g} s: try again")
                )
        while self.waiting and len(self.preparing) < self._limits.adapt_batch:
            job = self.waiting.popleft()
            self.preparing.append(job)
            if self._base.spec.scope != "full":  # there, the adapter acts on the prompt too
                owner = prefix_owner(job.request.tenant, None)
                for example in (*job.examples, *job.left_alone):
                    job.prompts.append(self._prefills.request(example.prompt, owner))
            if self._others_wait():
                break  # the next one in the next turn
        for job in list(self.preparing):
            error = next((prompt.error for prompt in job.prompts if prompt.error), None)
            if error is not None:
                self._fail(job, error)
            elif not job.examples and _prompts_ready(job):
                job.outbox.put(nothing_learned(job, self._base, self._course))
                job.done = True
                self.finished += 1
                self._drop([job])

    @property
    def ready(self) -> bool:
        """Whether ``step`` has something to do."""
        return self._steps is not None or any(map(_can_learn, self.preparing))

    def step(self, over: Over) -> None:
        """Run one micro-step of the lesson that is going on, or of the next one.

        It pauses where ``over`` says so, and the next call goes on with it.
        """
        if not self.ready:
            return
        try:
            if self._steps is None:
                self.learning = self._next_class()
                self._steps = self._lesson(self.learning).run()
            if self._sliced.run(self._micro_step, over) and self._ended:
                self._end_lesson()
        except Exception as error:
            self._break_up(error)

    def _micro_step(self) -> None:
        assert self._steps is not None
        self._ended = next(self._steps, _END) is _END

    def cancel(self, error: EngineError) -> None:
        """End every job with ``error``."""
        self._sliced.abandon()
        self._steps = None
        jobs = [*self.waiting, *self.preparing, *self.learning]
        for job in jobs:
            if not job.done:
                self._fail(job, error)
        self._drop(jobs)

    def _lesson(self, jobs: Sequence[Job]) -> Lesson:
        limits = self._limits

        def step_tokens() -> int:
            return limits.micro_step_tokens if self._others_wait() else limits.adapt_tokens

        return Lesson(self._base, self._course, jobs, step_tokens, limits.halvings)

    def _next_class(self) -> list[Job]:
        """Ready jobs from the front on that learn together within the limit of tokens."""
        chosen: list[Job] = []
        examples = width = 0
        for job in filter(_can_learn, self.preparing):
            if chosen and (job.alone or chosen[0].alone):
                break
            examples += len(job.examples)
            width = max(width, job.width)
            anchors = (len(chosen) + 1) * self._course.anchor_tokens
            if chosen and examples * width + anchors > self._limits.adapt_tokens:
                break
            chosen.append(job)
        self.preparing = [job for job in self.preparing if job not in chosen]
        return chosen

    def _end_lesson(self) -> None:
        self._steps = None
        self.finished += sum(job.done for job in self.learning)
        self._drop(self.learning)

    def _break_up(self, error: Exception) -> None:
        """After a failed lesson: those who are not answered try again, each alone."""
        self._steps = None
        jobs, self.learning = self.learning, []
        self.finished += sum(job.done for job in jobs)
        self._drop([job for job in jobs if job.done])
        left = [job for job in jobs if not job.done]
        if len(left) == 1:
            self._fail(left[0], failure("adapting", error))
            return
        _log.warning("a lesson of %d failed, trying each alone: %r", len(left), error)
        for job in left:
            job.alone = True
            job.step_losses.clear()
            job.gradient_norms.clear()
        self.preparing = left + self.preparing

    def _fail(self, job: Job, error: EngineError) -> None:
        job.done = True
        job.outbox.put(error)
        if isinstance(error, EngineFailed):
            self.failed += 1
        self._drop([job])

    def _drop(self, jobs: Sequence[Job]) -> None:
        """Forget jobs, wherever they are, and the prompts they hold."""
        for job in jobs:
            for prompt in job.prompts:
                self._prefills.release(prompt)
            job.prompts = []
        gone = set(map(id, jobs))
        self.waiting = deque(job for job in self.waiting if id(job) not in gone)
        self.preparing = [job for job in self.preparing if id(job) not in gone]
        self.learning = [job for job in self.learning if id(job) not in gone]


def _prompts_ready(job: Job) -> bool:
    return all(prompt.prefix is not None for prompt in job.prompts)


def _can_learn(job: Job) -> bool:
    return bool(job.examples) and _prompts_ready(job)
