"""Episodes of a causal LM: prompts prefilled once by the base, answers learned by its adapters.

Knows a learner and a token batch; nothing about where tasks come from, algorithms or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from adapters.config import InnerRule
from adapters.inner_loop import support_losses
from adapters.layer import rows_of
from adapters.objective import demonstration_loss, divergence
from adapters.prefix import Prefix, continue_from, merge
from adapters.state import Tensors, repeat
from adapters.support import Anchors, Support, Turns, make_turns
from meta_training.algorithms.episodes import Cut, Embedded, Judged
from meta_training.learner import Learner, correct_rows, summaries_of
from meta_training.tasks.batches import Batch


@dataclass(frozen=True)
class LanguageEpisodes:
    """A batch whose prompts the base has prefilled, cut into its parts."""

    learner: Learner
    batch: Batch
    locality_weight: float  # of the KL on unrelated questions in the outer loss
    start: Tensors
    rule: InnerRule
    support: Support
    query: Turns
    unrelated: Turns | None  # None: every question there is was taught
    reference: Tensor | None  # (B, T, V) log-probabilities of these by the untaught model
    embeddings: Tensor  # (B, D), in the order of ``Batch.kinds``

    def support_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What a server's inner step goes down, (S,)."""
        learner, weight = self.learner, self.rule.anchor_weight
        return support_losses(learner.model, learner.hooks, tensors, self.support, weight)

    def query_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The same on the queries, (S,)."""
        sessions = self._numbers(self.batch.query_sessions)
        queries = Support(self.query, sessions, self.support.count, self.support.anchors)
        learner, weight = self.learner, self.rule.anchor_weight
        return support_losses(learner.model, learner.hooks, tensors, queries, weight)

    def judge(self, tensors: Mapping[str, Tensor] | None, support_too: bool = False) -> Judged:
        """Mean cross-entropy on taught questions in other words, and the weighted locality.

        Figures: ``query`` and ``locality``, the two; ``exact``, the share of queries answered
        exactly; ``changed``, that of unrelated questions whose greedy answer changed. Without
        unrelated questions there is no ``locality`` and no ``changed``.
        """
        batch = self.batch
        logits = self._run(tensors, self.query, self._numbers(batch.query_sessions))
        rows = demonstration_loss(logits, self.query.targets)
        query = rows.mean()
        if support_too:
            taught = self.support.wanted()
            seen = self._run(tensors, taught.turns, taught.sessions)
            query = (query + demonstration_loss(seen, taught.turns.targets).mean()) / 2
        figures = {"exact": float(correct_rows(logits, self.query.targets).float().mean())}
        loss = query
        if tensors is not None and self.unrelated is not None and self.reference is not None:
            others = self._run(tensors, self.unrelated, self._numbers(batch.unrelated_sessions))
            targets = self.unrelated.targets
            locality = divergence(others, self.reference, targets).mean()
            figures["changed"] = 1 - float(correct_rows(others, targets).float().mean())
            figures["locality"] = locality.item()
            loss = query + self.locality_weight * locality
        return Judged(loss, {"query": query.item(), **figures}, rows.detach())

    def embedded(self) -> list[Embedded]:
        """Each episode's summaries, with the questions' kinds as labels."""
        batch, found = self.batch, []
        own, kinds = len(batch.support_sessions), list(batch.kinds)
        for session in range(batch.count):
            rows = [row for row, s in enumerate(batch.support_sessions) if s == session]
            asked = [own + row for row, s in enumerate(batch.query_sessions) if s == session]
            names = sorted({kinds[row] for row in rows})
            number = {name: index for index, name in enumerate(names)}
            labels = self._numbers([number[kinds[row]] for row in rows])
            answers = self._numbers([number[kinds[row]] for row in asked])
            support = self.embeddings[self._numbers(rows)]
            queries = self.embeddings[self._numbers(asked)]
            found.append(Embedded(support, labels, queries, answers))
        return found

    def cut(self, cut: Cut) -> Self:
        """The same with leaves for the prompts' keys and values, and for the rule."""
        anchors = self.support.anchors
        if anchors is not None:
            anchors = Anchors(_cut_turns(anchors.turns, cut), anchors.reference)
        support = replace(self.support, turns=_cut_turns(self.support.turns, cut), anchors=anchors)
        return replace(
            self,
            rule=cut.rule(self.rule),
            support=support,
            query=_cut_turns(self.query, cut),
            unrelated=self.unrelated and _cut_turns(self.unrelated, cut),
        )

    def _numbers(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.learner.device)

    def _run(self, tensors: Mapping[str, Tensor] | None, turns: Turns, sessions: Tensor) -> Tensor:
        rows = None if tensors is None else rows_of(tensors, sessions, turns.active)
        with self.learner.hooks.use(rows):
            return continue_from(self.learner.model, turns.prefix, turns.ids)


def lay_out(learner: Learner, batch: Batch, locality_weight: float = 1.0) -> LanguageEpisodes:
    """Prefill every prompt of the batch once and lay out its parts."""
    support, query, unrelated, anchors = _prefill(learner, batch)
    scope, device = learner.spec.scope, learner.device
    others = make_turns(batch.unrelated, unrelated, scope, device) if batch.unrelated else None
    return LanguageEpisodes(
        learner=learner,
        batch=batch,
        locality_weight=locality_weight,
        start=repeat(learner.tensors(), batch.count),
        rule=learner.rule(),
        support=learner.support(batch.support, batch.support_sessions, support, anchors),
        query=make_turns(batch.query, query, scope, device),
        unrelated=others,
        reference=None if others is None else _untaught(learner, others),
        embeddings=torch.cat([summaries_of(part) for part in (support, query, unrelated)]),
    )


def _prefill(learner: Learner, batch: Batch) -> list[Prefix]:
    """The prompts of the support, the queries, the unrelated questions and the anchors."""
    alone = [] if batch.shown else batch.query
    parts = [batch.support, alone, batch.unrelated, learner.anchor_examples]
    prefix = learner.prefill([example.prompt for part in parts for example in part])
    sizes = [len(part) for part in parts]
    rows = torch.arange(sum(sizes), device=learner.device).split(sizes)
    found = [prefix.select(own) for own in rows]
    if batch.shown:
        asked: list[list[tuple[int, ...]]] = [[] for _ in range(batch.count)]
        for query, session in zip(batch.query, batch.query_sessions, strict=True):
            asked[session].append(query.prompt)
        found[1] = merge([learner.prefill_alike(own) for own in asked], learner.device)
    return found


@torch.no_grad()
def _untaught(learner: Learner, turns: Turns) -> Tensor:
    """(B, T, V) log-probabilities by the model without adapters."""
    with learner.hooks.use(None):
        return continue_from(learner.model, turns.prefix, turns.ids).log_softmax(-1)


def _cut_turns(turns: Turns, cut: Cut) -> Turns:
    prefix = turns.prefix
    layers = tuple((cut.leaf(keys), cut.leaf(values)) for keys, values in prefix.layers)
    return replace(turns, prefix=Prefix(layers, prefix.lengths, prefix.summaries))
