"""Which device a name means on this machine: the same for the server and for what trains.

Knows what PyTorch sees; knows nothing about what will run there.
"""

from __future__ import annotations

from typing import Final

import torch

from adapters.config import AdapterError

CPU: Final = torch.device("cpu")


class DeviceError(AdapterError, ValueError):
    """PyTorch does not see the device that was named; the message says what it sees."""


def pick_device(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``, a GPU where there is one.

    Raises:
        DeviceError: a GPU that PyTorch does not see.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted, seen = torch.device(name), torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= seen:
        raise DeviceError(
            f"{name!r}: PyTorch sees {seen} GPUs here (expected cpu, auto, or a GPU that is there)"
        )
    return wanted
