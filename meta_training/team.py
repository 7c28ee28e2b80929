"""Several processes that make one outer loop, as `torchrun` starts them.

Every process draws every batch and works on its share of them; gradients are added up. It knows
torch.distributed, not what is trained. The folder of the run is one that all of them see. Gradients
travel by gloo between CPUs and by NCCL between GPUs, one a process; all else by gloo.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

from adapters.device import CPU, DeviceError
from meta_training.device import use_device

PATIENCE = timedelta(days=7)
"""How long the others wait for the first one's stages: pre-training takes hours."""


@dataclass(frozen=True)
class Team:
    """This process's place among those of the run, and the device that it works on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

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
        if not self.leads:
            self._meet()
        yield
        if self.leads:
            self._meet()

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

    def _meet(self) -> None:
        """Wait for the others. No barrier, which would hold GPUs for as long."""
        self.any(False)


ALONE = Team()


@contextmanager
def joined_team(device: str) -> Iterator[Team]:
    """The team that the environment's `RANK` and `WORLD_SIZE` tell of, else this process alone.

    Args:
        device: as ``--device`` names it. Of a team each process takes the GPU of its `LOCAL_RANK`,
            where it does not name one.

    Raises:
        DeviceError: PyTorch does not see the device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team(device=use_device(device))
        return
    own = own_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group(backend(own), timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size(), own)
    finally:
        distributed.destroy_process_group()


def backend(device: torch.device) -> str:
    """What processes on such devices talk by, in the words of torch.distributed."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def own_device(name: str, local_rank: int) -> torch.device:
    """The device of a process that is number ``local_rank`` of the team's on its machine.

    Raises:
        DeviceError: the machine has fewer GPUs than processes.
    """
    if name == "cpu" or ":" in name or (name == "auto" and not torch.cuda.is_available()):
        return use_device(name)
    try:
        return use_device(f"cuda:{local_rank}")
    except DeviceError as error:
        raise DeviceError(
            f"{error}; each process of a team takes a GPU of its own: start as many as there are, "
            "or set --device to cpu"
        ) from error
