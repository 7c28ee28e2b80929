"""MAML: the outer loss of a batch of episodes, through the server's own inner step.

Exact and first-order (Finn et al. 2017, arXiv 1703.03400), with step sizes per tensor and step
(MAML++, Antoniou et al. 2019, arXiv 1810.09502); and the multi-task control, which takes no inner
steps. Knows a learner and a token batch; nothing about where tasks come from or optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.inner_loop import Support, Turns, adapt, make_turns
from adapters.layer import rows_of
from adapters.objective import demonstration_loss, divergence
from adapters.prefix import continue_from
from adapters.state import Tensors, repeat
from meta_training.contrast import contrastive_loss
from meta_training.learner import Learner, correct_rows, summaries_of
from meta_training.tasks.batches import Batch


@dataclass(frozen=True)
class OuterLosses:
    """What a batch of episodes costs; scalars that carry gradients, and figures to watch."""

    query: Tensor  # mean cross-entropy on taught questions in other words
    locality: Tensor  # mean KL per token on unrelated questions, from the untaught model
    prototype: Tensor  # supervised contrastive loss on the questions' kinds
    exact: float  # share of queries answered exactly
    changed: float  # share of unrelated questions whose greedy answer changed


@dataclass(frozen=True)
class Prepared:
    """A batch's prompts as the base prefilled them, cut into its parts."""

    support: Support
    query: Turns
    unrelated: Turns
    embeddings: Tensor  # (B, D), in the order of ``Batch.kinds``


def prepare(learner: Learner, batch: Batch) -> Prepared:
    """Prefill every prompt of the batch once and lay out its parts."""
    parts = [batch.support, batch.query, batch.unrelated, learner.anchor_examples]
    prefix = learner.prefill([example.prompt for part in parts for example in part])
    sizes = [len(part) for part in parts]
    support, query, unrelated, anchors = (
        prefix.select(rows) for rows in torch.arange(sum(sizes)).split(sizes)
    )
    scope, device = learner.spec.scope, prefix.lengths.device
    return Prepared(
        support=Support(
            make_turns(batch.support, support, scope, device),
            torch.tensor(batch.support_sessions),
            batch.count,
            learner.anchors(anchors),
        ),
        query=make_turns(batch.query, query, scope, device),
        unrelated=make_turns(batch.unrelated, unrelated, scope, device),
        embeddings=summaries_of(prefix)[: len(batch.kinds)],
    )


def outer_losses(
    learner: Learner, batch: Batch, steps: int, second_order: bool = True
) -> OuterLosses:
    """Adapt every episode's session on its support and judge it on its queries.

    ``steps`` 0 is the multi-task control: session_init itself is judged, on support and queries.
    """
    prepared = prepare(learner, batch)
    start = repeat(learner.tensors(), batch.count)
    adapted, _ = adapt(
        learner.model,
        learner.hooks,
        start,
        prepared.support,
        learner.rule(),
        steps,
        differentiable=True,
        second_order=second_order,
    )
    logits = _run(learner, adapted, prepared.query, batch.query_sessions)
    query = demonstration_loss(logits, prepared.query.targets).mean()
    if steps == 0:
        seen = _run(learner, adapted, prepared.support.turns, batch.support_sessions)
        query = (query + demonstration_loss(seen, prepared.support.turns.targets).mean()) / 2
    locality, changed = _locality(learner, adapted, prepared.unrelated, batch.unrelated_sessions)
    return OuterLosses(
        query=query,
        locality=locality,
        prototype=contrastive_loss(prepared.embeddings, batch.kinds),
        exact=float(correct_rows(logits, prepared.query.targets).float().mean()),
        changed=changed,
    )


def _run(learner: Learner, adapted: Tensors, turns: Turns, sessions: list[int]) -> Tensor:
    with learner.hooks.use(rows_of(adapted, torch.tensor(sessions), turns.active)):
        return continue_from(learner.model, turns.prefix, turns.ids)


def _locality(
    learner: Learner, adapted: Tensors, turns: Turns, sessions: list[int]
) -> tuple[Tensor, float]:
    with torch.no_grad(), learner.hooks.use(None):
        reference = continue_from(learner.model, turns.prefix, turns.ids).log_softmax(-1)
    logits = _run(learner, adapted, turns, sessions)
    changed = 1 - float(correct_rows(logits, turns.targets).float().mean())
    return divergence(logits, reference, turns.targets).mean(), changed
