"""Meta-training that goes on from an artifact, and not on what that is judged by.

Knows recipes, artifacts and learners; knows nothing about stages or data.
"""

from __future__ import annotations

from typing import Final

from transformers import PreTrainedModel

from adapters.artifact import load_artifact, read_report
from meta_training.learner import Learner
from meta_training.pretrain import artifact_folder
from meta_training.recipe import Recipe, RecipeError, told_recipe
from meta_training.recipe_parts import DataPart
from meta_training.tasks.part import TaskPart

OTHER_DRAWS: Final = 1_000_003  # added to the seed, so that the outer loop draws other episodes
SPLIT: Final = ("split", "held_out", "validation", "held_out_persona_share")  # of the public data


def further_seed(recipe: Recipe) -> int:
    """What the outer loop draws by: not the episodes of the run that it goes on from."""
    return recipe.seed + (0 if recipe.model.artifact is None else OTHER_DRAWS)


def check_split(recipe: Recipe) -> None:
    """Refuse what would be judged on tasks that the recipe's artifact, if any, was trained on.

    Raises:
        RecipeError: the artifact may have been trained on what the recipe holds out.
        ArtifactError: its report is broken.
    """
    if recipe.model.artifact is None:
        return
    folder = artifact_folder(recipe.model)
    before = told_recipe(read_report(folder), folder.resolve().name)
    if before is None:
        return  # made elsewhere: nobody knows what it has seen
    wrong = _other_split(before.data, recipe.data)
    if _share_data(before.data, recipe.data) and before.seed != recipe.seed:
        wrong = f"seed: it was made with {before.seed}, and the split goes by it"
    if wrong:
        raise RecipeError(
            f"{wrong}: {recipe.model.artifact} may have been trained on what this recipe holds "
            "out, so nothing could be said of new tasks; split the data as it did"
        )


def further_learner(recipe: Recipe, model: PreTrainedModel) -> Learner:
    """The learner that the recipe's artifact was exported from, on ``model``, which is its base.

    Raises:
        RecipeError: the artifact's rule is not of the kind that the algorithm learns.
        ArtifactError: the artifact is broken.
    """
    artifact = load_artifact(artifact_folder(recipe.model))
    learner = Learner.from_artifact(artifact, model)
    wanted, missing = recipe.session, ""
    if wanted.sizes == "element" and not learner.log_factors:
        missing = "a size for each element"
    if wanted.top_layers is not None and len(learner.moving) == len(learner.names):
        missing = "layers that stay as they are"
    if missing:
        raise RecipeError(
            f"outer.algorithm: {recipe.outer.algorithm} needs {missing}, which the rule of "
            f"{recipe.model.artifact} does not have: take another algorithm, or model.base"
        )
    return learner


def _other_split(before: DataPart, now: DataPart) -> str:
    """The first thing that is split in another way, with what it was before; or nothing."""
    if before.reads_public and now.reads_public:
        for name in SPLIT:
            if getattr(before, name) != getattr(now, name):
                return f"data.{name}: it was made with {getattr(before, name)!r}"
    parts = {_source(part): (part.held_out, part.validation) for part in before.tasks}
    for number, part in enumerate(now.tasks):
        split = parts.get(_source(part), (part.held_out, part.validation))
        if split != (part.held_out, part.validation):
            return f"data.tasks.{number}: it was made with held_out and validation {split!r}"
    return ""


def _share_data(before: DataPart, now: DataPart) -> bool:
    known = {_source(part) for part in before.tasks}
    both_public = before.reads_public and now.reads_public
    return both_public or any(_source(part) in known for part in now.tasks)


def _source(part: TaskPart) -> tuple[object, ...]:
    return (part.path, part.dataset, part.config, part.split)
