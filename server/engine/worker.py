"""The engine thread: the one owner of model and device, and the order in which work runs.

One turn takes in what arrived and computes a bounded piece of prompts, one decode step, and learns
for a share of that time, so that nobody waits for anybody's whole. Knows nothing about event loops,
HTTP, or where adapters are kept.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakSet

import torch
from torch import nn

from adapters.state import target_modules
from server.engine.base import Base
from server.engine.course import Course
from server.engine.errors import EngineBusy, EngineError, EngineStopped
from server.engine.host_adapters import HostAdapters
from server.engine.isolation import failure
from server.engine.job import Job
from server.engine.learner import Learner
from server.engine.looks import Look, Looks
from server.engine.outbox import Mail, Outbox
from server.engine.pace import Pace
from server.engine.prefill import Prefills
from server.engine.prefix_cache import PrefixCache
from server.engine.recorded_prefill import recorded_prefill
from server.engine.slices import PausePoints, Sliced
from server.engine.slots import Slots
from server.engine.status import EngineStatus, Rate
from server.engine.ticket import Ticket
from server.engine.traffic import Traffic, decode_step
from server.engine.types import EngineLimits

_log = logging.getLogger(__name__)
_DEAD: Final = "the engine has died, see the server's log: restart the server"


class Worker:
    """Everything that runs on the engine thread, and the door to it."""

    def __init__(self, base: Base, course: Course, limits: EngineLimits) -> None:
        """Make the parts; nothing runs before ``start``."""
        self.mail = Mail()
        step = decode_step(base, limits)
        add = None if step is None else step.add
        self.slots = Slots(course.session_init, limits.slots, base.device, add)
        self._limits = limits
        self._device = base.device
        self._cache = PrefixCache(
            base.layers,
            0 if base.gate is None else base.width,
            limits.prefix_cache_bytes,
            base.device,
        )
        recorded = limits.recorded and base.device.type == "cpu"
        compute = recorded_prefill(base) if recorded else None
        self._prefills = Prefills(base, self.slots, self._cache, limits.prefill_tokens, compute)
        self._traffic = Traffic(base, self.slots, self._prefills, limits, step)
        self._looks = Looks(base, self._prefills, limits)
        self._threads = limits.threads or _cores()
        self._sliced = Sliced(self._threads)
        self._points = PausePoints(_pausing_modules(base), self._sliced.pause)
        self._learner = Learner(
            base, course, self._prefills, limits, self._sliced, lambda: self._others_wait
        )
        self._pace = Pace(limits.learn_share)
        self._rate = Rate()
        self._door = threading.Condition()
        self._inbox: list[Ticket | Job | Look] = []
        self._asked: WeakSet[Outbox[Any]] = WeakSet()  # of all that somebody may wait for
        self._closed = True  # until start
        self._dead = False
        self._failed = 0  # requests and jobs that did, when last something was sent
        self._deadline_s = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread and open the door. Once."""
        self._closed = False
        self._thread = threading.Thread(target=self._main, name="innerloop-engine", daemon=True)
        self._thread.start()

    def close(self, drain_s: float) -> threading.Thread | None:
        """Take nothing in any more; what is inside has ``drain_s`` seconds to finish.

        Returns:
            The thread to wait for; None when it never started.
        """
        with self._door:
            self._closed = True
            self._deadline_s = time.monotonic() + drain_s
            self._door.notify()
        return self._thread

    def check_open(self) -> None:
        """Ask whether ``submit`` would refuse now. Safe from every thread.

        Raises:
            EngineStopped, EngineBusy: as ``submit``.
        """
        if self._dead:
            raise EngineStopped(_DEAD)
        if self._closed:
            raise EngineStopped("the engine is not started, or stopping: try again later")
        waiting = len(self._inbox) + len(self._traffic.waiting) + len(self._learner.waiting)
        waiting += len(self._looks.waiting)
        if waiting >= self._limits.queue:
            raise EngineBusy(f"{waiting} requests are waiting already: try again")

    def fits(self, columns: int) -> bool:
        """Whether the KV memory has room for a sequence of ``columns`` tokens at all."""
        return self._traffic.kv.can_hold(1, columns)

    def kv_bytes_of(self, columns: int) -> int:
        """KV memory that a sequence of ``columns`` tokens takes alone."""
        return self._traffic.kv.bytes_of(1, columns)

    def detach(self) -> None:
        """Take the places where lessons pause off the model. Once the thread is over."""
        self._points.remove()

    def submit(self, work: Ticket | Job | Look) -> None:
        """Hand work to the thread; answers come through its outbox. Safe from every thread.

        Raises:
            EngineStopped: the engine is not started, stopping or stopped.
            EngineBusy: the queue is full.
        """
        with self._door:
            self.check_open()
            self._inbox.append(work)
            self._asked.add(work.outbox)
            self._door.notify()

    def status(self, host: HostAdapters) -> EngineStatus:
        """What is going on now, beside what the host's memory holds. Safe from every thread."""
        traffic, learner, cache = self._traffic, self._learner, self._cache
        return EngineStatus(
            running=self._thread is not None and self._thread.is_alive() and not self._closed,
            waiting=len(self._inbox) + len(traffic.waiting),
            prefilling=len(self._prefills),
            decoding=len(traffic.batch),
            choosing=len(traffic.scorer.queue),
            rows=self._limits.rows,
            kv_bytes=traffic.kv.used_bytes,
            slots=self.slots.count,
            slots_resident=len(self.slots),
            slots_pinned=self.slots.pinned,
            host_adapters=len(host),
            host_adapter_bytes=host.used_bytes,
            adapter_hits=host.found,
            adapter_misses=host.missed,
            adapts_waiting=len(learner.waiting) + len(learner.preparing),
            adapts_learning=len(learner.learning),
            prefix_cache_blocks=len(cache),
            prefix_cache_bytes=cache.used_bytes,
            prefix_cache_limit_bytes=cache.budget_bytes,
            prefix_cache_hit_tokens=cache.hit_tokens,
            prefix_cache_miss_tokens=cache.miss_tokens,
            tokens_per_s=self._rate.per_s(traffic.batch.generated_tokens),
            generated_tokens=traffic.batch.generated_tokens,
            prefilled_tokens=self._prefills.computed_tokens,
            requests_finished=traffic.finished,
            requests_cancelled=traffic.cancelled,
            requests_failed=traffic.failed,
            adapts_finished=learner.finished,
            adapts_failed=learner.failed,
        )

    def _main(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP keeps the number per calling thread
        try:
            while self._receive():
                self._turn_or_end()
            self._end(EngineStopped("the engine stopped before this was done: try again"), cut=True)
            self._sliced.close()
        except BaseException as error:
            self._die(error)

    def _turn_or_end(self) -> None:
        """A turn. Where it fails, nobody in particular is to blame: all that is inside ends."""
        try:
            self._turn()
        except Exception as error:
            failure("a turn of the engine", error)
            _ask(self._device)
            self._end(EngineStopped("the engine failed and begins anew: try again"), cut=False)

    def _die(self, error: BaseException) -> None:
        """Turn everybody away for good: what the memory holds cannot be trusted any more."""
        _log.critical("the engine is dead: restart the server", exc_info=error)
        with self._door:
            self._closed = self._dead = True
            asked = list(self._asked)
        self.mail.discard()
        for outbox in asked:
            outbox.put(EngineStopped(_DEAD))
        self.mail.send()

    def _turn(self) -> None:
        self._traffic.admit()
        self._looks.begin()
        self._learner.prepare()
        with self._pace.serving():
            self._prefills.step()
            self._looks.finish()
            self._traffic.batch.step()
            self._send()  # before anything else takes its time
            self._traffic.join()
            self._traffic.scorer.step()
        self._rate.mark(self._traffic.batch.generated_tokens)
        self._send()
        self._learn()
        self._traffic.sweep()
        self._send()

    def _send(self) -> None:
        """Hand over what there is to say, but no failure that is the device's own."""
        failed = self._traffic.failed + self._learner.failed
        if failed != self._failed:
            _ask(self._device)
        self._failed = failed
        self.mail.send()

    def _receive(self) -> bool:
        """Take in what arrived, waiting where there is nothing to do; false when all is over."""
        with self._door:
            if self._idle:
                self._door.wait_for(lambda: self._inbox or self._closed)
            arrived, self._inbox = self._inbox, []
            for work in arrived:
                if isinstance(work, Job):
                    self._learner.waiting.append(work)
                elif isinstance(work, Look):
                    self._looks.waiting.append(work)
                else:
                    self._traffic.waiting.append(work)
            over = self._idle or time.monotonic() > self._deadline_s
            return not (self._closed and over)

    def _learn(self) -> None:
        if not self._others_wait:
            self._learner.step(lambda: bool(self._inbox))
        elif self._pace.learning_is_due:
            with self._pace.learning() as over:
                while self._learner.ready and not over():
                    self._learner.step(over)

    def _end(self, error: EngineError, cut: bool) -> None:
        """End all work that is inside; the thread can go on with new work afterwards."""
        self._traffic.end(error, cut)
        self._looks.cancel(error)
        self._learner.cancel(error)
        self.mail.send()

    @property
    def _others_wait(self) -> bool:
        return bool(self._traffic.placed or self._traffic.waiting or self._looks.waiting)

    @property
    def _idle(self) -> bool:
        return not self._others_wait and self._learner.idle


def _ask(device: torch.device) -> None:
    """Have the device compute something. An error of its own stays: it raises here as well."""
    torch.ones(1, device=device).add(1).item()


def _pausing_modules(base: Base) -> Iterator[nn.Module]:
    """The linear layers that take most of a pass's time: those that are adapted, and the head."""
    yield from target_modules(base.model, base.spec.targets).values()
    head = base.model.get_output_embeddings()
    if head is not None:
        yield head


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
