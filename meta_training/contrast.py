"""Questions that want the same answer move together, all others apart: the loss and its batches.

Knows intents, prompts and a base model; knows nothing about stages, episodes or adapters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.prefix import pad
from meta_training.recipe_parts import EmbedPart
from meta_training.tasks.episodes import kind_of
from meta_training.tasks.sources import DataError, Intent

MEAN_LAYERS = (0, 1)  # whose states, averaged over a prompt, tell questions apart by their words


def contrastive_loss(embeddings: Tensor, kinds: list[str], temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, eq. 2), (B, D) -> ().

    Questions of one kind attract, others repel; rows without a partner only repel. 0 where no row
    has one.
    """
    names = {kind: index for index, kind in enumerate(dict.fromkeys(kinds))}
    labels = torch.tensor([names[kind] for kind in kinds], device=embeddings.device)
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    itself = torch.eye(len(kinds), dtype=torch.bool, device=embeddings.device)
    scores = (unit @ unit.T / temperature).masked_fill(itself, -1e9)  # (B, B)
    same = (labels.unsqueeze(0) == labels.unsqueeze(1)) & ~itself
    log_share = scores.log_softmax(-1)
    partners = same.sum(1)
    per_row = -(log_share * same).sum(1) / partners.clamp(min=1)
    if not bool((partners > 0).any()):
        return per_row.sum() * 0.0
    return per_row[partners > 0].mean()


def readouts(
    model: nn.Module, prompts: Sequence[Sequence[int]], summary_layer: int
) -> list[Tensor]:
    """Ways to see B prompts, (B, D) each.

    First what ``summary_layer`` sees at the last token, then the mean over all tokens but the
    first of the states that ``MEAN_LAYERS`` see. Means keep words apart that training saw rarely;
    the last token alone learns to know the training's intents by heart.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = pad(prompts, 0, device)
    states = model(
        input_ids=ids, output_hidden_states=True, use_cache=False, logits_to_keep=1
    ).hidden_states
    last = states[summary_layer][torch.arange(len(prompts), device=device), lengths - 1]
    columns = torch.arange(ids.shape[1], device=device)
    counts = ((columns > 0) & (columns < lengths.unsqueeze(1))).float().unsqueeze(-1)  # (B, T, 1)
    means = [(states[layer].float() * counts).sum(1) / counts.sum(1) for layer in MEAN_LAYERS]
    return [last.float(), *means]


class QuestionDraws:
    """Batches of questions for the contrastive loss."""

    def __init__(
        self, intents: Sequence[Intent], turns: Sequence[str], part: EmbedPart, rng: random.Random
    ) -> None:
        """Draw kinds from ``intents``, and from ``turns`` texts that are a kind each.

        Raises:
            DataError: fewer intents than a step needs.
        """
        self._rng = rng
        self._part = part
        self._turns = turns
        self._pools: dict[str, list[Intent]] = {}
        for intent in intents:
            self._pools.setdefault(intent.source, []).append(intent)
        if len(intents) < part.kinds:
            raise DataError(
                f"the recipe's embed.kinds is {part.kinds}, but the data has {len(intents)} kinds "
                "of question"
            )

    def kinds(self) -> tuple[list[str], list[str]]:
        """Kinds and questions, ``kinds`` x ``questions_per_kind`` of them.

        Several kinds come from one source, so that negatives are hard.
        """
        names = list(self._pools)
        weights = [len(self._pools[name]) ** 0.5 for name in names]
        share = max(1, self._part.kinds // 3)
        chosen: dict[str, Intent] = {}
        while len(chosen) < self._part.kinds:
            pool = self._pools[self._rng.choices(names, weights)[0]]
            drawn = self._rng.sample(pool, min(len(pool), share))
            chosen.update((kind_of(intent), intent) for intent in drawn)
        kinds, texts = [], []
        for kind, intent in list(chosen.items())[: self._part.kinds]:
            wanted = min(self._part.questions_per_kind, len(intent.questions))
            kinds += [kind] * wanted
            texts += self._rng.sample(intent.questions, wanted)
        return kinds, texts

    def views(self) -> tuple[list[str], list[str]]:
        """Kinds and texts: ``views`` turns, each a kind, twice with other words left out.

        One view of each is the text with noise (SimCSE, Gao et al. 2021, arXiv 2104.08821, with
        words left out instead of activations).
        """
        turns = self._rng.sample(self._turns, min(self._part.views, len(self._turns)))
        kinds = [f"turn {index}" for index in range(len(turns))]
        return kinds * 2, [self._with_words_left_out(turn) for turn in turns * 2]

    def _with_words_left_out(self, text: str) -> str:
        words = text.split()
        kept = [word for word in words if self._rng.random() >= self._part.left_out]
        return " ".join(kept or words[:1])
