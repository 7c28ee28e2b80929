"""What the outer loop learns: the base, session_init, the step sizes and the anchors' weight.

Knows the adapters package and a transformers model; knows nothing about tasks or schedules.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from adapters.chat import ChatEncoder, user_turn
from adapters.config import Anchor, InnerRule, LoraSpec
from adapters.inner_loop import Anchors, Example, make_turns
from adapters.layer import LoraHooks
from adapters.objective import IGNORE
from adapters.prefix import Prefix, continue_from, pad
from adapters.state import Tensors, initial_tensors
from meta_training.recipe import InnerPart


class Learner(nn.Module):
    """A base model with its meta-learned adapter start and inner rule, as parameters."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: ChatEncoder,
        part: InnerPart,
        anchors: Sequence[Anchor],
        seed: int,
    ) -> None:
        """Start from LoRA's usual initialisation and one step size for all tensors."""
        super().__init__()
        self.model = model
        self.encoder = encoder
        self.part = part
        self.spec = LoraSpec(part.rank, tuple(part.targets), scope=part.scope)
        self.hooks = LoraHooks(model, self.spec)
        start = initial_tensors(model, self.spec, torch.Generator().manual_seed(seed))
        self.names = list(start)
        self.adapter = nn.ParameterList([nn.Parameter(start[name]) for name in self.names])
        first = torch.full((len(self.names), part.steps), part.first_step_size)
        self.log_sizes = nn.Parameter(first.log())  # (tensors, K)
        self.log_anchor_weight = nn.Parameter(torch.tensor(part.anchor_weight).log())
        self.anchor_texts = tuple(anchors)
        self.anchor_examples = [anchor_example(encoder, anchor) for anchor in anchors]

    def tensors(self) -> Tensors:
        """The current session_init."""
        return dict(zip(self.names, self.adapter, strict=True))

    def rule(self) -> InnerRule:
        """The current inner rule; differentiable with respect to the learned sizes."""
        sizes = dict(zip(self.names, self.log_sizes.exp(), strict=True))
        weight: Tensor | float = self.log_anchor_weight.exp() if self.anchor_texts else 0.0
        return InnerRule(self.part.steps, sizes, self.part.clip, weight, self.anchor_texts)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Prefix, Tensor]:
        """Prefill B prompts with gradients.

        Returns:
            Their keys and values, and (B, D) what the last layer sees at each prompt's last token.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        cache = DynamicCache()
        output = self.model(
            input_ids=pad(prompts, 0, lengths.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=True,
        )
        hidden = output.hidden_states[-2]  # (B, P, D)
        prefix = Prefix(tuple((layer.keys, layer.values) for layer in cache.layers), lengths)
        return prefix, hidden[torch.arange(len(prompts)), lengths - 1]

    def anchors(self, prefix: Prefix) -> Anchors | None:
        """The anchors with what the untaught model says to them; ``prefix`` holds their prompts."""
        if not self.anchor_examples:
            return None
        turns = make_turns(self.anchor_examples, prefix, self.spec.scope, prefix.lengths.device)
        with torch.no_grad(), self.hooks.use(None):
            reference = continue_from(self.model, turns.prefix, turns.ids).log_softmax(-1)
        return Anchors(turns, reference)

    @torch.no_grad()
    def greedy(self, prompts: Sequence[Example], max_tokens: int) -> list[tuple[int, ...]]:
        """What the untaught model answers, at most ``max_tokens`` tokens, end token included."""
        self.model.eval()
        prefix, _ = self.prefill([example.prompt for example in prompts])
        answers: list[list[int]] = [[] for _ in prompts]
        alive = list(range(len(prompts)))
        with self.hooks.use(None):
            while alive and len(answers[alive[0]]) < max_tokens:
                rows = torch.tensor(alive)
                ids = pad([[*prompts[i].header, *answers[i]] for i in alive], 0, rows.device)
                logits = continue_from(self.model, prefix.select(rows), ids)[:, -1]
                for i, token in zip(alive, logits.argmax(-1).tolist(), strict=True):
                    answers[i].append(token)
                alive = [i for i in alive if answers[i][-1] != self.encoder.end_id]
        return [tuple(answer) for answer in answers]


def anchor_example(encoder: ChatEncoder, anchor: Anchor) -> Example:
    """An anchor in tokens."""
    return encoder.example(user_turn(anchor.prompt), anchor.completion)


def correct_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) true where the greedy token equals the target at every position.

    Under teacher forcing this holds exactly when greedy decoding reproduces the targets.
    """
    return ((logits.argmax(-1) == targets) | (targets == IGNORE)).all(1)
