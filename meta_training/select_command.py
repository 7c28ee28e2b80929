"""``innerloop select``: what a person types. The work is in ``evaluation/selecting.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from meta_training.arguments import add_machine_arguments, need, positive, refused
from meta_training.evaluation.cells import COMPARED

DESCRIPTION = (
    "Compare artifacts by the relative score S(M, D), the mean over validation tasks of L / L*: a "
    "model's loss on a task after its inner steps to a reference's. Below 1 is better."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "artifacts", type=Path, nargs="+", metavar="ARTIFACT", help="folder, as meta-train exports"
    )
    parser.add_argument("--reference", type=Path, required=True, help="whose loss is L*")
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument("--tasks", type=positive, default=40, help="tasks a cell (default 40)")
    parser.add_argument(
        "--cells",
        nargs="+",
        default=[],
        help="cells with these words (default: "
        + ", ".join(cell.shape for cell in COMPARED) + ", or all where there are none of these)",
    )  # fmt: skip
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="tasks held out of every stage: to report on a choice, not to make it",
    )
    parser.add_argument("--seed", type=int, default=2000, help="of the tasks drawn (default 2000)")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write all figures here")
    parser.add_argument(
        "--results", type=Path, help="lines per task (default REFERENCE/../select.jsonl)"
    )
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Judge what was not judged yet, and compare; see ``exit_code`` for what is returned.

    Raises:
        ModuleNotFoundError: a package of the extra is missing.
    """
    need("sklearn")
    if arguments.tasks < 2:
        return refused("select", ValueError("--tasks: one task has no interval, give two or more"))
    from meta_training.evaluation.selecting import select  # imports PyTorch

    return select(arguments)
