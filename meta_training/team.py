"""Several processes that make one outer loop, as `torchrun` starts them.

Every process draws every batch and works on its share of them; gradients are added up. It knows
torch.distributed, not what is trained. The folder of the run is one that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

PATIENCE = timedelta(days=7)
"""How long the others wait for the first one's stages: pre-training takes hours."""


@dataclass(frozen=True)
class Team:
    """This process's place among those of the run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def has(self, batch: int) -> bool:
        """Whether a batch, counted from 0 in each outer step, is this process's."""
        return batch % self.size == self.rank

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """What is inside is done by the leader, and then by the others, who find its files."""
        if self.size > 1 and not self.leads:
            distributed.barrier()
        yield
        if self.size > 1 and self.leads:
            distributed.barrier()

    def average(self, parameters: Iterable[nn.Parameter], batches: int) -> None:
        """Replace gradients, each a sum over this process's batches, by the mean over all."""
        if batches == 1:
            return
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in learned]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        if self.size > 1:
            distributed.all_reduce(flat)
        flat /= batches
        sizes = [gradient.numel() for gradient in gradients]
        for each, mean in zip(learned, flat.split(sizes), strict=True):
            each.grad = mean.view_as(each)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in one of the processes; all of them hear the same."""
        if self.size == 1:
            return flag
        told = torch.tensor(int(flag))
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return bool(told)


ALONE = Team()


@contextmanager
def joined_team() -> Iterator[Team]:
    """The team that the environment's `RANK` and `WORLD_SIZE` tell of, else this process alone.

    It talks by gloo, over CPUs: the outer loop has no other device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
