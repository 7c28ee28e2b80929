"""``innerloop meta-train``: from a recipe and data to an artifact, through every stage."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from adapters.artifact import REPORT_FILE, load_artifact
from meta_training.arguments import exit_code, positive
from meta_training.export import export
from meta_training.pipeline import (
    build_learner,
    build_outer_loop,
    embed_questions,
    make_gate,
    open_workshop,
)
from meta_training.recipe import load_recipe

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
        choices=("maml", "fomaml", "multitask"),
        help="instead of the recipe's; multitask is the control without an inner loop",
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default all)")


def run(arguments: argparse.Namespace) -> int:
    """Run or resume every stage; see ``exit_code`` for what is returned."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return exit_code("meta-train", lambda: _meta_train(arguments))


def _meta_train(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.recipe)
    if arguments.algorithm:
        outer = recipe.outer.model_copy(update={"algorithm": arguments.algorithm})
        recipe = recipe.model_copy(update={"outer": outer})
    folder = arguments.out or Path("runs") / recipe.name
    workshop = open_workshop(recipe, arguments.data, folder)
    learner = build_learner(workshop)
    embed_questions(workshop, learner)
    trained = build_outer_loop(workshop, learner).run()
    target = folder / recipe.outer.algorithm / "artifact"
    if trained or not (target / REPORT_FILE).exists():
        learner.gate = make_gate(workshop, learner)
        artifact = export(learner, target, {"recipe": recipe.model_dump(mode="json")})
    else:  # what `innerloop evaluate` wrote into it stays
        artifact = load_artifact(target)
    print(json.dumps({"artifact": str(target), "base_fingerprint": artifact.fingerprint}))
