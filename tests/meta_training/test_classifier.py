"""Encoders and plain modules learn by the same algorithms; GLUE-format files are read or named."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig

from adapters.config import SpecError
from adapters.layer import rows_of
from adapters.state import take
from meta_training.algorithms.choice import choose
from meta_training.algorithms.metric import Prototypical
from meta_training.algorithms.metric_training import MetricTraining
from meta_training.base_lora import add_base_lora, merge_base
from meta_training.checkpoint import CheckpointError
from meta_training.classifier import (
    Classifier,
    Inputs,
    Labelled,
    LoraClassifier,
    WeightClassifier,
    lay_out_classes,
)
from meta_training.classify import adapt_classifier, classify, train_classifier
from meta_training.recipe_parts import InnerPart, OuterPart
from meta_training.tasks.classes import ClassEpisodes, Text, read_classes
from meta_training.tasks.episodes import Shape
from meta_training.tasks.sources import DataError

WAYS, WORDS = 3, 40
SUBJECTS = ("cat", "dog", "sun", "sea", "car", "hat")
VERBS = ("sings", "runs", "sleeps", "shines", "waits", "falls")


def write_glue(folder: Path) -> Path:
    """Six tasks in SST-2's form: which subject a sentence is about."""
    rng = random.Random(0)
    path = folder / "train.tsv"
    rows = ["sentence\tlabel"]
    for label, subject in enumerate(SUBJECTS):
        for _ in range(14):
            rest = " ".join(rng.sample(VERBS, 3))
            rows.append(f'the "{subject} {rest}\t{label}')
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def encode(texts: Sequence[Text]) -> Inputs:
    """One number a word, as a tokenizer's call gives them."""
    vocabulary = {word: 3 + i for i, word in enumerate((*SUBJECTS, *VERBS))}
    rows = [[vocabulary.get(word.strip('"'), 2) for word in " ".join(t).split()] for t in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


class Lstm(nn.Module):
    """Words, an LSTM and a head; `attention_mask` says where a text ends."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 12)
        self.lstm = nn.LSTM(12, 16, batch_first=True)
        self.head = nn.Linear(16, WAYS)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states, _ = self.lstm(self.words(input_ids))  # (B, T, D)
        return (states * attention_mask.unsqueeze(-1)).sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.features(input_ids, attention_mask))


def make_lstm(steps: int = 3, **part: object) -> WeightClassifier:
    torch.manual_seed(0)
    inner = InnerPart.model_validate({"steps": steps, "first_step_size": 0.5, "clip": 10.0, **part})
    return WeightClassifier(
        Lstm(), inner, features=lambda model, **inputs: model.features(**inputs)
    )


def make_bert(**part: object) -> LoraClassifier:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=WAYS,
        initializer_range=0.3,
        pad_token_id=0,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    inner = {
        "rank": 4,
        "steps": 3,
        "first_step_size": 0.3,
        "targets": ["query", "value", "dense", "classifier"],
    }
    return LoraClassifier(model, InnerPart.model_validate(inner | part))


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> ClassEpisodes:
    classes = read_classes(write_glue(tmp_path_factory.mktemp("glue")))
    return ClassEpisodes({"subjects": classes}, encode, Shape(WAYS, 2, 2), 3)


def cost(learner: Classifier, episodes: ClassEpisodes) -> float:
    """Mean loss on the same four batches after the learner's own inner steps."""
    rng, steps = random.Random(99), learner.part.steps
    costs = [adapt_classifier(learner, *episodes.draw(rng), steps)[1].loss for _ in range(4)]
    return float(torch.stack(costs).mean())


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "maml++", "meta-sgd"])
def test_an_lstm_learns_to_learn(algorithm: str, episodes: ClassEpisodes) -> None:
    sizes = "element" if algorithm == "meta-sgd" else "tensor"
    learner = make_lstm(2, sizes=sizes, first_step_size=0.1)
    before = cost(learner, episodes)
    part = {"algorithm": algorithm, "steps": 8, "warmup_steps": 1, "adapter_learning_rate": 0.03}
    figures = train_classifier(learner, episodes.draw, OuterPart.model_validate(part))
    assert len(figures) == 8
    assert cost(learner, episodes) < before - 0.1


def test_reptile_moves_the_start_and_no_step_size(episodes: ClassEpisodes) -> None:
    learner = make_lstm(2)
    before = {name: tensor.detach().clone() for name, tensor in learner.tensors().items()}
    sizes = learner.log_sizes.detach().clone()
    train_classifier(learner, episodes.draw, OuterPart(algorithm="reptile", steps=2))
    assert not any(torch.equal(before[name], now) for name, now in learner.tensors().items())
    assert torch.equal(learner.log_sizes, sizes)


@pytest.mark.parametrize("base", ["full", "lora", "frozen"])
def test_a_bert_learns_to_learn(base: str, episodes: ClassEpisodes) -> None:
    learner = make_bert(steps=2)
    loss, before = cost(learner, episodes), dict(copies(learner.model))
    if base == "lora":
        add_base_lora(learner.model, ["query", "value", "dense"], 4, 0)
    part = {
        "steps": 8,
        "base": base,
        "warmup_steps": 1,
        "base_learning_rate": 0.01,
        "adapter_learning_rate": 0.02,
        "gradient": "adjoint" if base == "lora" else "unrolled",
    }
    train_classifier(learner, episodes.draw, OuterPart.model_validate(part))
    assert cost(learner, episodes) < loss - 0.1
    support, query = episodes.draw(random.Random(5))
    tensors, _ = adapt_classifier(learner, support, query, 2)
    answers = learner.logits(tensors, query)
    merge_base(learner.model)
    torch.testing.assert_close(learner.logits(tensors, query), answers, rtol=1e-4, atol=1e-5)
    moved = {name for name, p in copies(learner.model) if not torch.equal(p, before[name])}
    if base == "frozen":
        assert not moved
    elif base == "lora":
        assert moved
        assert all(
            name.endswith(("query.weight", "value.weight", "dense.weight")) for name in moved
        )
    else:
        assert "bert.embeddings.word_embeddings.weight" in moved


def copies(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p.detach().clone()) for name, p in model.named_parameters()]


def test_only_the_head_moves_in_the_inner_loop_of_anil(episodes: ClassEpisodes) -> None:
    learner = make_bert(top_layers=1)
    assert all("layer.0" in name for name in learner.inner_rule().still)
    support, query = episodes.draw(random.Random(1))
    start = {name: tensor.detach().clone() for name, tensor in learner.tensors().items()}
    tensors, _ = adapt_classifier(learner, support, query, 2)
    for name, tensor in tensors.items():
        same = all(torch.equal(own, start[name]) for own in tensor)
        assert same == (name not in learner.moving), name


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("meta-sgd", "make the learner with InnerPart(sizes='element')"),
        ("anil", "make the learner with InnerPart(top_layers=1)"),
        ("in-context", "which a classifier does not have"),
    ],
)
@pytest.mark.parametrize("make", [make_bert, make_lstm])
def test_an_algorithm_that_the_learner_is_not_made_for_is_refused(
    make: Callable[[], Classifier], algorithm: str, words: str, episodes: ClassEpisodes
) -> None:
    part = OuterPart.model_validate({"algorithm": algorithm, "steps": 1})
    with pytest.raises(SpecError, match=re.escape(words)):
        train_classifier(make(), episodes.draw, part)


def test_anil_is_for_learners_of_which_a_part_stays(episodes: ClassEpisodes) -> None:
    part = OuterPart(algorithm="anil", steps=1)
    for learner in (make_bert(top_layers=1), WeightClassifier(Lstm(), InnerPart(), ["head"])):
        assert len(train_classifier(learner, episodes.draw, part)) == 1


def test_an_episode_does_not_see_another(episodes: ClassEpisodes) -> None:
    for learner in (make_lstm(), make_bert()):
        support, query = episodes.draw(random.Random(2))
        together, _ = adapt_classifier(learner, support, query, 2)
        answers = classify(learner, together, query)
        for session in range(3):
            zero = torch.zeros_like
            alone = [
                Labelled(own.inputs, own.classes, zero(own.sessions))
                for own in (support.of(session), query.of(session))
            ]
            tensors, _ = adapt_classifier(learner, *alone, 2)
            for name, tensor in take(together, session).items():
                torch.testing.assert_close(tensors[name][0], tensor, rtol=1e-4, atol=1e-5)
            assert torch.equal(
                classify(learner, tensors, alone[1]), answers[query.sessions == session]
            )


def test_the_adjoint_loop_knows_no_model(episodes: ClassEpisodes) -> None:
    support, query = episodes.draw(random.Random(3))
    for learner in (make_lstm().double(), make_bert().double()):
        found = []
        for gradient in ("unrolled", "adjoint"):
            learner.zero_grad()
            algorithm = choose(OuterPart.model_validate({"gradient": gradient}))
            algorithm.backward(lay_out_classes(learner, support, query), 4, 0.0)
            found.append({n: p.grad for n, p in learner.named_parameters() if p.grad is not None})
            found[-1] = {name: grad.clone() for name, grad in found[-1].items()}
        assert found[0].keys() == found[1].keys()
        for name, wanted in found[0].items():
            torch.testing.assert_close(found[1][name], wanted, rtol=1e-7, atol=1e-10, msg=name)


def test_a_metric_trains_the_encoder(episodes: ClassEpisodes) -> None:
    learner = make_lstm()
    part = OuterPart.model_validate({"algorithm": "prototypical", "steps": 15, "warmup_steps": 1})
    with torch.no_grad():
        start = next(iter(learner.model.parameters())).clone()
    optimizer = torch.optim.Adam(learner.model.parameters(), lr=0.02)
    rng, figures = random.Random(0), []
    for _ in range(part.steps):
        optimizer.zero_grad()
        batch = lay_out_classes(learner, *episodes.draw(rng))
        figures.append(MetricTraining(Prototypical()).backward(batch, 0, 0.0).figures["query"])
        optimizer.step()
    assert sum(figures[-5:]) < 0.8 * sum(figures[:5])
    assert not torch.equal(start, next(iter(learner.model.parameters())))
    with pytest.raises(SpecError, match="features"):
        make_bert().features(episodes.draw(rng)[0])


def test_rows_in_any_order_get_their_own_weights(episodes: ClassEpisodes) -> None:
    """A linear head on two-dimensional inputs gathers an adapter for every row, too."""
    for learner in (make_lstm(), make_bert()):
        support, query = episodes.draw(random.Random(4))
        tensors, _ = adapt_classifier(learner, support, query, 2)
        order = torch.randperm(len(query.classes), generator=torch.Generator().manual_seed(0))
        mixed = Labelled(
            {name: tensor[order] for name, tensor in query.inputs.items()},
            query.classes[order],
            query.sessions[order],
        )
        assert rows_of(tensors, mixed.sessions).slots is not None
        torch.testing.assert_close(
            learner.logits(tensors, mixed),
            learner.logits(tensors, query)[order],
            rtol=1e-4,
            atol=1e-5,
        )


def test_unknown_parameters_are_named() -> None:
    with pytest.raises(SpecError, match="no parameter begins with 'tail'"):
        WeightClassifier(Lstm(), InnerPart(), moving=["tail"])
    picked = WeightClassifier(Lstm(), InnerPart(), moving=["head"])
    assert picked.names == ["head.weight", "head.bias"]
    assert len(picked.base_parameters()) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "sentence\tlabel\nfine\t1\nbad\t\n", "a.tsv:3: field 'label' is empty"),
        ("a.tsv", "words\tlabel\nfine\t1\n", "a.tsv:2: no field is one of sentence1 and sentence2"),
        ("a.tsv", "sentence\tclass\nfine\t1\n", "a.tsv:2: no field is one of label, Quality"),
        ("a.jsonl", '{"premise": "x", "hypothesis": "", "label": 0}\n', "a.jsonl:1: field 'hypo"),
        ("a.jsonl", "no json\n", "a.jsonl"),
        ("none.tsv", None, "none.tsv"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_classes(path)


def test_pairs_and_quotes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rte.tsv"
    path.write_text('index\tsentence1\tsentence2\tlabel\n0\ta "b\tc\tyes\n1\td\te\tno\n', "utf-8")
    assert read_classes(path) == {"yes": [('a "b', "c")], "no": [("d", "e")]}


def test_too_few_texts_are_named(episodes: ClassEpisodes) -> None:
    with pytest.raises(DataError, match="no task has 3 classes of 4 texts: few"):
        ClassEpisodes({"few": {"a": [("x",)]}}, encode, Shape(3, 2, 2), 1)


@pytest.mark.parametrize("make", [make_lstm, make_bert])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    make: Callable[[], Classifier], tmp_path: Path
) -> None:
    tasks = {"subjects": read_classes(write_glue(tmp_path))}
    episodes = ClassEpisodes(tasks, encode, Shape(WAYS, 2, 2), 2)
    part = OuterPart(steps=4, warmup_steps=1)
    whole = make()
    figures = train_classifier(whole, episodes.draw, part)
    asked = 0

    def draw(rng: random.Random) -> tuple[Labelled, Labelled]:
        nonlocal asked
        asked += 1
        if asked == 2:
            signal.raise_signal(signal.SIGINT)
        return episodes.draw(rng)

    path = tmp_path / "run" / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train_classifier(make(), draw, part, checkpoint=path)
    again = make()
    assert train_classifier(again, draw, part, checkpoint=path) == figures
    assert asked == 4, "what was done is not done again"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert train_classifier(make(), draw, part, checkpoint=path) == figures
    assert asked == 4


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    tasks = {"subjects": read_classes(write_glue(tmp_path))}
    episodes = ClassEpisodes(tasks, encode, Shape(WAYS, 2, 2), 2)
    path, part = tmp_path / "checkpoint.pt", OuterPart(steps=1)
    train_classifier(make_lstm(), episodes.draw, part, checkpoint=path)
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        train_classifier(make_bert(), episodes.draw, part, checkpoint=path)
