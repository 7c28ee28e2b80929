"""From logits to tokens, many rows at once, each with its own rules and its own dice.

Knows tensors and `Sampling`; knows nothing about text, rows' owners or adapters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.types import Sampling, TopLogprobs


class Dice:
    """A request's own random numbers, so that no other request changes them."""

    def __init__(self, seed: int | None) -> None:
        """Start from ``seed``, or from the operating system's randomness."""
        # On the CPU also for a model elsewhere: a seed then means the same on every device.
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def throw(self) -> float:
        """A uniform number in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


@dataclass(frozen=True)
class Chosen:
    """A row's next token; None where no token that may come has a finite logit."""

    token: int | None
    logprob: float | None  # where it was asked for
    top: TopLogprobs = ()  # as many as were asked for


def choose(
    logits: Tensor,
    samplings: Sequence[Sampling],
    dice: Sequence[Dice],
    barred: Mapping[int, Collection[int]] | None = None,
    allowed: Mapping[int, Tensor] | None = None,
) -> list[Chosen]:
    """Choose the next token of B rows.

    Greedy rows throw no dice, so a row's numbers depend on its own past only.

    Args:
        logits: (B, V).
        samplings, dice: B of each.
        barred: by row, tokens that must not come now.
        allowed: by row, (V,) whether each token may come; a row that is not there takes all.
    """
    logits = model_logits = logits.float()
    if barred or allowed:
        logits = model_logits.clone()
    for row, never in (barred or {}).items():
        logits[row, list(never)] = -math.inf
    if allowed:
        held = list(allowed)
        masks = torch.stack(list(allowed.values())).to(logits.device)
        logits[held] = logits[held].masked_fill(~masks, -math.inf)
    tokens = logits.argmax(-1)  # (B,)
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        draws = [dice[row].throw() for row in drawn]
        tokens[rows] = _draw(logits[rows], [samplings[row] for row in drawn], draws)
    logprobs, tops = _logprobs(model_logits, tokens, samplings)
    tokens = torch.where(logits.amax(-1).isfinite(), tokens, -1)  # NaN is not finite either
    return [
        Chosen(token if token >= 0 else None, logprob, top)
        for token, logprob, top in zip(tokens.tolist(), logprobs, tops, strict=True)
    ]


def _logprobs(
    logits: Tensor, tokens: Tensor, samplings: Sequence[Sampling]
) -> tuple[list[float | None], list[TopLogprobs]]:
    """Of each row's token (B,) and of the row's likeliest tokens, where they were asked for."""
    logprobs: list[float | None] = [None] * len(samplings)
    tops: list[TopLogprobs] = [()] * len(samplings)
    rows = [row for row, sampling in enumerate(samplings) if sampling.logprobs]
    if not rows:
        return logprobs, tops
    every = logits[rows].log_softmax(-1)
    own = every.gather(1, tokens[rows].unsqueeze(1)).squeeze(1).tolist()
    most = min(max(samplings[row].top_logprobs for row in rows), logits.shape[1])
    values, ids = every.topk(most)
    likeliest = zip(ids.tolist(), values.tolist(), strict=True)
    for row, logprob, (names, shares) in zip(rows, own, likeliest, strict=True):
        logprobs[row] = logprob
        tops[row] = tuple(zip(names, shares, strict=True))[: samplings[row].top_logprobs]
    return logprobs, tops


def _draw(logits: Tensor, samplings: Sequence[Sampling], draws: Sequence[float]) -> Tensor:
    """Tokens (B,) by inverting the cumulative distribution of the kept tokens at ``draws``."""
    device, vocabulary = logits.device, logits.shape[1]
    temperatures = torch.tensor([s.temperature for s in samplings], device=device)
    top_p = torch.tensor([s.top_p for s in samplings], device=device).unsqueeze(1)
    top_k = torch.tensor([s.top_k or vocabulary for s in samplings], device=device).unsqueeze(1)
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    shifted = logits - logits.max(-1, keepdim=True).values
    scaled = (shifted / temperatures.unsqueeze(1).clamp(min=1e-6)).softmax(-1)
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)  # (B, V)
    before = ordered.cumsum(-1) - ordered
    ranks = torch.arange(vocabulary, device=device)
    keep = ((before < top_p) & (ranks < top_k)) | (ranks == 0)
    cumulative = (ordered * keep).double().cumsum(-1)
    goals = torch.tensor(draws, dtype=torch.float64, device=device) * cumulative[:, -1]
    places = torch.searchsorted(cumulative, goals.unsqueeze(1), right=True)
    places = torch.minimum(places, keep.sum(-1, keepdim=True) - 1)
    tokens: Tensor = ids.gather(1, places)
    return tokens.squeeze(1)
