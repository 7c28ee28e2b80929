"""One's own tasks: every form is read, split as a whole, and refused by file, line and field."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mini_data import write_rows

from meta_training.corpus import held_out_only, load_corpus
from meta_training.recipe import Recipe
from meta_training.recipe_parts import DataPart
from meta_training.tasks.episodes import Shape
from meta_training.tasks.families import Families
from meta_training.tasks.formats import format_tasks
from meta_training.tasks.own import Material, as_typed, load_tasks
from meta_training.tasks.part import FORMS, TaskPart
from meta_training.tasks.rows import rows_of
from meta_training.tasks.sources import DataError, Intent, Pair, PairTask

QUESTIONS = [f"how do I {verb} it number {i}" for i in range(6) for verb in ("send", "fix")]


def part(**values: Any) -> TaskPart:
    return TaskPart.model_validate({"path": "own.jsonl", "form": "pairs"} | values)


def load(folder: Path, rows: list[Any], *parts: TaskPart) -> dict[Any, Material]:
    write_rows(folder / "own.jsonl", rows)
    return load_tasks(folder, parts, seed=0)


def labels(classes: int = 10, texts: int = 3) -> list[dict[str, Any]]:
    return [
        {"text": f"text {i} of {name}", "label": f"class {name}", "lang": "de" if i else "en"}
        for name in range(classes)
        for i in range(texts)
    ]


def names(material: Material) -> set[str]:
    return {intent.name for intent in material.intents} | {task.name for task in material.pairs}


def test_classes_are_split_as_a_whole(tmp_path: Path) -> None:
    found = load(tmp_path, labels(), part(form="labels", held_out=0.3, validation=0.2))
    split = {use: names(material) for use, material in found.items()}
    assert {use: len(own) for use, own in split.items()} == {
        "train": 5,
        "validation": 2,
        "held_out": 3,
    }
    assert len(set.union(*split.values())) == 10
    assert all(len(i.questions) == 3 for m in found.values() for i in m.intents)
    again = load_tasks(tmp_path, [part(form="labels", held_out=0.3, validation=0.2)], seed=0)
    assert {use: names(material) for use, material in again.items()} == split


def test_only_the_rows_that_count_are_read(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        labels(),
        part(form="labels", where={"lang": "de"}, held_out=0.0, validation=0.0),
    )
    assert {q.split()[1] for i in found["train"].intents for q in i.questions} == {"1", "2"}


def test_replies_of_one_place_stay_together(tmp_path: Path) -> None:
    rows = [
        {"q": f"Is there a {thing}?", "text": "unused", "a": f"{place}: {thing}", "where": place}
        for place in ("inn", "pub", "spa")
        for thing in ("bar", "lift", "pool", "garden")
    ]
    own = part(
        form="replies",
        columns={"text": "q", "answer": "a", "domain": "where"},
        as_typed=True,
        held_out=0.34,
        validation=0.0,
    )
    found = load(tmp_path, rows, own)
    assert {i.domain for i in found["held_out"].intents}.isdisjoint(
        i.domain for i in found["train"].intents
    )
    assert len(found["held_out"].intents) == 4
    intent = found["train"].intents[0]
    assert intent.answer == intent.name
    assert intent.questions == (intent.questions[0], as_typed(intent.questions[0]))
    families = Families(found["train"].intents, [], [], [], [])
    for seed in range(20):
        episode = families.draw("replies", Shape(4, 1, 1), (0, 0), random.Random(seed))
        assert len({turn.answer.split(":")[0] for turn in episode.support}) == 1
        assert {t.answer for t in episode.support} == {t.answer for t in episode.query}


def test_pairs_keep_their_patterns_and_preferences_what_they_reject(tmp_path: Path) -> None:
    rows = [
        {
            "task": f"rule {i % 4}",
            "prompt": f"say {i}",
            "completion": f"<{i}>",
            "pattern": "<.*>",
            "chosen": f"yes {i}",
            "rejected": f"no {i}",
        }
        for i in range(24)
    ]
    found = load(tmp_path, rows, part(family="angles"), part(form="preferences", name="judged"))
    tasks = found["train"].pairs
    assert {task.family for task in tasks} == {"angles", "preferences"}
    families = Families([], [], [], [], [], tasks)
    shown = families.draw("angles", Shape(1, 3, 2), (0, 0), random.Random(0))
    assert len(shown.support) == 3
    assert all(re.fullmatch(turn.pattern, turn.answer) for turn in shown.query)
    judged = families.draw("preferences", Shape(1, 3, 2), (0, 0), random.Random(0))
    assert all(t.rejected == t.answer.replace("yes", "no") for t in judged.support + judged.query)
    prompts = [turn.question for turn in shown.support + shown.query]
    assert len(prompts) == len(set(prompts))


def test_parallel_sentences_are_a_task_a_language(tmp_path: Path) -> None:
    rows = [
        {"pid": i, "lang": lang, "text": f"{lang} sentence {i}"}
        for i in range(4)
        for lang in ("en", "de", "it")
        if (i, lang) != (3, "it")
    ]
    own = part(form="parallel", columns={"id": "pid"}, prompt="Translate: {}", held_out=["it"])
    found = load(tmp_path, rows, own)
    [italian] = found["held_out"].pairs
    assert italian.name == "it"
    assert [(pair.prompt, pair.completion) for pair in italian.pairs] == [
        (f"Translate: en sentence {i}", f"it sentence {i}") for i in range(3)
    ]


def test_a_dialogue_is_held_out_with_its_domain(tmp_path: Path) -> None:
    rows = [
        {
            "domain": domain,
            "turns": [
                {"role": "user", "text": f"{domain} question {i}"},
                {"role": "assistant", "text": f"{domain} answer {i}"},
            ],
        }
        for domain in ("bank", "inn", "train")
        for i in range(3)
    ]
    found = load(tmp_path, rows, part(form="dialogues", held_out=["inn"], validation=["bank"]))
    assert [task.name for task in found["held_out"].pairs] == ["inn"]
    assert {d.turns[0][1].split()[0] for d in found["held_out"].dialogues} == {"inn"}
    assert {d.turns[0][1].split()[0] for d in found["train"].dialogues} == {"train"}
    assert found["train"].pairs[0].pairs[0].completion == "train answer 0"


def test_glue_pairs_are_asked_from_two_columns(tmp_path: Path) -> None:
    lines = ["label\tsentence1\tsentence2"]
    lines += [f"{i % 2}\tfirst {i}\tsecond {i}" for i in range(8)]
    (tmp_path / "mrpc.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    own = part(path="mrpc.tsv", form="labels", prompt="{sentence1} / {sentence2}", held_out=0.0)
    found = load_tasks(tmp_path, [own], seed=0)
    intents = [intent for material in found.values() for intent in material.intents]
    assert sorted(intent.name for intent in intents) == ["0", "1"]
    assert "first 0 / second 0" in intents[0].questions + intents[1].questions


def test_every_form_rule_is_kept_by_its_own_answers_and_by_few_others() -> None:
    said = [(f"question {i}", f"The answer is number {i}, my friend.") for i in range(30)]
    tasks = format_tasks(said, seed=0)
    assert len(tasks) > 30
    plain = said[0][1]
    for name, pairs in tasks.items():
        assert all(re.fullmatch(p.pattern, p.completion) for p in pairs), name
        assert not re.fullmatch(pairs[0].pattern, plain), name


def test_a_dataset_of_a_folder_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": QUESTIONS, "label": [i % 2 for i in range(len(QUESTIONS))]}
    folder = tmp_path / "reviews"
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "train.parquet")
    found = load_tasks(tmp_path, [part(path=None, dataset="reviews", form="labels")], seed=0)
    assert set.union(*map(names, found.values())) == {"bad", "good"}


def test_a_dataset_that_is_not_to_be_had_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    own = part(path=None, dataset="no/such-dataset-at-all", form="labels")
    with pytest.raises(DataError, match=r"no/such-dataset-at-all .*cannot be loaded"):
        load_tasks(tmp_path, [own], seed=0)


@pytest.mark.parametrize(
    ("rows", "values", "words"),
    [
        ([{"text": "a"}], {"form": "labels"}, r"own.jsonl:1: field 'label'"),
        ([{"task": "t", "prompt": "a"}], {}, r"own.jsonl:1: field 'completion'"),
        ([{"task": "t", "prompt": "a", "completion": " "}], {}, "field 'completion'"),
        ([{"task": "t", "prompt": "a", "completion": "b"}], {}, "no task has 2 prompts"),
        (
            [{"task": "t", "prompt": "a", "completion": "b", "pattern": "("}],
            {},
            r"own.jsonl:1: field 'pattern' is no regular expression",
        ),
        ([["a"]], {}, "expected an object"),
        (labels(), {"form": "labels", "where": {"lang": "fr"}}, "no row has"),
        (labels(), {"form": "labels", "held_out": ["class 99"]}, "held_out names class 99"),
        ([{"turns": []}], {"form": "dialogues"}, "field 'turns'"),
        ([{"id": "1", "lang": "de", "text": "ja"}], {"form": "parallel"}, "in 'en' and another"),
        ([], {}, "no row has anything"),
        ([{"text": float("nan"), "label": "a"}], {"form": "labels"}, "own.jsonl:1: not JSON: NaN"),
        (labels(1), {"form": "labels"}, "there is one label of 2 texts or more"),
        (
            labels(2),
            {"form": "labels", "held_out": 0.5, "validation": 0.0},
            "training is left with one label",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, rows: list[Any], values: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        load(tmp_path, rows, part(**values))


@pytest.mark.parametrize("name", ["own.jsonl", "own.tsv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_files_as_spreadsheets_write_them_are_read(tmp_path: Path, name: str, mark: bytes) -> None:
    """With a byte order mark, and empty lines at the end."""
    rows = labels(3)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".tsv"):
        lines = ["\t".join(str(row[key]) for key in ("text", "label")) for row in rows]
        text = "\n".join(["text\tlabel", *lines, ""])
    (tmp_path / name).write_bytes(mark + text.encode() + b"\n\n")
    found = load_tasks(tmp_path, [part(path=name, form="labels", held_out=0.0)], seed=0)
    assert sum(len(i.questions) for m in found.values() for i in m.intents) == 9


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("own.jsonl", b'{"text": "a", "label": "b"}\n{"text": "\xe9"}\n', "save the file as UTF-8"),
        ("own.tsv", b"text\tlabel\nna\xefve\ta\n", "save the file as UTF-8"),
        (
            "own.tsv",
            b"text\tlabel\n" + b"a" * 140_000 + b"\tb\n",
            "own.tsv:2: cannot be read as TSV",
        ),
        ("own.jsonl", b'{"a": 1}\n\n{"a": 2}\n', "jsonl:2: an empty line, and more below it"),
    ],
)
def test_what_is_wrong_with_the_bytes_of_a_file_is_named(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    own = part(path=name, form="labels")
    with pytest.raises(DataError, match=words):
        list(rows_of(tmp_path, own, "own"))


def test_texts_of_two_labels_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path, [*labels(3), {"text": "text 0 of 0", "label": "class 1"}], part(form="labels"))
    said = capsys.readouterr().err
    assert "own.jsonl: 1 texts have more than one label, such as 'text 0 of 0'" in said


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"own\.jsonl is missing: give --data"):
        load_tasks(tmp_path, [part()], seed=0)


def test_episodes_are_no_larger_than_the_material() -> None:
    intents = [Intent("s", "d", str(n), tuple(f"{n} {i}" for i in range(n + 2))) for n in range(5)]
    families = Families(intents, [], [], ["one", "two", "three", "four", "five", "six"], [])
    assert families.fitting("label", Shape(20, 5, 1)) == Shape(3, 3, 1), "words, then questions"
    tasks = [PairTask("f", "s", str(n), (Pair("a", "b"),) * (n + 2)) for n in range(3)]
    pairs = Families([], [], [], [], [], tasks)
    assert pairs.fitting("f", Shape(5, 9, 3)) == Shape(1, 3, 3)


def test_what_is_too_long_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*labels(4), {"text": "word " * 61, "label": "class 0", "notes": "x " * 99}]
    found = load(tmp_path, rows, part(form="labels"))
    assert sum(len(i.questions) for m in found.values() for i in m.intents) == 12
    assert "own: 1 of 13 rows left out, longer than 60 words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dataset": "x"}, "either path or dataset"),
        ({"path": None}, "either path or dataset"),
        ({"form": "poems"}, "form"),
        ({"columns": {"text": "a"}}, "columns.text: pairs has the fields task, prompt"),
        ({"prompt": "no blank"}, "prompt: write {}"),
        ({"form": "parallel", "prompt": "{text}"}, "prompt: parallel"),
        ({"family": "persona"}, "one of our own"),
        ({"held_out": 1.5}, "a share is between 0 and 1"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_part_that_says_nonsense_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        part(**values)


def test_a_recipe_with_own_tasks_trains_on_their_families() -> None:
    own = [{"path": "a.jsonl", "form": "labels"}, {"path": "b.jsonl", "form": "formats"}]
    recipe = Recipe.model_validate({"name": "own", "data": {"tasks": own}})
    assert recipe.outer.families == {"label": 1.0, "formats": 1.0}
    assert not recipe.data.reads_public
    both = Recipe.model_validate({"name": "own", "data": {"tasks": own, "public": True}})
    assert both.outer.families["persona"] == 0.3
    assert both.outer.families["formats"] == 1.0
    assert Recipe.model_validate(both.model_dump(mode="json")) == both
    with pytest.raises(ValueError, match="no family is called 'poems'; there are format"):
        Recipe.model_validate(
            {"name": "own", "data": {"tasks": own}, "outer": {"families": {"poems": 1}}}
        )


def test_a_recipe_with_a_base_trains_none_from_scratch() -> None:
    recipe = Recipe.model_validate({"name": "own", "model": {"base": "some/model"}})
    assert recipe.pretrain.steps == 0
    assert recipe.inner.targets == []
    said = {"name": "own", "model": {"base": "some/model"}, "pretrain": {"steps": 7}}
    assert Recipe.model_validate(said).pretrain.steps == 7
    with pytest.raises(ValueError, match=r"inner\.targets: name at least one"):
        Recipe.model_validate({"name": "own", "inner": {"targets": []}})


def test_public_and_own_tasks_stand_side_by_side(data: Path, recipe: Recipe) -> None:
    write_rows(data / "own-beside.jsonl", labels())
    own = part(path="own-beside.jsonl", form="labels")
    beside = DataPart(**{**recipe.data.model_dump(), "tasks": [own], "public": True})
    public = load_corpus(data, recipe.data, recipe.seed)
    both = load_corpus(data, beside, recipe.seed)
    assert both.train_intents[: len(public.train_intents)] == public.train_intents
    assert {i.source for i in both.held_out_intents} - {i.source for i in public.held_out_intents}
    alone = load_corpus(data, DataPart(tasks=[own]), recipe.seed)
    assert {i.source for i in alone.train_intents} == {"own-beside"}
    assert not alone.train_dialogues
    everything = held_out_only(data, [own], seed=0)
    assert len(everything.held_out_intents) == 10


def test_neither_own_nor_public_tasks_hold_out_what_the_other_trains_on(
    data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """Texts differ in capitals and punctuation only, as two people type the same question."""
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    public = load_corpus(folder, recipe.data, recipe.seed)
    trained = [i.questions[0].upper() for i in public.train_intents[:2]]
    kept, persona = public.held_out_intents[0], public.held_out_personas[0]
    held_out = [kept.questions[0].upper(), persona.questions[0].strip("?"), public.test_replies[0]]
    rows = [
        {"text": text, "label": label}
        for label, texts in {
            "mine": ["one of mine", "two of mine", *held_out],
            "more": ["one more of mine", "two more of mine"],
            "judged": ["three of mine", "four of mine", *trained],
        }.items()
        for text in texts
    ]
    write_rows(folder / "own.jsonl", rows)
    own = part(form="labels", held_out=["judged"], validation=0.0)
    beside = DataPart(**{**recipe.data.model_dump(), "tasks": [own], "public": True})
    both = load_corpus(folder, beside, recipe.seed)
    assert both.held_out_intents[-1].questions == ("three of mine", "four of mine")
    assert both.held_out_intents[0].questions == kept.questions[1:]
    assert both.held_out_personas[0].questions == persona.questions[1:]
    assert public.test_replies[0] not in both.test_replies


def test_an_answer_of_training_is_no_reply_never_seen(tmp_path: Path) -> None:
    answers = {"inn": ["Yes, we do.", "At noon."], "pub": ["yes we do", "At night."]}
    rows = [
        {"text": f"{wording} {place} {number}?", "answer": answer, "domain": place}
        for place, said in answers.items()
        for number, answer in enumerate(said)
        for wording in ("what of", "how about")
    ]
    write_rows(tmp_path / "own.jsonl", rows)
    own = part(form="replies", held_out=["pub"], validation=0.0)
    corpus = load_corpus(tmp_path, DataPart(tasks=[own]), 0)
    assert sorted(corpus.train_replies) == ["At noon.", "Yes, we do."]
    assert corpus.test_replies == ["At night."]


@pytest.mark.parametrize("form", list(FORMS))
def test_a_form_says_its_fields(form: str) -> None:
    assert TaskPart.model_validate({"path": "x", "form": form}).family_name
