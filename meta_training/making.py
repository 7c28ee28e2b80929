"""From a recipe and data to an artifact, through every stage: the work of ``innerloop meta-train``.

Knows the order of the stages and who of a team does what; knows nothing about command lines.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from adapters.artifact import REPORT_FILE, load_artifact
from meta_training.base_lora import merge_base
from meta_training.exits import exit_code
from meta_training.export import export
from meta_training.kept_out import KEY, noted
from meta_training.pipeline import (
    build_learner,
    build_outer_loop,
    embed_questions,
    make_gate,
    open_workshop,
)
from meta_training.recipe import Recipe, RecipeError
from meta_training.team import Team, joined_team


def make(recipe: Recipe, data: Path, folder: Path, threads: int | None, device: str) -> int:
    """Run or resume every stage in ``folder``; see ``exit_code`` for what is returned."""
    if threads:
        torch.set_num_threads(threads)

    def work() -> None:
        with joined_team(device) as team:
            meta_train(recipe, data, folder, team)

    return exit_code("meta-train", work)


def meta_train(recipe: Recipe, data: Path, folder: Path, team: Team) -> None:
    """Run or resume every stage as one process of ``team``, on its device.

    Raises what is bad input.
    """
    if recipe.outer.batches % team.size:
        raise RecipeError(
            f"outer.batches {recipe.outer.batches} cannot be shared out over {team.size} "
            f"processes: set it to a multiple of {team.size}, or start fewer"
        )
    if recipe.outer.selection != "uniform" and team.size > 1:
        raise RecipeError(
            f"outer.selection {recipe.outer.selection} goes by all batches of a step, which one "
            "process has: start one, or set it to uniform"
        )
    with team.leader_first():
        workshop = open_workshop(recipe, data, folder, team.device)
        learner = build_learner(workshop)
        embed_questions(workshop, learner)
        outer_loop = build_outer_loop(workshop, learner, team)
    trained = outer_loop.run()
    if recipe.outer.steps and not outer_loop.has_moved:
        raise RecipeError(
            f"none of {recipe.outer.steps} outer steps was taken, as no gradient was a finite "
            "number: the inner loop diverges. Nothing was learned and there is no artifact; lower "
            "inner.first_step_size or inner.clip, and take another --out"
        )
    if not team.leads:
        return
    target = folder / recipe.outer.algorithm / "artifact"
    merge_base(learner.model)
    if trained or not (target / REPORT_FILE).exists():
        learner.gate = make_gate(workshop, learner)
        report = {"recipe": recipe.model_dump(mode="json"), KEY: noted(workshop.corpus.kept_out)}
        artifact = export(learner, target, report)
    else:  # what `innerloop evaluate` wrote into it stays
        artifact = load_artifact(target)
    print(json.dumps({"artifact": str(target), "base_fingerprint": artifact.fingerprint}))
