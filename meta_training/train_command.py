"""``innerloop meta-train``: what a person types. The work is in ``making.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from meta_training.arguments import add_machine_arguments, need, refused, whole
from meta_training.recipe import RecipeError, load_recipe
from meta_training.recipe_parts import ALGORITHMS

DESCRIPTION = "Make an artifact that adapts in a few steps: pre-train, embed, meta-train, export."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", type=Path, help="YAML recipe, see meta_training/recipes/")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder that `innerloop data` filled"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of checkpoints and results (default runs/<recipe's name>)"
    )
    parser.add_argument(
        "--algorithm",
        choices=ALGORITHMS,
        help="instead of the recipe's (docs/meta-training.md says what each does and costs)",
    )
    parser.add_argument(
        "--split",
        type=whole,
        metavar="NUMBER",
        help="another split of the classes than the recipe's data.split.number; the folder is then "
        "runs/<recipe's name>-split-NUMBER",
    )
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run or resume every stage; see ``exit_code`` for what is returned.

    Raises:
        ModuleNotFoundError: a package of the extra is missing.
    """
    need("sklearn")
    try:
        recipe = load_recipe(arguments.recipe)
        if arguments.algorithm:
            recipe = recipe.with_algorithm(arguments.algorithm)
        if arguments.split is not None:
            recipe = recipe.with_split(arguments.split)
    except RecipeError as error:
        return refused("meta-train", error)
    from meta_training.making import make  # imports PyTorch

    folder = arguments.out or Path("runs") / recipe.name
    return make(recipe, arguments.data, folder, arguments.threads, arguments.device)
