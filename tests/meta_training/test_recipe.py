"""A recipe is read whole or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meta_training import recipe as room
from meta_training.recipe import Recipe, RecipeError, load_recipe
from meta_training.record import keep_record

SHIPPED = [
    path
    for path in sorted((Path(room.__file__).parent / "recipes").glob("*.yaml"))
    if not path.name.startswith("search-")
]


def refused(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_recipes_are_shipped() -> None:
    assert "innerloop-tiny.yaml" in [path.name for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_under_its_own_name(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.data.held_out or recipe.data.split, "nothing would be left to report on"


def test_a_recipe_survives_the_report(recipe: Recipe) -> None:
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_name_alone_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: bare\npretrain: {learning_rate: 1e-3}\n", encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.inner.scope == "activated"
    assert recipe.pretrain.learning_rate == 1e-3  # YAML 1.1 reads this number as text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name: a\ncolour: red\n", "colour: Extra inputs"),
        ("name: a\nouter: {step: 3}\n", "outer.step: Extra inputs"),
        ("name: a\nmodel: {layers: many}\n", "model.layers: Input should be a valid integer"),
        ("name: a\nouter: {algorithm: magic}\n", "outer.algorithm: Input should be 'maml'"),
        ("name: a\ndata: {held_out: {clinc150: banking}}\n", "data.held_out.clinc150"),
        ("name: a\ndata: {held_out_persona_share: 1.5}\n", "held_out_persona_share: Input"),
        ("name: a\nouter: {families: {lable: 1}}\n", "no family is called 'lable'"),
        ("name: a\nouter: {families: {label: 0}}\n", "no family has a weight"),
        (
            "name: a\nouter: {algorithm: meta-sgd}\ninner: {sizes: tensor}\n",
            "inner.sizes: meta-sgd learns a size for each element",
        ),
        (
            "name: a\nouter: {algorithm: reptile, gradient: adjoint}\n",
            "outer.gradient: reptile has no exact gradient",
        ),
        (
            "name: a\nouter: {algorithm: fomaml, first_order_share: 0.5}\n",
            "outer.first_order_share: it is for maml, maml++, meta-sgd, anil, not for fomaml",
        ),
        (
            "name: a\nouter: {algorithm: siamese, base: frozen}\n",
            "outer.base: siamese learns nothing but the base",
        ),
        (
            "name: a\nouter: {base: lora, base_modules: [down_proj]}\n",
            "outer.base_modules: the base is lora",
        ),
        (
            "name: a\nouter: {algorithm: siamese}\ndata: {tasks: [{path: t.jsonl, form: pairs}]}\n",
            "outer.families: siamese compares a question with examples of the same question, which "
            "pairs does not have: set pairs to 0",
        ),
        ("name: a\nouter: {tasks: 0}\n", "outer.tasks: Input should be greater than or equal to 1"),
        ("name: a\nouter: {families: {label: -1}}\n", "outer.families.label: Input should be gr"),
        ("name: a\nouter: {adapter_learning_rate: -1}\n", "outer.adapter_learning_rate: Input"),
        ("name: a\nouter: {clip: .nan}\n", "outer.clip: Input should be a finite number"),
        ("name: a\ninner: {first_step_size: 0}\n", "inner.first_step_size: Input should be gr"),
        ("name: a\ninner: {steps: 0}\n", "inner.steps: Input should be greater than or equal"),
        ("name: a\npretrain: {rows: -2}\n", "pretrain.rows: Input should be greater than"),
        ("name: a\nouter: {first_order_share: 2}\n", "outer.first_order_share: Input should be"),
        ("name: a\ninner: {top_layers: 0}\n", "inner.top_layers: Input should be"),
        ("seed: 1\n", "name: Field required"),
        ("", "(top)"),
        ("- name\n", "(top)"),
        ("name: [a\n", "is not YAML"),
        ("name: {}\n", "name: Input should be a valid string"),
        (b"name: caf\xe9\n", "cannot read the recipe"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert words in refused(tmp_path, content)


def test_every_mistake_is_listed(tmp_path: Path) -> None:
    message = refused(tmp_path, "name: a\nseed: x\nmodel: {heads: y, wings: 2}\n")
    assert len(message.splitlines()) == 4


def test_a_missing_recipe_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RecipeError, match="cannot read the recipe") as caught:
            load_recipe(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "sizes", "top_layers"),
    [("maml", "tensor", None), ("meta-sgd", "element", None), ("anil", "tensor", 1)],
)
def test_the_inner_part_is_what_the_algorithm_needs(
    recipe: Recipe, algorithm: str, sizes: str, top_layers: int | None
) -> None:
    session = recipe.with_algorithm(algorithm).session
    assert (session.sizes, session.top_layers) == (sizes, top_layers)
    assert session.rank == recipe.inner.rank


def test_another_algorithm_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: a\nouter: {gradient: adjoint}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"a with algorithm fomaml is not .*\n.*outer.gradient"):
        load_recipe(path).with_algorithm("fomaml")


def test_a_record_from_before_a_field_was_there_means_its_default(tmp_path: Path) -> None:
    recipe = Recipe(name="a")
    keep_record(recipe, tmp_path, {"inner", "outer"})
    path = tmp_path / "recipe.json"
    kept = json.loads(path.read_text("utf-8"))
    newer = {"outer.gradient", "outer.base", "outer.first_order_share", "inner.sizes"}
    path.write_text(json.dumps({k: v for k, v in kept.items() if k not in newer}), "utf-8")
    keep_record(recipe, tmp_path, {"inner", "outer"})
    for change in ({"gradient": "adjoint"}, {"base": "lora"}):
        other = recipe.model_copy(update={"outer": recipe.outer.model_copy(update=change)})
        with pytest.raises(RecipeError, match=f"outer.{next(iter(change))}"):
            keep_record(other, tmp_path, {"inner", "outer"})


def test_families_that_a_record_does_not_name_are_no_default(tmp_path: Path) -> None:
    label = Recipe.model_validate({"name": "a", "outer": {"families": {"label": 1.0}}})
    keep_record(label, tmp_path, {"outer"})
    with pytest.raises(RecipeError, match=r"outer\.families"):
        keep_record(Recipe(name="a"), tmp_path, {"outer"})


def test_a_recipe_cannot_be_changed(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 4  # type: ignore[misc]
