"""What an artifact was made from, as far as its report tells, and what results know it by.

Knows artifacts, recipes and corpora; knows nothing about methods or reports.
"""

from __future__ import annotations

from pathlib import Path

from adapters.artifact import Artifact
from meta_training.corpus import Corpus, load_corpus
from meta_training.evaluation.cells import held_out_questions
from meta_training.kept_out import KEY, check_kept_out
from meta_training.recipe import Recipe, RecipeError, told_recipe


class EvaluationError(ValueError):
    """An artifact cannot be judged; the message says why, or what to change."""


def corpus_of(artifact: Artifact, data: Path) -> Corpus:
    """The material that ``artifact`` was made from, and what was held out of it.

    Raises:
        EvaluationError: its report does not say what that was, or too little was held out.
        DataError: something else was.
    """
    name, corpus = artifact.name, material_of(artifact, data)
    if not held_out_questions(corpus):
        raise EvaluationError(f"{name}: its recipe holds out nothing of {data} to judge it by")
    return corpus


def material_of(artifact: Artifact, data: Path, recipe: Recipe | None = None) -> Corpus:
    """The material that ``artifact`` was made from, split as it was then, or as ``recipe`` says.

    Raises:
        EvaluationError: its report does not say what that was.
        DataError: a file is missing, broken or split in another way.
    """
    recipe = recipe or recipe_of(artifact)
    corpus = load_corpus(data, recipe.data, recipe.seed)
    check_kept_out((artifact.report or {}).get(KEY), corpus.kept_out, recipe.name)
    return corpus


def recipe_of(artifact: Artifact) -> Recipe:
    """The recipe that ``artifact`` was made by.

    Raises:
        EvaluationError: its report does not say.
    """
    try:
        recipe = told_recipe(artifact.report, artifact.name)
    except RecipeError as error:
        raise EvaluationError(str(error)) from error
    if recipe is None:
        raise EvaluationError(
            f"{artifact.name}: report.json has no recipe, so nobody knows what was held out "
            "of its training: evaluate a folder that `innerloop meta-train` made"
        )
    return recipe


def identity(artifact: Artifact) -> str:
    """What lines of results know an artifact by: its base, its start and its rule."""
    return f"{artifact.fingerprint[:16]}/{artifact.rule_hash[:16]}"
