"""``innerloop calibrate``: what a person types. The work is in ``calibrating.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from meta_training.arguments import add_machine_arguments, need

DESCRIPTION = (
    "Choose the numbers of a model's gate for a sentence encoder, on validation intents, and write "
    "them beside the model, so that it can be served with that encoder. Takes a minute or two."
)
EXAMPLES = """\
  innerloop data
  innerloop calibrate runs/mine/maml/artifact --encoder all-MiniLM-L6-v2
  innerloop serve --model runs/mine/maml/artifact --encoder all-MiniLM-L6-v2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "artifact",
        type=Path,
        metavar="ARTIFACT",
        help="folder, as meta-train exports it, or of any Hugging Face causal LM with a chat "
        "template, which has no gate without an encoder",
    )
    parser.add_argument(
        "--encoder",
        required=True,
        metavar="NAME",
        help="all-MiniLM-L6-v2, a folder, or a repository of the hub",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate; see ``exit_code`` for what is returned.

    Raises:
        ModuleNotFoundError: a package of the extra is missing.
    """
    need("sklearn")
    from meta_training.calibrating import calibrate  # imports PyTorch

    return calibrate(arguments)
