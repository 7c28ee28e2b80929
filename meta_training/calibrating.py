"""A gate's numbers for an encoder that its artifact was not made with.

Knows artifacts, recipes and the gate's calibration; knows nothing about training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import torch

from adapters.artifact import NOT_APART, Artifact, ArtifactError, load_artifact
from adapters.calibrated import CALIBRATED_FILE, calibrated_text
from adapters.chat import ChatEncoder, tells_turns_apart
from adapters.config import Gate
from adapters.encoder import Encoder
from adapters.encoder_folder import load_encoder
from meta_training.data.rows import replace_text
from meta_training.device import use_device
from meta_training.evaluation.material import material_of
from meta_training.exits import exit_code
from meta_training.gating import calibrate_with
from meta_training.learner import Learner
from meta_training.pipeline import validation_drawer
from meta_training.recipe import load_recipe, told_recipe

# Who was made by no recipe has seen nothing of the public data by one: any recipe's split will do.
ANY_RECIPE: Final = Path(__file__).with_name("recipes") / "innerloop-tiny.yaml"


def calibrate(arguments: argparse.Namespace) -> int:
    """Write the numbers beside the artifact; see ``exit_code`` for what is returned."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return exit_code("calibrate", lambda: _calibrate(arguments))


def _calibrate(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.artifact
    artifact = load_artifact(folder, use_device(arguments.device))
    if artifact.spec.scope == "full":
        raise ArtifactError(f"{folder}: a gate needs scope 'activated', and this one's is 'full'")
    if not tells_turns_apart(ChatEncoder(artifact.tokenizer)):
        raise ArtifactError(f"{folder}: {NOT_APART}")
    encoder = load_encoder(arguments.encoder, artifact.tokenizer, artifact.model.device)
    gate = _gate(artifact, encoder, arguments.data)
    path = folder / CALIBRATED_FILE
    replace_text(path, calibrated_text(folder, gate))
    print(
        f"{path}: with {encoder.name} a prompt has to be {gate.threshold} like a taught one, and "
        f"{gate.growth} more for e times as many of an answer"
    )


def _gate(artifact: Artifact, encoder: Encoder, data: Path) -> Gate:
    recipe = told_recipe(artifact.report, artifact.name) or load_recipe(ANY_RECIPE)
    corpus = material_of(artifact, data, recipe)
    learner = Learner.from_artifact(artifact)
    words = None if artifact.rule.gate is None else artifact.rule.gate.words
    drawer = validation_drawer(corpus, artifact.tokenizer, recipe.seed)
    return calibrate_with(learner, corpus, words, drawer, recipe.seed, encoder)
