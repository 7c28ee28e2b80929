"""What is held out stays out of every text that training sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mini_data import HELD_OUT, SHOP, VALIDATION, shop_rows, write_rows

from meta_training.corpus import Corpus, load_corpus
from meta_training.pretrain import corpus_texts
from meta_training.recipe import Recipe
from meta_training.recipe_parts import DataPart
from meta_training.tasks.episodes import kind_of
from meta_training.tasks.sources import DIALOGUE_FILES, DataError


def training_texts(corpus: Corpus) -> set[str]:
    return set(corpus_texts(corpus)) | set(corpus.train_replies)


def questions(corpus: Corpus) -> set[str]:
    """Of everything that is held out."""
    asked = {question for intent in corpus.held_out_intents for question in intent.questions}
    return asked | {q for group in corpus.held_out_personas for q in group.questions}


def test_the_recipe_says_what_is_held_out(corpus: Corpus) -> None:
    held_out = {(intent.source, intent.domain) for intent in corpus.held_out_intents}
    assert held_out == {(source, domain) for source in HELD_OUT for domain in HELD_OUT[source]}
    assert {intent.source for intent in corpus.validation_intents} == {"hint3"}
    assert len(corpus.validation_intents) == len(VALIDATION)
    assert {(intent.source, intent.domain) for intent in corpus.train_intents} == {
        ("clinc150", "shop")
    }


def test_no_intent_is_on_two_sides(corpus: Corpus) -> None:
    sides = [corpus.train_intents, corpus.validation_intents, corpus.held_out_intents]
    kinds = [kind_of(intent) for side in sides for intent in side]
    assert len(kinds) == len(set(kinds))


def test_held_out_questions_never_reach_training(corpus: Corpus) -> None:
    assert len(questions(corpus)) > 100
    assert not questions(corpus) & training_texts(corpus)


def test_test_replies_are_never_training_replies_or_texts(corpus: Corpus) -> None:
    assert len(corpus.test_replies) > 40
    assert len(set(corpus.test_replies)) == len(corpus.test_replies)
    assert not set(corpus.test_replies) & training_texts(corpus)


def test_personas_and_dialogues_are_split(corpus: Corpus) -> None:
    groups = [group.group for group in corpus.train_personas + corpus.held_out_personas]
    assert len(groups) == len(set(groups)) == 10
    assert len(corpus.held_out_personas) == 4
    assert not {d.turns for d in corpus.train_dialogues} & {d.turns for d in corpus.test_dialogues}


def test_a_source_without_a_split_gives_every_twentieth_dialogue(corpus: Corpus) -> None:
    assert {d.split for d in corpus.test_dialogues} == {"test", None}
    unsplit = [d for d in corpus.test_dialogues if d.split is None]
    assert 1 <= len(unsplit) <= 4


def test_a_held_out_question_that_training_has_too_is_dropped(
    data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """By way of another intent, of a dialogue, and of a reply."""
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    mine = [{"text": f"Mine, number {i}", "intent": "m", "domain": "order"} for i in range(9)]
    shared = [row["text"] for row in shop_rows()[:2]] + ["Thank you."]
    leaks = [{"text": text, "intent": "m", "domain": "order"} for text in shared]
    write_rows(folder / "bitext-support.jsonl", mine + leaks)
    faq = {"question": "Why?", "answer": "Thank you.", "split": "test"}
    write_rows(folder / "faq-dstc9.jsonl.gz", [faq, faq | {"answer": "Because it is so."}])
    corpus = load_corpus(folder, recipe.data, recipe.seed)
    (intent,) = (i for i in corpus.held_out_intents if i.source == "bitext-support")
    assert intent.questions == tuple(row["text"] for row in mine)
    assert "Thank you." not in corpus.test_replies
    assert "Because it is so." in corpus.test_replies


def test_an_intent_that_is_mostly_known_is_not_judged_on(
    data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    rows = [row | {"domain": "order"} for row in shop_rows()]
    write_rows(folder / "bitext-support.jsonl", rows)
    corpus = load_corpus(folder, recipe.data, recipe.seed)
    assert {intent.source for intent in corpus.held_out_intents} == {"clinc150"}


def test_one_seed_one_split(data: Path, recipe: Recipe) -> None:
    corpora = [load_corpus(data, recipe.data, seed) for seed in (1, 1, 2)]
    assert corpora[0] == corpora[1]
    assert corpora[0].held_out_personas != corpora[2].held_out_personas


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"held_out": {"clinc150": ["card"]}}, "clinc150: card, which the data does not have"),
        ({"held_out": {"clinc": ["cards"]}}, "clinc: cards, which the data does not have"),
        ({"held_out": {"bitext": "all"}}, "bitext: all, which the data does not have"),
        ({"validation": ["hint"]}, "validates on hint, which the data does not have"),
    ],
)
def test_holding_out_what_is_not_there_is_refused(
    data: Path, part: dict[str, object], words: str
) -> None:
    """A misspelt domain would silently be trained on."""
    with pytest.raises(DataError, match=words):
        load_corpus(data, DataPart.model_validate(part), 0)


@pytest.mark.parametrize("name", ["clinc150.jsonl", DIALOGUE_FILES[0], "faq-dstc9.jsonl.gz"])
def test_a_missing_file_is_named(data: Path, recipe: Recipe, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    (folder / name).unlink()
    with pytest.raises(DataError, match="is missing: run `innerloop data") as caught:
        load_corpus(folder, recipe.data, recipe.seed)
    assert str(folder / name) in str(caught.value)


def test_the_shop_is_real(corpus: Corpus) -> None:
    asked = {q for intent in corpus.train_intents for q in intent.questions}
    assert asked == {json.loads(line)["text"] for line in SHOP.read_text("utf-8").splitlines()}
