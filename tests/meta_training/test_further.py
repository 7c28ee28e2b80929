"""Outer loops that go on from an artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_run import RECIPE, call
from yaml import safe_dump

from adapters.artifact import load_artifact
from meta_training import train_command
from meta_training.further import further_learner, further_seed
from meta_training.pipeline import open_workshop
from meta_training.recipe import Recipe, RecipeError
from meta_training.recipe_parts import ModelPart

OUTER = {"steps": 2, "tasks": 2, "language_rows": 1, "warmup_steps": 1}


def recipe_from(artifact: Path, **parts: Any) -> dict[str, Any]:
    return {
        "name": "further",
        "seed": RECIPE["seed"],
        "model": {"artifact": str(artifact)},
        "data": RECIPE["data"],
        "inner": {"gate": False},
        "outer": OUTER,
        **parts,
    }


def train(data: Path, folder: Path, content: dict[str, Any]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(safe_dump(content), encoding="utf-8")
    return call(train_command, path, "--data", data, "--out", folder)


@pytest.fixture(scope="module")
def before(finished: Path) -> Path:
    return finished / "maml" / "artifact"


def test_it_begins_where_the_artifact_ended(before: Path) -> None:
    recipe = Recipe.model_validate(recipe_from(before))
    artifact = load_artifact(before)

    learner = further_learner(recipe, load_artifact(before).model)

    for name, tensor in artifact.session_init.items():
        assert torch.equal(learner.tensors()[name], tensor)
    for name, sizes in artifact.rule.step_sizes.items():
        torch.testing.assert_close(learner.rule().step_sizes[name], sizes)
    assert learner.rule().anchors == artifact.rule.anchors


def test_no_stage_but_the_outer_loop_is_run_again(before: Path, data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path, recipe_from(before)) == 0

    old, new = load_artifact(before), load_artifact(tmp_path / "maml" / "artifact")
    assert not (tmp_path / "embedded.pt").exists()
    assert new.rule.steps == old.rule.steps
    assert new.spec == old.spec
    assert new.fingerprint != old.fingerprint  # the base learns too
    assert new.start.digest != old.start.digest
    report = json.loads((tmp_path / "maml" / "artifact" / "report.json").read_text("utf-8"))
    assert report["recipe"]["model"]["artifact"] == str(before)


def test_only_the_named_modules_of_the_base_learn(
    before: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outer = OUTER | {"base_modules": ["down_proj", "o_proj"], "base_learning_rate": 0.05}
    assert train(data, tmp_path / "run", recipe_from(before, outer=outer)) == 0

    old = load_artifact(before).model.state_dict()
    new = load_artifact(tmp_path / "run" / "maml" / "artifact").model.state_dict()
    moved = {name.split(".")[-2] for name in old if not torch.equal(old[name], new[name])}
    assert moved == {"down_proj", "o_proj"}
    kept = {name: tensor for name, tensor in old.items() if name.split(".")[-2] not in moved}
    assert all(torch.equal(tensor, new[name]) for name, tensor in kept.items())

    capsys.readouterr()
    outer["base_modules"] = ["dwon_proj"]
    assert train(data, tmp_path / "wrong", recipe_from(before, outer=outer)) == 2
    assert "outer.base_modules: the model has no module named dwon_proj" in capsys.readouterr().err


def test_every_run_that_goes_on_draws_other_episodes(before: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_from(before))
    later = Path(shutil.copytree(before, tmp_path / "later"))
    rule = json.loads((later / "inner_rule.json").read_text("utf-8"))
    rule["clip"] *= 2
    (later / "inner_rule.json").write_text(json.dumps(rule), encoding="utf-8")
    further = Recipe.model_validate(recipe_from(later))
    alone = recipe.model_copy(update={"model": ModelPart()})
    assert further_seed(alone) == recipe.seed
    seeds = [further_seed(each) for each in (alone, recipe, further)]
    assert len({*seeds}) == 3
    assert seeds[1:] == [further_seed(each) for each in (recipe, further)]


def test_without_outer_steps_nothing_changes(before: Path, data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path, recipe_from(before, outer=OUTER | {"steps": 0})) == 0

    old, new = load_artifact(before), load_artifact(tmp_path / "maml" / "artifact")
    assert new.fingerprint == old.fingerprint
    assert new.start.digest == old.start.digest


def test_other_episodes_are_drawn_than_by_the_run_before(
    before: Path, data: Path, tmp_path: Path
) -> None:
    further, first = tmp_path / "further", tmp_path / "first"
    assert train(data, further, recipe_from(before)) == 0
    assert train(data, first, {**RECIPE, "outer": OUTER}) == 0

    drawn = [
        torch.load(folder / "maml" / "checkpoint.pt", weights_only=True)["draws"]["loop"]
        for folder in (further, first)
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"seed": 4}, "seed: it was made with 3"),
        ({"data": RECIPE["data"] | {"validation": []}}, "data.validation: it was made with"),
        (
            {"data": RECIPE["data"] | {"held_out": {"bitext-support": "all"}}},
            "data.held_out: it was made with",
        ),
        ({"data": {"split": {"source": "clinc150", "number": 1}}}, "data.split: it was made with"),
    ],
)
def test_what_was_split_in_another_way_is_refused_before_data_is_read(
    before: Path, tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    recipe = Recipe.model_validate(recipe_from(before, **parts))

    with pytest.raises(RecipeError, match=message):
        open_workshop(recipe, tmp_path / "no data", tmp_path / "run")


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("meta-sgd", "needs a size for each element"),
        ("anil", "needs layers that stay as they are"),
    ],
)
def test_an_algorithm_that_the_artifacts_rule_does_not_fit_is_refused(
    before: Path, algorithm: str, message: str
) -> None:
    recipe = Recipe.model_validate(recipe_from(before, outer=OUTER | {"algorithm": algorithm}))

    with pytest.raises(RecipeError, match=message):
        further_learner(recipe, load_artifact(before).model)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"inner": {"rank": 2}}, "inner.rank: an artifact brings its own inner rule"),
        ({"model": {"artifact": "a", "base": "b"}}, "model.base: an artifact brings its own base"),
    ],
)
def test_what_an_artifact_brings_cannot_be_said(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(recipe_from(Path("a"), **parts))


def test_a_folder_without_a_rule_is_no_artifact(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path, recipe_from(tmp_path)) == 2

    assert "is no artifact, as it has no inner_rule.json" in capsys.readouterr().err
