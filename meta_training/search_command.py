"""``innerloop search``: what a person types. The work is in ``search/searching.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from meta_training.arguments import add_machine_arguments, need, positive, refused
from meta_training.recipe import RecipeError

DESCRIPTION = (
    "Try outer and inner settings of a recipe on validation tasks, stop what is behind, and write "
    "the best as a recipe. Ctrl-C saves; the same command goes on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "search", type=Path, help="YAML file, see meta_training/recipes/search-small.yaml"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder that `innerloop data` filled"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of trials and results (default runs/<the file's name>)"
    )
    parser.add_argument(
        "--trials", type=positive, help="instead of the file's; a finished search takes more"
    )
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run, resume or extend a search; see ``exit_code`` for what is returned.

    Raises:
        ModuleNotFoundError: a package of the extra is missing.
    """
    need("optuna", "sklearn", "matplotlib")
    from meta_training.search.plan import SearchError, load_search

    try:
        search = load_search(arguments.search)
    except (SearchError, RecipeError) as error:
        return refused("search", error)
    if arguments.trials:
        search = search.with_trials(arguments.trials)
    from meta_training.search import searching  # imports PyTorch

    folder = arguments.out or Path("runs") / arguments.search.stem
    return searching.search(search, arguments.data, folder, arguments.threads, arguments.device)
