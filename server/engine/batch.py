"""The sequences being decoded together: they join and leave between steps, each with its own slot.

Rows 0 to B - 1 of the KV are in use without gaps. Knows the model, the KV and the slots; knows
nothing about queues, or where a prompt's keys and values come from.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial

import torch
from torch import Tensor

from server.engine.base import Base
from server.engine.errors import EngineFailed
from server.engine.forward import Forward, Step
from server.engine.isolation import failure, run_together
from server.engine.kv import BatchKV
from server.engine.sampling import choose
from server.engine.slots import Slots
from server.engine.ticket import Ticket, Writing


class Batch:
    """Sequences in the rows of one KV."""

    def __init__(self, base: Base, slots: Slots, kv: BatchKV, step: Step | None = None) -> None:
        """Hold no sequences yet. ``step`` as of `Forward`."""
        self.rows: list[Writing] = []
        self.generated_tokens = 0
        self._end_ids = base.end_ids
        self._slots = slots
        self._kv = kv
        self._forward = Forward(base, kv, step)

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, tickets: Sequence[Writing]) -> None:
        """Take in sequences whose prompts are ready, and give each its first token."""
        if not tickets:
            return
        rows = [*self.rows, *tickets]
        self._kv.hold(len(rows), max(ticket.columns for ticket in rows))
        first = len(self.rows)
        for row, ticket in enumerate(tickets, start=first):
            self._kv.load(row, ticket.ready_prefix)
        self.rows = rows
        self._run(tickets)

    def step(self) -> None:
        """Give every sequence its next token, in one forward pass."""
        if self.rows:
            self._run(self.rows)

    def drop(self, gone: Container[Ticket]) -> None:
        """Take out the sequences in ``gone``, closing the gaps with the last rows."""
        for row in range(len(self.rows) - 1, -1, -1):
            if self.rows[row] not in gone:
                continue
            failed, last = self.rows[row].failed, self.rows.pop()
            if failed:
                self._kv.blank(row)
            if row < len(self.rows):
                self._kv.move(len(self.rows), row, last.kept_tokens)
                self.rows[row] = last
        if not self.rows:
            self._kv.clear()

    def _run(self, tickets: Sequence[Writing]) -> None:
        first = {id(ticket): row for row, ticket in enumerate(self.rows)}
        run_together(
            tickets,
            lambda together: self._advance(first[id(together[0])], together),
            lambda ticket, error: ticket.fail(failure("decoding", error)),
        )

    @torch.no_grad()
    def _advance(self, first: int, tickets: Sequence[Writing]) -> None:
        logits = self._forward(
            first,
            [ticket.feed for ticket in tickets],
            [ticket.start for ticket in tickets],
            self._slots.rows([ticket.slot for ticket in tickets]),
        )
        if any(ticket.remembered for ticket in tickets):
            logits = logits.float()
            for row, ticket in zip(logits, tickets, strict=True):
                if ticket.remembered is not None:
                    ticket.remembered.mix(row, ticket.said)
        barred = {row: self._end_ids for row, t in enumerate(tickets) if t.too_short}
        allowed = _masks(tickets)
        chosen = choose(
            logits, [t.sampling for t in tickets], [t.dice for t in tickets], barred, allowed
        )
        for ticket, token in zip(tickets, chosen, strict=True):
            if not ticket.failed:  # its grammar
                self._accept(ticket, partial(ticket.accept, token))
        self.generated_tokens += len(tickets)

    def _accept(self, ticket: Writing, accept: Callable[[], None]) -> None:
        try:
            accept()
        except EngineFailed as error:
            ticket.fail(error)
        except Exception as error:
            ticket.fail(failure("making text of a token", error))


def _masks(tickets: Sequence[Writing]) -> dict[int, Tensor]:
    """By row, (V,) which tokens may come; none for a row whose grammar fails, and its ticket."""
    masks: dict[int, Tensor] = {}
    for row, ticket in enumerate(tickets):
        if ticket.grammar is not None and not ticket.failed:
            try:
                masks[row] = ticket.grammar.allowed()
            except EngineFailed as error:
                ticket.fail(error)
    return masks
