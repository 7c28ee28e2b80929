"""What sessions learn from, as rows of tokens: feedback laid out for the inner step.

Knows tokens and prefilled prompts; nothing about how an adapter moves, or who owns a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adapters.config import SpecError
from adapters.lower import Entering
from adapters.objective import IGNORE, Role, row_weights
from adapters.prefix import Prefix, continue_from, empty_prefix, pad

UNWANTED = (Role.REJECTED, Role.DISLIKED)


@dataclass(frozen=True)
class Example:
    """One piece of feedback in tokens: the prompt, and the tokens from the activation point on.

    A demonstration or a correction has a completion to be said; a preference also what it was
    preferred to; a rating says how good the completion was.
    """

    prompt: tuple[int, ...]  # computed by the base alone
    header: tuple[int, ...]  # first tokens the adapter acts on; at least one
    completion: tuple[int, ...]  # taught tokens, the end token included
    rejected: tuple[int, ...] = ()  # the end token included; a preference's
    rating: int = 0  # 1 or -1; a rating's

    @property
    def tokens(self) -> int:
        """Tokens of its longest row, prompt included."""
        answer = max(len(self.completion), len(self.rejected))
        return len(self.prompt) + len(self.header) + answer

    @property
    def wanted(self) -> tuple[int, ...]:
        """What should be answered; nothing where all that is known is what should not."""
        return () if self.rating < 0 else self.completion

    def rows(self) -> list[tuple[Role, tuple[int, ...]]]:
        """The completions that it is learned from, each in its role."""
        if self.rejected:
            return [(Role.CHOSEN, self.completion), (Role.REJECTED, self.rejected)]
        if self.rating:
            return [(Role.LIKED if self.rating > 0 else Role.DISLIKED, self.completion)]
        return [(Role.TAUGHT, self.completion)]


@dataclass(frozen=True)
class Turns:
    """Turns in tokens, B rows, all going on from ``prefix``.

    ``ids``: (B, T) tokens after the prefix, right-padded.
    ``targets``: (B, T) the next token at each position, ``IGNORE`` where it is not taught.
    ``active``: (B, T) where an adapter acts, or None for everywhere.
    ``entering``: what the layers below the lowest learning one make of them, where it is known.
    """

    prefix: Prefix
    ids: Tensor
    targets: Tensor
    active: Tensor | None = None
    entering: Entering | None = None

    def logits(self, model: nn.Module) -> Tensor:
        """(B, T, V) of the model as it stands."""
        with nullcontext() if self.entering is None else self.entering.begun():
            return continue_from(model, self.prefix, self.ids)

    def rows(self, rows: slice) -> Turns:
        """The turns at ``rows``, in the same memory."""
        active = None if self.active is None else self.active[rows]
        entering = None if self.entering is None else self.entering.rows(rows)
        return Turns(self.prefix.rows(rows), self.ids[rows], self.targets[rows], active, entering)

    def select(self, rows: Tensor) -> Turns:
        """The turns at ``rows`` (B',), repeats allowed."""
        active = None if self.active is None else self.active.index_select(0, rows)
        return Turns(
            self.prefix.select(rows),
            self.ids.index_select(0, rows),
            self.targets.index_select(0, rows),
            active,
            None if self.entering is None else self.entering.rows(rows),
        )


@dataclass(frozen=True)
class Anchors:
    """Unrelated turns and the untaught model's log-probabilities, ``reference`` (A, T, V)."""

    turns: Turns
    reference: Tensor


@dataclass(frozen=True)
class Support:
    """What S sessions learn from.

    ``sessions``: (B,) the session each turn belongs to, 0..S-1; sessions may differ in examples.
    ``row_weights``: (B,) each turn's in its session's loss; None is one over the session's turns.
    ``roles``: of the B turns; None where all are taught. Then nothing needs the ``reference``, (B,)
    log-probability of each completion under the untaught model.
    """

    turns: Turns
    sessions: Tensor
    count: int  # S
    anchors: Anchors | None = None
    row_weights: Tensor | None = None
    roles: tuple[Role, ...] | None = None
    reference: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """(B,) each turn's in its session's loss."""
        if self.row_weights is not None:
            return self.row_weights
        return 1.0 / torch.bincount(self.sessions, minlength=self.count)[self.sessions]

    def rows(self, rows: slice) -> Support:
        """The turns at ``rows``, weighing what they weigh in the whole; no anchors."""
        return Support(
            self.turns.rows(rows),
            self.sessions[rows],
            self.count,
            None,
            self.weights[rows],
            None if self.roles is None else self.roles[rows],
            None if self.reference is None else self.reference[rows],
        )

    def only(self, rows: Tensor) -> Support:
        """The turns at ``rows`` (B',) as all there is to learn from, beside the anchors.

        At least one of every session, and of a preference both or none.
        """
        sessions, places = self.sessions[rows], rows.tolist()
        own = Support(self.turns.select(rows), sessions, self.count, self.anchors)
        if self.roles is None:
            return own
        roles = tuple(self.roles[place] for place in places)
        reference = None if self.reference is None else self.reference[rows]
        weights = row_weights(roles, sessions, self.count)
        return replace(own, row_weights=weights, roles=roles, reference=reference)

    def wanted(self) -> Support:
        """The turns whose completion should be said, weighing alike."""
        if self.roles is None:
            return self
        said = [row for row, role in enumerate(self.roles) if role not in UNWANTED]
        rows = torch.tensor(said, device=self.sessions.device)
        return Support(self.turns.select(rows), self.sessions[rows], self.count, self.anchors)

    def parts(self, tokens: Callable[[], int]) -> Iterator[Support]:
        """The same in parts whose losses, and gradients, add up to the whole's.

        Args:
            tokens: asked before each part for the most padded tokens it may have, prompts not
                counted; one example is always taken, and the anchors, if any, all at once.
        """
        rows, width = self.turns.ids.shape
        begin = 0
        while begin < rows:
            end = min(rows, begin + max(1, tokens() // width))
            if self.roles is not None and self.roles[end - 1] is Role.CHOSEN:
                end += 1  # what it was preferred to
            whole = end - begin == rows  # itself, with what was computed for it before
            yield replace(self, anchors=None) if whole else self.rows(slice(begin, end))
            begin = end
        if self.anchors is not None:
            yield replace(self.rows(slice(0, 0)), anchors=self.anchors)


def make_turns(
    examples: Sequence[Example], prefix: Prefix | None, scope: str, device: torch.device
) -> Turns:
    """Lay examples out as rows.

    Args:
        examples: B demonstrations.
        prefix: their prompts as the base prefilled them, B rows; not used in scope ``full``,
            where the adapter acts on the prompt too and the prompt is part of the rows.

    Raises:
        SpecError: an example has no header, or scope ``activated`` got no prefix.
    """
    if scope == "full":
        heads = [example.prompt + example.header for example in examples]
        prefix = empty_prefix(len(examples), device)
    else:
        heads = [example.header for example in examples]
    if prefix is None:
        raise SpecError("scope 'activated' needs the prefilled prompts")
    if not all(heads):
        raise SpecError("every example needs at least one token before its completion")
    ids, targets = [], []
    for head, example in zip(heads, examples, strict=True):
        ids.append((head + example.completion)[:-1])
        targets.append([IGNORE] * (len(head) - 1) + list(example.completion))
    return Turns(prefix, pad(ids, 0, device), pad(targets, IGNORE, device))


def make_support(
    examples: Sequence[Sequence[Example]],
    prefix: Prefix | None,
    scope: str,
    device: torch.device,
    anchors: Anchors | None = None,
) -> Support:
    """Lay out what S sessions learn from.

    Args:
        examples: of each session, at least one each.
        prefix: as of ``make_turns``, one row an example.

    Raises:
        SpecError: as of ``make_turns``.
    """
    flat = [example for own in examples for example in own]
    rows = [(index, *row) for index, example in enumerate(flat) for row in example.rows()]
    if prefix is not None and len(rows) > len(flat):
        prefix = prefix.select(torch.tensor([index for index, *_ in rows], device=device))
    laid = [Example(flat[i].prompt, flat[i].header, completion) for i, _, completion in rows]
    owners = [session for session, own in enumerate(examples) for _ in own]
    sessions = torch.tensor([owners[index] for index, *_ in rows], device=device)
    support = Support(make_turns(laid, prefix, scope, device), sessions, len(examples), anchors)
    roles = tuple(role for _, role, _ in rows)
    if all(role is Role.TAUGHT for role in roles):
        return support
    weights = row_weights(roles, sessions, len(examples))
    return replace(support, row_weights=weights, roles=roles)
