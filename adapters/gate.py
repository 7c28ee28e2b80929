"""Whether a session's adapter answers a prompt at all, or leaves it to the base.

What an adapter learned from five examples should not colour every other answer. The base's own
view of a prompt, at its last token, is compared with the prompts that were taught (nearest
neighbour by cosine, as in Matching Networks, Vinyals et al. 2016, arXiv 1606.04080, eq. 1); where
none is near, the adapter stays off and the answer is the base's, bit for bit. Knows vectors;
nothing about models, sessions or steps.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from adapters.config import Gate


def gate_keys(summaries: Tensor) -> Tensor:
    """Unit vectors (N, D) of what the base saw at the last token of N taught prompts."""
    return normalize(summaries.float(), dim=-1)


def gate_similarity(keys: Tensor, summaries: Tensor) -> Tensor:
    """(B,) cosine between each prompt's summary (B, D) and the nearest of the keys (N, D)."""
    return (gate_keys(summaries) @ keys.T).max(dim=1).values


def gate_opens(gate: Gate, keys: Tensor, summaries: Tensor) -> Tensor:
    """(B,) whether the adapter with these keys answers each prompt."""
    return gate_similarity(keys, summaries) >= gate.threshold_for(keys.shape[0])
