"""What the outer loop learns: the base, session_init, the step sizes and the anchors' weight.

Knows the adapters package and a transformers model; knows nothing about tasks or schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters.artifact import Artifact
from adapters.chat import ChatEncoder, user_turn
from adapters.config import Anchor, Gate, InnerRule, LoraSpec
from adapters.inner_loop import reference_logprobs
from adapters.layer import LoraHooks, Rows
from adapters.objective import IGNORE
from adapters.prefix import Continuation, Prefix, continue_from, prefill
from adapters.state import initial_tensors
from adapters.support import Anchors, Example, Support, make_support, make_turns
from meta_training.recipe_parts import InnerPart
from meta_training.starting import Starting


class Learner(Starting):
    """A base model with its meta-learned adapter start and inner rule, as parameters."""

    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: ChatEncoder,
        part: InnerPart,
        anchors: Sequence[Anchor],
        seed: int,
        still: frozenset[str] | None = None,
        alpha: float | None = None,
    ) -> None:
        """Start from LoRA's usual initialisation and one step size for all tensors.

        ``still``: tensors that do not move, where it is not ``part`` that says so. ``alpha`` is
        the adapter's, as of ``LoraSpec``.
        """
        super().__init__()
        self.model = model
        self.encoder = encoder
        self.spec = LoraSpec(part.rank, tuple(part.targets), alpha, part.scope)
        self.hooks = LoraHooks(model, self.spec)
        start = initial_tensors(model, self.spec, torch.Generator().manual_seed(seed))
        self.gate: Gate | None = None  # chosen when the outer loop is done
        # The last layer sees it, so an adapter there can act on it.
        self.summary_layer = int(model.config.num_hidden_layers) - 1
        self.begin(start, part, still)
        self.log_anchor_weight = nn.Parameter(
            torch.tensor(part.anchor_weight, device=self.device).log()
        )
        self.anchor_texts = tuple(anchors)
        self.anchor_examples = [anchor_example(encoder, anchor) for anchor in anchors]

    @classmethod
    def from_artifact(cls, artifact: Artifact, model: PreTrainedModel | None = None) -> Learner:
        """The learner whose export the artifact is; ``model`` may stand in for its base."""
        rule, spec = artifact.rule, artifact.spec
        part = InnerPart(
            rank=spec.rank,
            targets=list(spec.targets),
            scope=spec.scope,
            steps=rule.steps,
            clip=rule.clip,
            anchors=len(rule.anchors),
            sizes="tensor" if rule.factors is None else "element",
        )
        encoder = ChatEncoder(artifact.tokenizer)
        base = artifact.model if model is None else model
        learner = cls(base, encoder, part, rule.anchors, 0, rule.still, spec.alpha)
        learner.gate = rule.gate
        with torch.no_grad():
            for parameter, name in zip(learner.adapter, learner.names, strict=True):
                parameter.copy_(artifact.session_init[name])
            learner.log_anchor_weight.copy_(torch.as_tensor(rule.anchor_weight).log())
        learner.take_sizes(rule)
        return learner

    def rule(self) -> InnerRule:
        """The current inner rule; differentiable with respect to the learned sizes."""
        weight: Tensor | float = self.log_anchor_weight.exp() if self.anchor_texts else 0.0
        return self.inner_rule(weight, self.anchor_texts, self.gate)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Prefix:
        """Prefill B prompts with gradients, their summaries with them."""
        return prefill(self.model, prompts, self.device, self.summary_layer)

    def prefill_alike(self, prompts: Sequence[Sequence[int]]) -> Prefix:
        """As ``prefill``, computing once what all the prompts begin with."""
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        if not shared:
            return self.prefill(prompts)
        history = self.prefill([prompts[0][:shared]])
        rows = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        rest = [prompt[shared:] for prompt in prompts]
        return prefill(
            self.model, rest, self.device, self.summary_layer, begun=history.select(rows)
        )

    def summaries(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(B, D) what the last layer sees at each prompt's last token, with gradients."""
        return summaries_of(self.prefill(prompts))

    def anchors(self, prefix: Prefix) -> Anchors | None:
        """The anchors with what the untaught model says to them; ``prefix`` holds their prompts."""
        if not self.anchor_examples:
            return None
        turns = make_turns(self.anchor_examples, prefix, self.spec.scope, prefix.lengths.device)
        with torch.no_grad(), self.hooks.use(None):
            reference = continue_from(self.model, turns.prefix, turns.ids).log_softmax(-1)
        return Anchors(turns, reference)

    def support(
        self,
        examples: Sequence[Example],
        sessions: Sequence[int],
        prefix: Prefix,
        anchors: Prefix | None,
    ) -> Support:
        """What sessions learn from, in the order of ``sessions``, which count from 0 upwards.

        ``prefix`` holds the examples' prompts, ``anchors`` those of the anchors, if any.
        """
        own: list[list[Example]] = [[] for _ in range(max(sessions) + 1)]
        for example, session in zip(examples, sessions, strict=True):
            own[session].append(example)
        kept = None if anchors is None else self.anchors(anchors)
        support = make_support(own, prefix, self.spec.scope, prefix.lengths.device, kept)
        if support.roles is None:
            return support
        reference = reference_logprobs(self.model, self.hooks, support)
        return replace(support, reference=reference)

    @torch.no_grad()
    def greedy(
        self, prompts: Sequence[Example], max_tokens: int, rows: Rows | None = None
    ) -> list[tuple[int, ...]]:
        """Greedy answers of at most ``max_tokens`` tokens, end token included.

        ``rows`` says which adapters answer; None is the untaught model.
        """
        prefix = self.prefill([example.prompt for example in prompts])
        answers: list[list[int]] = [[] for _ in prompts]
        end = self.encoder.end_id
        rest = Continuation(self.model, prefix)
        ids = torch.tensor([example.header for example in prompts], device=prefix.lengths.device)
        with self.hooks.use(rows):
            for _ in range(max_tokens):
                ids = rest.extend(ids)[:, -1].argmax(-1, keepdim=True)  # (B, 1)
                for answer, token in zip(answers, ids[:, 0].tolist(), strict=True):
                    answer.append(token)
                if all(end in answer for answer in answers):
                    break
        return [_until(answer, end) for answer in answers]


def _until(answer: list[int], end: int | None) -> tuple[int, ...]:
    return tuple(answer[: answer.index(end) + 1] if end in answer else answer)


def summaries_of(prefix: Prefix) -> Tensor:
    """(B, D) the summaries of a prefix that a learner made."""
    assert prefix.summaries is not None
    return prefix.summaries


def anchor_example(encoder: ChatEncoder, anchor: Anchor) -> Example:
    """An anchor in tokens."""
    return encoder.example(user_turn(anchor.prompt), anchor.completion)


def correct_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) true where the greedy token equals the target at every position.

    Under teacher forcing this holds exactly when greedy decoding reproduces the targets.
    """
    return ((logits.argmax(-1) == targets) | (targets == IGNORE)).all(1)
