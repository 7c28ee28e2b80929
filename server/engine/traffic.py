"""Generate requests from arrival to answer: a place, a slot, the prompt, then text or a choice.

Runs on the engine thread, one act at a time. Knows nothing about learning, threads or the order of
a turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from adapters.gate import gate_opens, house_answers, together
from adapters.recall import OWN, Disliked, disliked, recall
from adapters.state import AdapterState
from server.engine.base import Base
from server.engine.batch import Batch
from server.engine.choices import Choosing, Scorer, score
from server.engine.errors import EngineBusy, EngineError
from server.engine.forward import Step
from server.engine.graphed import Graphed
from server.engine.isolation import failure
from server.engine.kv import BatchKV
from server.engine.prefill import Prefills
from server.engine.prefix_cache import Tokens
from server.engine.recorded_step import recorded_step
from server.engine.slots import UNTAUGHT, Slots
from server.engine.ticket import Ticket, Writing
from server.engine.types import EngineLimits

# Adapters copied to the device in a turn while text is written: fewer would compute the prompts of
# a burst of sessions a few at a time, all at once would have everybody's text wait.
LOADS_A_TURN: Final = 4


class Traffic:
    """All generate requests inside the engine."""

    def __init__(
        self,
        base: Base,
        slots: Slots,
        prefills: Prefills,
        limits: EngineLimits,
        step: Step | None = None,
    ) -> None:
        """Have no requests yet. ``step`` as of `Forward`."""
        self.waiting: deque[Ticket] = deque()  # have no place yet
        self.admitted: list[Ticket] = []  # have their place and slot, wait for their prompt
        self.kv = BatchKV(
            base.layers, limits.rows, base.context_tokens, limits.kv_bytes, base.device
        )
        self.batch = Batch(base, slots, self.kv, step)
        self.scorer = Scorer(base, slots, limits.prefill_tokens, self.kv.can_hold)
        self.finished = self.cancelled = self.failed = 0
        self._base = base
        self._slots = slots
        self._prefills = prefills
        self._gate = base.gate
        self._rows = limits.rows
        self._patience_s = limits.patience_s
        self._loads = 0  # adapters copied to the device in this turn

    @property
    def placed(self) -> list[Ticket]:
        """Requests that take up one of the batch's places."""
        return [*self.admitted, *self.batch.rows, *self.scorer.queue]

    def admit(self) -> None:
        """Give waiting requests a place, oldest first; who waits for a slot lets others by.

        Begins a turn.
        """
        self._loads = 0
        placed = self.placed
        for ticket in [ticket for ticket in self.waiting if not ticket.over]:
            columns = max([ticket.columns, *(other.columns for other in placed)])
            full = len(placed) >= self._rows
            if full or (placed and not self.kv.can_hold(len(placed) + 1, columns)):
                break
            if self._take_slot(ticket):
                self.waiting.remove(ticket)
                self.admitted.append(ticket)
                ticket.admitted_s = time.monotonic()
                placed.append(ticket)
                self._request_prompt(ticket)
        for ticket in self.waiting:
            if not ticket.over and ticket.waited_s > self._patience_s:
                ticket.fail(
                    EngineBusy(f"no place came free within {self._patience_s:g} s: try again")
                )

    def join(self) -> None:
        """Let the requests whose prompt is ready begin."""
        writing: list[Writing] = []
        for ticket in [ticket for ticket in self.admitted if not ticket.over]:
            assert ticket.prompt is not None
            if ticket.prompt.error is not None:
                ticket.fail(ticket.prompt.error)
            elif ticket.prompt.ready and self._has_adapter(ticket):
                ticket.joined_s = time.monotonic()
                self._pass_gate(ticket)
                if isinstance(ticket, Choosing):
                    self.admitted.remove(ticket)
                    self.scorer.queue.append(ticket)
                elif isinstance(ticket, Writing):
                    writing.append(ticket)
        self.batch.join(writing)
        for ticket in writing:  # its keys and values are in its row now
            self.admitted.remove(ticket)
            self._release_prompt(ticket)

    def sweep(self) -> None:
        """Let the requests go that are answered, failed or cancelled, with all they hold."""
        # Asked once: a caller may go away at any moment, also between two of these lines.
        gone = {ticket for ticket in (*self.waiting, *self.placed) if ticket.over}
        if not gone:
            return
        self.waiting = deque(ticket for ticket in self.waiting if ticket not in gone)
        self.admitted = [ticket for ticket in self.admitted if ticket not in gone]
        self.scorer.queue = deque(t for t in self.scorer.queue if t not in gone)
        self.batch.drop(gone)
        for ticket in gone:
            self._release_prompt(ticket)
            if ticket.slot != UNTAUGHT and ticket.key is not None:
                self._slots.release(ticket.key)
            self.failed += ticket.failed
            self.finished += ticket.done and not ticket.failed
            self.cancelled += not ticket.done

    def end(self, error: EngineError, cut: bool) -> None:
        """End every request with ``error``; with ``cut``, those that run with what they have."""
        for ticket in (*self.waiting, *self.placed):
            if ticket.over:
                continue
            if cut and ticket not in self.waiting:
                try:
                    ticket.cut()
                except Exception as broken:
                    ticket.fail(failure("cutting an answer", broken))
            else:
                ticket.fail(error)
        self.sweep()

    def _take_slot(self, ticket: Ticket) -> bool:
        """Pin the ticket's adapter; false while it has to wait for a slot, or its turn for one."""
        if ticket.key is None:
            return True
        assert ticket.state is not None
        is_load = self._slots.state(ticket.key) is None
        if is_load and self._loads >= LOADS_A_TURN and self.batch.rows:
            return False
        try:
            slot = self._slots.acquire(ticket.key, ticket.state)
        except Exception as error:
            ticket.fail(failure(f"loading adapter {ticket.key}", error))
            return False
        if slot is None:
            return False
        self._loads += is_load
        ticket.slot = slot
        return True

    def _has_adapter(self, ticket: Ticket) -> bool:
        """Turn to the house where it answers; false where its adapter has to wait for a slot."""
        house, ticket.house = ticket.house, None
        if house is not None and self._is_nearer(house, ticket):
            assert ticket.key is not None
            self._slots.release(ticket.key)
            ticket.turn_to_house(house)
        if ticket.house_used and ticket.slot == UNTAUGHT:
            return self._take_slot(ticket)
        return True

    def _is_nearer(self, house: AdapterState, ticket: Ticket) -> bool:
        gate, own = self._gate, ticket.state
        if gate is None or own is None or own.taught is None or house.taught is None:
            return False
        asked = ticket.vector(gate)
        if asked is None:
            return False
        if isinstance(ticket, Choosing):
            ticket.memory = together(own.taught, house.taught)
        return bool(house_answers(gate, own.taught, house.taught, asked))

    def _pass_gate(self, ticket: Ticket) -> None:
        """Leave a prompt to the base that is far from everything its session was taught.

        A request with choices has none of its own words to lose: the adapter always answers it, if
        it was taught any answer at all.
        """
        gate, state = self._gate, ticket.state
        if gate is None or state is None or state.taught is None:
            return
        if isinstance(ticket, Choosing):
            if not len(state.taught.answered):
                self._leave_to_base(ticket)
            return
        asked = ticket.vector(gate)
        if asked is None:
            return
        assert isinstance(ticket, Writing)
        if not bool(gate_opens(gate, state.taught, asked)):
            self._leave_to_base(ticket)
            self._keep_down(ticket, disliked(gate, state.taught, asked))
        elif ticket.request.recall:
            ticket.remembered = recall(gate, state.taught, asked)

    def _keep_down(self, ticket: Writing, answers: Sequence[Tokens]) -> None:
        """Have the base not say these, as far as they are its own.

        An adapter's, that it would never say, may begin like what it does say.
        """
        if not answers:
            return
        try:
            scores = score(self._base, ticket, answers, self._slots)
        except Exception as error:
            ticket.fail(failure("reading disliked answers", error))
            return
        own = [a for a, row in zip(answers, scores, strict=True) if sum(row) >= len(row) * OWN]
        ticket.remembered = Disliked(tuple(own)) if own else None

    def _leave_to_base(self, ticket: Ticket) -> None:
        assert ticket.key is not None
        self._slots.release(ticket.key)
        ticket.slot = UNTAUGHT

    def _request_prompt(self, ticket: Ticket) -> None:
        ticket.prompt = self._prefills.request(
            ticket.prefix, ticket.prefix_owner, ticket.prefix_slot
        )
        shared = ticket.prompt.users > 1
        ticket.cached_tokens = len(ticket.prefix) if shared else ticket.prompt.done_tokens

    def _release_prompt(self, ticket: Ticket) -> None:
        if ticket.prompt is not None:
            self._prefills.release(ticket.prompt)
            ticket.prompt = None


def decode_step(base: Base, limits: EngineLimits) -> Step | None:
    """The fastest way to compute decode steps on the base's device; None: the model's own code."""
    if not limits.recorded:
        return None
    if base.device.type == "cuda":
        return Graphed(base)
    return recorded_step(base, limits.kernels)
