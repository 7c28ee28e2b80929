"""Prompts computed once, kept in blocks of tokens, least recently used out first.

A block is found by all the tokens up to its end and by its *owner*, so prompts share the blocks
they begin with and nobody else's can be found. What may enter depends on nothing that changes: the
base's own keys and values, or those of one version of an adapter. Knows tensors, tokens and bytes;
knows nothing about requests or models.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from adapters.prefix import Prefix
from server.engine.base import LayerForm

Tokens = tuple[int, ...]
BLOCK_TOKENS: Final = 16


class PrefixCache:
    """Keys and values of prompts within a budget of bytes, in one pool of blocks per layer."""

    def __init__(
        self,
        layers: Sequence[LayerForm],
        summary_width: int,
        budget_bytes: int,
        device: torch.device,
    ) -> None:
        """Hold nothing yet; a budget of less than one block keeps it so.

        Args:
            summary_width: D of the prompts' summaries; 0 where there are none.
        """
        self.budget_bytes = budget_bytes
        self.hit_tokens = 0
        self.miss_tokens = 0
        token_bytes = sum(form.token_bytes for form in layers)
        self._block_bytes = BLOCK_TOKENS * token_bytes + 4 * summary_width
        self._blocks = budget_bytes // self._block_bytes
        # Memory that nothing was written to yet costs nothing on a CPU.
        self._pools = [
            tuple(
                torch.empty(
                    self._blocks, heads, BLOCK_TOKENS, width, dtype=form.dtype, device=device
                )
                for heads, width in (form.key, form.value)
            )
            for form in layers
        ]
        self._summaries = torch.empty(self._blocks, summary_width, device=device)
        self._summarised: set[int] = set()  # blocks that a prompt ended with
        self._held: OrderedDict[bytes, int] = OrderedDict()  # digest -> block
        self._free = list(range(self._blocks))

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._held)

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks held, the unused ends of prompts' last blocks included."""
        return len(self._held) * self._block_bytes

    def get(self, tokens: Tokens, owner: str) -> Prefix | None:
        """What is kept of the beginning of a prompt, (1, H, P, D) a layer; None where nothing is.

        Its blocks are now the most recently used. P is the whole prompt's length only where its
        summary is there too.
        """
        digests = _digests(tokens, owner)
        chain = [self._held[digest] for digest in takewhile(self._held.__contains__, digests)]
        summarised = bool(self._summaries.shape[1])
        if summarised and len(chain) == len(digests) and chain[-1] not in self._summarised:
            chain.pop()
        length = min(len(chain) * BLOCK_TOKENS, len(tokens))
        self.hit_tokens += length
        self.miss_tokens += len(tokens) - length
        if not chain:
            return None
        self._touch(digests[: len(chain)])
        prefix = self._read(chain, length)
        if summarised and length == len(tokens):
            return replace(prefix, summaries=self._summaries[chain[-1:]])
        return prefix

    def put(self, tokens: Tokens, owner: str, prefix: Prefix) -> None:
        """Keep a prompt, as much of its beginning as the budget has room for."""
        digests = _digests(tokens, owner)[: self._blocks]
        self._touch([digest for digest in digests if digest in self._held])
        new = [place for place, digest in enumerate(digests) if digest not in self._held]
        blocks = [self._take() for _ in new]
        try:
            self._write(new, blocks, prefix)
        except BaseException:  # nobody may find blocks that hold something else
            self._free += blocks
            raise
        self._held.update((digests[place], block) for place, block in zip(new, blocks, strict=True))
        if prefix.summaries is not None and len(digests) * BLOCK_TOKENS >= len(tokens):
            last = self._held[digests[-1]]
            self._summaries[last] = prefix.summaries[0]
            self._summarised.add(last)
        self._touch(digests)

    def _touch(self, digests: Sequence[bytes]) -> None:
        """Make blocks the most recently used, a beginning more so than what goes on from it."""
        for digest in reversed(digests):
            self._held.move_to_end(digest)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        _, block = self._held.popitem(last=False)
        self._summarised.discard(block)
        return block

    def _read(self, chain: Sequence[int], length: int) -> Prefix:
        device = self._summaries.device
        blocks = torch.tensor(chain, device=device)

        def gathered(pool: Tensor) -> Tensor:
            rows = pool.index_select(0, blocks).transpose(0, 1)  # (H, N, block, D)
            return rows.flatten(1, 2)[:, :length].unsqueeze(0)

        layers = tuple((gathered(keys), gathered(values)) for keys, values in self._pools)
        return Prefix(layers, torch.tensor([length], device=device))

    def _write(self, places: Sequence[int], blocks: Sequence[int], prefix: Prefix) -> None:
        """Copy the blocks at ``places`` of a prompt to ``blocks`` of the pools."""
        if not places:
            return
        device = self._summaries.device
        sources, targets = torch.tensor(places, device=device), torch.tensor(blocks, device=device)
        for pools, layer in zip(self._pools, prefix.layers, strict=True):
            for pool, tensor in zip(pools, layer, strict=True):
                missing = -tensor.shape[2] % BLOCK_TOKENS
                whole = pad(tensor[0], (0, 0, 0, missing))  # (H, N * block, D)
                rows = whole.unflatten(1, (-1, BLOCK_TOKENS)).transpose(0, 1)  # (N, H, block, D)
                pool.index_copy_(0, targets, rows.index_select(0, sources))


def prefix_owner(tenant: str, adapter_key: str | None) -> str:
    """Who shares prompts: a tenant's sessions, or one adapter where it acts on the prompt too."""
    return repr((tenant, adapter_key))


def _digests(tokens: Tokens, owner: str) -> list[bytes]:
    """A name for every block of a prompt, which says all that comes before the block too.

    Cryptographic, so that no prompt can be made to find another's keys and values.
    """
    digest = hashlib.blake2b(owner.encode(), digest_size=16).digest()
    digests = []
    for start in range(0, len(tokens), BLOCK_TOKENS):
        block = array("q", tokens[start : start + BLOCK_TOKENS]).tobytes()
        digest = hashlib.blake2b(digest + block, digest_size=16).digest()
        digests.append(digest)
    return digests
