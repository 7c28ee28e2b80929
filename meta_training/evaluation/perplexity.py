"""Perplexity on held-out dialogues: of a model, and how far it is from another's on the same rows.

Knows language models and dialogues; knows nothing about adapters, methods or reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from meta_training.evaluation.intervals import paired_bootstrap
from meta_training.pretrain import dialogue_rows, language_loss
from meta_training.tasks.sources import Dialogue

ROW_TOKENS: Final = 128
SEED: Final = 7  # of which dialogues, and which part of each
LEAST_ROWS: Final = 160
WORK: Final = 2.6e9  # rows times the model's parameters: half a minute of a core


@dataclass(frozen=True)
class Perplexity:
    """Per token, and the ends of its 95% interval over rows; NaN for one row alone.

    Of two models it is the one's over the other's, on the same rows.
    """

    mean: float
    low: float
    high: float
    rows: int

    @classmethod
    def of(cls, nats: Sequence[float]) -> Perplexity:
        """Of rows' nats a token, or of how many more they are by one model than by another."""
        low, high = paired_bootstrap(nats)
        return cls(_exp(math.fsum(nats) / len(nats)), _exp(low), _exp(high), len(nats))

    def told(self) -> dict[str, Any]:
        """The same for JSON, which has no NaN."""
        return {
            name: round(value, 4) if math.isfinite(value) else None
            for name, value in vars(self).items()
        }


def rows_for(
    model: PreTrainedModel, dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """Token ids (rows, ROW_TOKENS) of ``dialogues``: as many of them as ``model`` has time for.

    The same at every call; fewer for large models, and no dialogue twice.
    """
    most = max(LEAST_ROWS, int(WORK / model.num_parameters()))
    return dialogue_rows(dialogues, tokenizer, ROW_TOKENS, most, SEED)


@torch.no_grad()
def row_nats(model: PreTrainedModel, rows: torch.Tensor) -> list[float]:
    """Mean nats a token of each row of token ids (rows, T), adapters off."""
    return [float(language_loss(model, row)) for row in rows.split(1)]


def over(nats: Sequence[float], others: Sequence[float]) -> Perplexity:
    """One model's perplexity over another's, from both models' nats of the same rows."""
    return Perplexity.of([own - other for own, other in zip(nats, others, strict=True)])


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
