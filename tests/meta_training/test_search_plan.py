"""A search is read whole or refused by name, and its values stay within its space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mini_run import RECIPE

from meta_training import recipe as recipes
from meta_training.recipe import RecipeError
from meta_training.search.plan import (
    Range,
    Search,
    SearchError,
    changed,
    keep_plan,
    load_search,
    value_of,
)
from meta_training.search.study import FEWEST, Study

SHIPPED = sorted((Path(recipes.__file__).parent / "recipes").glob("search-*.yaml"))
SPACE: dict[str, Any] = {"inner.rank": [2, 4], "outer.clip": {"low": 0.1, "high": 10, "log": True}}


def written(folder: Path, **content: Any) -> Path:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    path = folder / "search.yaml"
    whole = {"recipe": "recipe.yaml", "space": SPACE} | content
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def loaded(folder: Path, **content: Any) -> Search:
    return load_search(written(folder, **content))


def refused(folder: Path, **content: Any) -> str:
    path = written(folder, **content)
    with pytest.raises(SearchError) as caught:
        load_search(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_search_loads(path: Path) -> None:
    search = load_search(path)
    assert path.with_name(search.plan.recipe.name).exists()
    assert search.plan.judged


def test_searches_are_shipped() -> None:
    assert "search-small.yaml" in [path.name for path in SHIPPED]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"space": {}}, "space: Dictionary should have at least 1"),
        ({"sampler": "magic"}, "sampler: Input should be 'random', 'tpe'"),
        ({"trials": 0}, "trials: Input should be greater"),
        ({"stop": "median"}, "stop: median needs judge_every"),
        ({"stop": "median", "judge_every": 4}, "judge_every 4 leaves nothing to stop"),
        ({"cells": ["label 5-way"]}, "no cell is called 'label 5-way': write it as label"),
        ({"cells": ["label 5-way 5-shot"] * 2}, "a cell is named twice"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, **content)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("inner.rnak", [1, 2], "did you mean inner.rank?"),
        ("pretrain.steps", [1, 2], "pretrain.steps is no inner.* or outer.* field"),
        ("inner", [1, 2], "inner is no inner.* or outer.* field"),
        ("outer.families.lable", [0, 1], "did you mean outer.families.label?"),
        ("inner.gate", [True, False], "inner.gate changes nothing"),
        ("inner.scope", ["full", "half"], "inner.scope: 'half' is no value"),
        ("inner.scope", {"low": 1, "high": 2}, "inner.scope is no number: list its choices"),
        ("inner.rank", ["two", 4], "inner.rank: 'two' is no value"),
        ("inner.rank", [4], "inner.rank needs two choices"),
        ("inner.rank", [4, "4"], "inner.rank needs two choices"),
        ("inner.rank", 4, "inner.rank.choices: Input should be a valid list"),
        ("inner.rank", {"low": 2, "high": 4.5}, "inner.rank.high: 4.5 is no whole number"),
        ("inner.rank", {"low": 2}, "inner.rank.range.high: Field required"),
        ("inner.rank", {"low": 2, "hihg": 4}, "inner.rank.range.hihg: Extra inputs"),
        ("inner.rank", {"low": 4, "high": 4}, "low 4 must be below high 4"),
        ("inner.rank", {"low": 2, "high": 5, "step": 2}, "no number of steps of 2 leads from 2"),
        ("outer.clip", {"low": 0, "high": 1, "log": True}, "log needs low above 0"),
        ("outer.clip", {"low": 1, "high": 3, "log": True, "step": 1}, "log and step do not go"),
        ("outer.margin", {"low": 0.5, "high": 3}, "outer.margin: 3.0 is no value"),
        ("outer.algorithm", ["maml", "matching"], "matching learns no adapter"),
        ("outer.families.label", {"low": 0, "high": "much"}, "label.range.high: Input should be"),
    ],
)
def test_what_is_wrong_in_the_space_is_named(
    tmp_path: Path, name: str, values: Any, words: str
) -> None:
    assert words in refused(tmp_path, space={name: values})


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="cannot read the search"):
        load_search(tmp_path / "none.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("space: [", encoding="utf-8")
    with pytest.raises(SearchError, match="is not YAML"):
        load_search(path)
    path.write_text("- 1", encoding="utf-8")
    with pytest.raises(SearchError, match="not a usable search"):
        load_search(path)


def test_a_recipe_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        loaded(tmp_path, recipe="none.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text("utf-8").replace("0.1", "1e-3"), encoding="utf-8")
    found = load_search(path).space["outer.clip"]
    assert isinstance(found, Range)
    assert found.low == 1e-3
    learning = loaded(tmp_path, space={"outer.base_learning_rate": ["1e-3", 2e-3]})
    assert learning.space["outer.base_learning_rate"] == [1e-3, 2e-3]


def test_changed_changes_what_it_is_told_and_no_more(tmp_path: Path) -> None:
    recipe = loaded(tmp_path).recipe
    other = changed(recipe, {"inner.rank": 4, "outer.families.persona": 0.0})
    assert other.inner.rank == 4
    assert other.outer.families["persona"] == 0.0
    assert changed(other, {"inner.rank": 2, "outer.families.persona": 0.3}) == recipe
    with pytest.raises(RecipeError, match="meta-sgd learns a size for each element"):
        changed(recipe, {"outer.algorithm": "meta-sgd", "inner.sizes": "tensor"})


def test_a_changed_search_is_refused_by_name_and_more_trials_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    keep_plan(loaded(tmp_path, trials=3), folder)
    keep_plan(loaded(tmp_path, trials=30), folder)
    with pytest.raises(SearchError, match='made with sampler "tpe", the search has "random"'):
        keep_plan(loaded(tmp_path, sampler="random"), folder)
    wider = SPACE | {"inner.rank": [2, 4, 8]}
    with pytest.raises(SearchError, match=r"space\.inner\.rank \[2, 4\], the search has \[2, 4, 8"):
        keep_plan(loaded(tmp_path, space=wider), folder)
    with pytest.raises(SearchError, match=r"space\.inner\.steps null"):
        keep_plan(loaded(tmp_path, space=SPACE | {"inner.steps": [1, 2]}), folder)
    (folder / "search.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(SearchError, match="cannot be read"):
        keep_plan(loaded(tmp_path), folder)


WIDE: dict[str, Any] = {
    "inner.rank": {"low": 2, "high": 8, "step": 2},
    "inner.steps": [1, 2, 3],
    "inner.targets": [["q_proj"], ["q_proj", "v_proj"]],
    "inner.top_layers": [None, 1],
    "outer.clip": {"low": 0.1, "high": 10, "log": True},
    "outer.locality_weight": {"low": 0, "high": 1, "step": 0.1},
    "outer.families.persona": {"low": 0, "high": 1},
}


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "qmc"])
def test_values_are_the_recipes_own_kinds_and_do_not_depend_on_stops(
    tmp_path: Path, sampler: str
) -> None:
    """Two trials a process, and all in one: the same values, each one that the recipe takes."""
    search = loaded(tmp_path, sampler=sampler, space=WIDE, startup=2)
    drawn = []
    for name, at_once in (("one", 6), ("two", 2)):
        for _ in range(0, 6, at_once):
            study = Study(search, _made(tmp_path / name))
            if not study.has_reference:
                study.tell_reference({})
            for _ in range(at_once):
                trial = study.next()
                settings = study.settings(trial)
                changed(search.recipe, settings)
                study.tell(
                    trial, abs(settings["outer.locality_weight"] - 0.3) + settings["inner.rank"]
                )
        drawn.append([each.settings for each in study.drawn()])
    assert drawn[0] == drawn[1]
    assert len({json.dumps(settings) for settings in drawn[0]}) > 1
    for settings in drawn[0]:
        assert settings["inner.rank"] in (2, 4, 6, 8)
        assert isinstance(settings["inner.rank"], int)
        assert settings["inner.targets"] in WIDE["inner.targets"]
        assert isinstance(settings["outer.families.persona"], float)


def test_seeds_draw_other_values(tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        study = Study(loaded(tmp_path, sampler="random", seed=seed), _made(tmp_path / str(seed)))
        study.tell_reference({})
        found.append(study.settings(study.next()))
    assert found[0] != found[1]


def test_a_trial_under_way_is_the_next_one_in_another_process(tmp_path: Path) -> None:
    search = loaded(tmp_path, stop="median", judge_every=2, startup=1)
    folder = _made(tmp_path / "out")
    study = Study(search, folder)
    study.tell_reference({2: 1.2, 4: 1.0})
    first = study.next()
    study.report(first, 2, 1.1)
    with (folder / "journal.log").open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # killed while it wrote
    again = Study(search, folder)
    same = again.next()
    assert same.number == first.number == 1
    assert again.settings(same) == study.settings(first)
    again.report(same, 2, 5.0)  # it was judged already
    assert not same.should_prune()
    again.tell(same, 0.9)
    assert again.finished() == 1
    assert again.next().number == 2


def test_the_median_rule_stops_what_is_behind(tmp_path: Path) -> None:
    search = loaded(tmp_path, stop="median", judge_every=2, startup=1)
    study = Study(search, _made(tmp_path / "out"))
    study.tell_reference({2: 1.2, 4: 1.0})
    trial = study.next()
    study.report(trial, 2, 1.3)
    assert trial.should_prune()
    study.tell(trial, None)
    ahead = study.next()
    study.report(ahead, 2, 1.1)
    assert not ahead.should_prune()
    study.tell(ahead, None, "it broke")
    assert [(each.state, each.why) for each in study.drawn()] == [
        ("stopped", ""),
        ("failed", "it broke"),
    ]


def test_halving_lets_one_of_three_go_on(tmp_path: Path) -> None:
    search = loaded(tmp_path, stop="halving", judge_every=1)
    study = Study(search, _made(tmp_path / "out"))
    study.tell_reference({})
    stopped = []
    for score in (1.0, 1.1, 1.2, 0.9, 1.3, 1.4):
        trial = study.next()
        study.report(trial, 1, score)
        stopped.append(trial.should_prune())
        study.tell(trial, None if stopped[-1] else score)
    assert stopped == [False, True, True, False, True, True]


def test_importance_goes_to_what_the_score_depends_on(tmp_path: Path) -> None:
    study = Study(loaded(tmp_path, sampler="qmc"), _made(tmp_path / "out"))
    study.tell_reference({})
    for done in range(12):
        assert bool(study.importances()) == (done + 1 >= FEWEST)  # the recipe's own are one more
        trial = study.next()
        study.tell(trial, 1.0 + study.settings(trial)["outer.clip"])
    found = study.importances()
    assert found["outer.clip"] > 0.8
    assert sum(found.values()) == pytest.approx(1.0)


def test_settings_outside_the_space_are_no_trial_that_samplers_learn_from(tmp_path: Path) -> None:
    search = loaded(tmp_path, space={"inner.rank": [3, 4], "inner.steps": [1, 2]})
    assert value_of(search.recipe, "inner.rank") == 2
    study = Study(search, _made(tmp_path / "out"))
    study.tell_reference({4: 1.0})
    assert study.has_reference
    assert study.finished() == 0
    assert study.next().number == 1


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = _made(tmp_path / "out")
    (folder / "journal.log").write_text("dear diary\n", encoding="utf-8")
    with pytest.raises(SearchError, match="take another --out"):
        Study(loaded(tmp_path), folder)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
