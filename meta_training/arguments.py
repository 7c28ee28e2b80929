"""What the package's commands share before their work begins: kinds of argument, and refusals.

It and the modules of the commands import nothing that takes long, so that help and refusals of
arguments come at once; PyTorch comes with the work.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.util import find_spec


def positive(text: str) -> int:
    """A whole number above 0; ``argparse`` names the argument when this raises."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def whole(text: str) -> int:
    """A whole number, 0 too; ``argparse`` names the argument when this raises."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def device_name(text: str) -> str:
    """The name of a device; whether the machine has it is found out later, with PyTorch."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text) is None:
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what all commands that compute say of the machine."""
    parser.add_argument("--threads", type=positive, help="CPU threads (default all)")
    parser.add_argument(
        "--device",
        type=device_name,
        default="auto",
        help="where the model is: cpu, cuda, cuda:N, or auto (default), a GPU where there is one",
    )


def need(*packages: str) -> None:
    """Look for packages of the extra before anything is imported.

    Raises:
        ModuleNotFoundError: one is missing; the command line says how it is installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def refused(command: str, error: Exception) -> int:
    """Tell what is bad input; gives the exit code."""
    print(f"innerloop {command}: {error}", file=sys.stderr)
    return 2
