"""Meta-training that goes on from an artifact, and not on what that is judged by.

Knows recipes, artifacts and learners; knows nothing about stages or data.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from transformers import PreTrainedModel

from adapters.artifact import RULE_FILE, load_artifact, read_report
from meta_training.kept_out import KEY, KeptOut, check_further
from meta_training.learner import Learner
from meta_training.pretrain import artifact_folder
from meta_training.recipe import Recipe, RecipeError, told_recipe
from meta_training.tasks.part import TaskPart

OTHER_DRAWS: Final = 1_000_003  # added to the seed, also where an artifact has no rule of its own
SPLIT: Final = ("split", "held_out", "validation", "held_out_persona_share")  # of the public data


def further_seed(recipe: Recipe) -> int:
    """What the outer loop draws by: not the episodes of the run that it goes on from.

    Nor those of any run before that one: it goes by the artifact's rule, which is its alone.
    """
    if recipe.model.artifact is None:
        return recipe.seed
    rule = artifact_folder(recipe.model) / RULE_FILE
    return recipe.seed + OTHER_DRAWS + (crc32(rule.read_bytes()) if rule.exists() else 0)


def check_split(recipe: Recipe) -> None:
    """Refuse what would be judged on tasks that the recipe's artifact, if any, was trained on.

    Of one's own tasks only where the artifact does not note what was kept out: if it does,
    ``check_material`` compares that.

    Raises:
        RecipeError: the artifact may have been trained on what the recipe holds out.
        ArtifactError: its report is broken.
    """
    if recipe.model.artifact is None:
        return
    folder = artifact_folder(recipe.model)
    report = read_report(folder) or {}
    before = told_recipe(report, folder.resolve().name)
    if before is None:
        return  # made elsewhere: nobody knows what it has seen
    wrong = _other_public_split(before, recipe)
    if not wrong and KEY not in report:
        wrong = _other_own_split(before, recipe)
    if wrong:
        raise RecipeError(
            f"{wrong}: {recipe.model.artifact} may have been trained on what this recipe holds "
            "out, so nothing could be said of new tasks; split the data as it did"
        )


def check_material(recipe: Recipe, kept_out: KeptOut) -> None:
    """The same of one's own tasks, once they are read, by the names that are kept out.

    Raises:
        DataError: the artifact may have been trained on some of them.
        ArtifactError: its report is broken.
    """
    if recipe.model.artifact is not None:
        report = read_report(artifact_folder(recipe.model)) or {}
        check_further(report.get(KEY), kept_out, recipe.model.artifact)


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


def _other_public_split(before: Recipe, now: Recipe) -> str:
    """The first thing that is split in another way, with what it was before; or nothing."""
    if not before.data.reads_public or not now.data.reads_public:
        return ""
    for name in SPLIT:
        if getattr(before.data, name) != getattr(now.data, name):
            return f"data.{name}: it was made with {getattr(before.data, name)!r}"
    return _other_seed(before, now)


def _other_own_split(before: Recipe, now: Recipe) -> str:
    """The same of own tasks: anything that decides which names of a file are kept out."""
    for number, part in enumerate(now.data.tasks):
        splits = [_split(each) for each in before.data.tasks if _source(each) == _source(part)]
        if splits and _split(part) not in splits:
            told = ", ".join(f"{key} {value!r}" for key, value in splits[0].items())
            return f"data.tasks.{number}: it was made with {told}"
        if splits and before.seed != now.seed:
            return _other_seed(before, now)
    return ""


def _other_seed(before: Recipe, now: Recipe) -> str:
    same = before.seed == now.seed
    return "" if same else f"seed: it was made with {before.seed}, and the split goes by it"


def _source(part: TaskPart) -> tuple[object, ...]:
    return (part.place, part.config, part.split)


def _split(part: TaskPart) -> dict[str, object]:
    return part.model_dump(include={"name", "where", "columns", "held_out", "validation"})
