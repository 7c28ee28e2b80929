"""A source's classes in three: every class on one side, the same ones for everybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_run import RECIPE

from meta_training.corpus import load_corpus
from meta_training.recipe import Recipe, RecipeError, load_recipe
from meta_training.recipe_parts import DataPart
from meta_training.tasks.sources import DataError, Intent
from meta_training.tasks.split import FILES, SplitPart, split_intents

INTENTS = [Intent("clinc150", f"d{i % 3}", f"class {i:02d}", ("a", "b")) for i in range(17)]
OTHER = Intent("snips", "d0", "class 00", ("a", "b"))


def sides(number: int = 0, intents: list[Intent] = INTENTS) -> dict[str, list[str]]:
    found = split_intents(intents, SplitPart(source="clinc150", number=number), Path())
    return {side: [intent.name for intent in own] for side, own in found.items()}


def write_lists(folder: Path, number: str, **lists: list[str]) -> None:
    (folder / number).mkdir(parents=True)
    for kind, names in lists.items():
        (folder / number / f"labels.{kind}.txt").write_text("\n".join(names) + "\n", "utf-8")


def test_every_class_is_on_one_side() -> None:
    found = sides()
    assert {side: len(names) for side, names in found.items()} == {
        "train": 7,
        "validation": 5,
        "held_out": 5,
    }
    assert sorted(name for names in found.values() for name in names) == [i.name for i in INTENTS]


def test_fifty_of_150() -> None:
    many = [Intent("clinc150", "d", str(i), ("a",)) for i in range(150)]
    assert {len(names) for names in sides(intents=many).values()} == {50}


def test_a_split_is_the_same_for_everybody() -> None:
    """Whatever the file's order; and it stays what it was, as results are kept."""
    assert {k: sorted(v) for k, v in sides(intents=INTENTS[::-1]).items()} == sides()
    assert sides(0)["held_out"] == ["class 02", "class 09", "class 14", "class 15", "class 16"]


def test_other_numbers_are_other_splits() -> None:
    assert len({tuple(sides(number)["held_out"]) for number in range(5)}) == 5


def test_other_sources_are_left_out() -> None:
    found = split_intents([*INTENTS, OTHER], SplitPart(source="clinc150"), Path())
    assert OTHER not in [intent for own in found.values() for intent in own]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("snips", "snips has 1 classes, which leaves 0 for one of training"),
        ("clinc", "splits clinc, which the data does not have; it has clinc150, snips"),
    ],
)
def test_what_cannot_be_split_is_refused(source: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        split_intents([*INTENTS, OTHER], SplitPart(source=source), Path())


def test_fourteen_classes_are_too_few() -> None:
    with pytest.raises(DataError, match="has 14 classes, which leaves 4"):
        sides(intents=INTENTS[:14])


def test_lists_of_ones_own_are_taken(tmp_path: Path) -> None:
    names = [intent.name for intent in INTENTS]
    write_lists(tmp_path / "own", "03", train=names[:6], valid=names[6:11], test=names[11:16])
    part = SplitPart(source="clinc150", number=2, lists="own")
    found = split_intents(INTENTS, part, tmp_path)
    assert [len(own) for own in found.values()] == [6, 5, 5]
    assert [intent.name for intent in found["held_out"]] == names[11:16]
    with pytest.raises(DataError, match=r"cannot read .*04/labels\.train\.txt"):
        split_intents(INTENTS, part.model_copy(update={"number": 3}), tmp_path)


@pytest.mark.parametrize(
    ("kind", "added", "words"),
    [
        ("test", "class 99", "'class 99' is no class of clinc150"),
        ("test", "class 00", "'class 00' is on another side too"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    tmp_path: Path, kind: str, added: str, words: str
) -> None:
    names = [intent.name for intent in INTENTS]
    lists = {"train": names[:6], "valid": names[6:11], "test": names[11:16]}
    write_lists(tmp_path, "01", **lists | {kind: [*lists[kind], added]})
    with pytest.raises(DataError, match=words):
        split_intents(INTENTS, SplitPart(source="clinc150", lists="."), tmp_path)


def test_the_files_are_named_as_the_papers_authors_name_them() -> None:
    assert list(FILES.values()) == ["train", "valid", "test"]


def test_a_corpus_has_the_splits_classes_and_no_others(data: Path) -> None:
    part = DataPart.model_validate({"split": {"source": "clinc150", "number": 1}})
    corpus = load_corpus(data, part, 0)
    found = (corpus.train_intents, corpus.validation_intents, corpus.held_out_intents)
    assert [len(own) for own in found] == [9, 8, 8]
    assert {intent.source for own in found for intent in own} == {"clinc150"}
    assert len({(i.domain, i.name) for own in found for i in own}) == 25
    trained = {question for intent in corpus.train_intents for question in intent.questions}
    held_out = {question for intent in corpus.held_out_intents for question in intent.questions}
    assert not trained & held_out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"validation": ["hint3"]}, "leave held_out and validation out"),
        ({"held_out": {"snips": "all"}}, "leave held_out and validation out"),
        ({"public": False, "tasks": []}, "split is of a public source"),
    ],
)
def test_one_way_to_hold_out(more: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataPart.model_validate({"split": {"source": "clinc150"}} | more)


def test_a_recipe_with_another_split() -> None:
    recipe = Recipe.model_validate(RECIPE | {"data": {"split": {"source": "clinc150"}}})
    other = recipe.with_split(3)
    assert (other.name, other.data.split) == (
        "mini-split-3",
        SplitPart(source="clinc150", number=3),
    )
    with pytest.raises(RecipeError, match=r"mini has no data\.split"):
        Recipe.model_validate(RECIPE).with_split(3)


def test_the_published_recipe_is_of_clinc150s_classes() -> None:
    folder = Path(__file__).parents[2] / "meta_training" / "recipes"
    split = load_recipe(folder / "clinc150.yaml").data.split
    assert split == SplitPart(source="clinc150")
