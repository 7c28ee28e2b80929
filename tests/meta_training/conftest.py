"""The small data folder, a recipe of seconds, and one finished run that tests look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_data import write_data
from mini_run import RECIPE, meta_train
from transformers import PreTrainedTokenizerFast

from meta_training.corpus import Corpus, load_corpus
from meta_training.pipeline import label_words, token_counts
from meta_training.pretrain import corpus_texts
from meta_training.recipe import Recipe
from meta_training.tasks.families import Families
from meta_training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe.model_validate(RECIPE)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def corpus(data: Path, recipe: Recipe) -> Corpus:
    return load_corpus(data, recipe.data, recipe.seed)


@pytest.fixture(scope="session")
def tokenizer(corpus: Corpus, recipe: Recipe) -> PreTrainedTokenizerFast:
    """As the finished run makes it."""
    part = recipe.model
    return train_tokenizer(corpus_texts(corpus), part.vocab_size, part.context_tokens)


@pytest.fixture(scope="session")
def families(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> Families:
    """Those of training."""
    return Families(
        corpus.train_intents,
        corpus.train_replies,
        corpus.train_personas,
        label_words(tokenizer),
        token_counts(corpus.train_replies, tokenizer),
    )


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    assert meta_train(data, folder) == 0
    return folder


@pytest.fixture
def artifact(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run's artifact, to write into and beside."""
    return Path(shutil.copytree(finished / "maml" / "artifact", tmp_path / "copy" / "artifact"))


@pytest.fixture(scope="session")
def other_algorithm(
    finished: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The artifact of a run of another algorithm, of one outer step from the same base."""

    def made(algorithm: str) -> Path:
        folder = tmp_path_factory.mktemp(algorithm)
        shutil.copytree(finished / "pretrained", folder / "pretrained")
        shutil.copy(finished / "embedded.pt", folder)
        shutil.copy(finished / "recipe.json", folder)
        assert meta_train(data, folder, "--algorithm", algorithm, outer={"steps": 1}) == 0
        return folder / algorithm / "artifact"

    return made
