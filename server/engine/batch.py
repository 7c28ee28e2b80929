"""The sequences being decoded together: they join and leave between steps, each with its own slot.

Rows 0 to B - 1 of the KV are in use without gaps. Knows the model, the KV and the slots; knows
nothing about queues, or where a prompt's keys and values come from.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial

import torch
from torch import Tensor

from adapters.prefix import pad
from server.engine.base import Base
from server.engine.errors import EngineFailed
from server.engine.isolation import failure, run_together
from server.engine.kv import BatchKV, causal_masks
from server.engine.sampling import choose
from server.engine.slots import Slots
from server.engine.ticket import Ticket, Writing


class Batch:
    """Sequences in the rows of one KV."""

    def __init__(self, base: Base, slots: Slots, kv: BatchKV) -> None:
        """Hold no sequences yet."""
        self.rows: list[Writing] = []
        self.generated_tokens = 0
        self._base = base
        self._slots = slots
        self._kv = kv

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
            last = self.rows.pop()
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

    @torch.no_grad()  # not inference_mode: models keep tensors of a pass that learning needs later
    def _advance(self, first: int, tickets: Sequence[Writing]) -> None:
        logits = self._forward(first, tickets)
        barred = {row: self._base.end_ids for row, t in enumerate(tickets) if t.too_short}
        chosen = choose(logits, [t.sampling for t in tickets], [t.dice for t in tickets], barred)
        for ticket, token in zip(tickets, chosen, strict=True):
            self._accept(ticket, partial(ticket.accept, token))
        self.generated_tokens += len(tickets)

    def _accept(self, ticket: Writing, accept: Callable[[], None]) -> None:
        try:
            accept()
        except EngineFailed as error:
            ticket.fail(error)
        except Exception as error:
            ticket.fail(failure("making text of a token", error))

    def _forward(self, first: int, tickets: Sequence[Writing]) -> Tensor:
        """Logits (B, V) after each row's new tokens; rows ``first`` to ``first + B``."""
        base, feeds = self._base, [ticket.feed for ticket in tickets]
        ids = pad(feeds, 0, base.device)  # (B, T)
        cache, window = self._kv.window(first, [t.start for t in tickets], ids.shape[1])
        lasts = [len(feed) - 1 for feed in feeds]
        keep = sorted(set(lasts))  # positions whose logits somebody needs; nearly always one
        with base.hooks.use(self._slots.rows([ticket.slot for ticket in tickets])):
            output = base.model(
                input_ids=ids,
                position_ids=window.positions,
                attention_mask=causal_masks(window, base.windows, base.dtype),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.tensor(keep, device=base.device),
            )
        logits: Tensor = output.logits  # (B, len(keep), V)
        if len(keep) == 1:
            return logits[:, 0]
        places = torch.tensor([keep.index(last) for last in lasts], device=base.device)
        return logits[torch.arange(len(feeds), device=base.device), places]
