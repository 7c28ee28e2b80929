"""The learner's prefills, greedy answers and its way into an artifact and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spoken import KNOWN, make_spoken, nudged, plain_answer
from transformers import PreTrainedTokenizerFast

from adapters.artifact import load_artifact
from adapters.chat import user_turn
from adapters.config import Anchor, Gate
from adapters.layer import rows_of
from adapters.state import take
from meta_training.corpus import Corpus
from meta_training.export import export
from meta_training.language import lay_out
from meta_training.learner import Learner, correct_rows
from meta_training.pipeline import choose_anchors, label_words, token_counts
from meta_training.recipe_parts import InnerPart
from meta_training.tasks.batches import Unrelated, encode_batch
from meta_training.tasks.episodes import Episode, Turn


@pytest.fixture(scope="module")
def learner(tokenizer: PreTrainedTokenizerFast) -> Learner:
    return make_spoken(tokenizer)


def test_what_was_learned_by_heart_is_answered(learner: Learner) -> None:
    asked = [learner.encoder.example(user_turn(question), "") for question, _ in KNOWN]
    answers = learner.greedy(asked, 24)
    texts = [learner.encoder.tokenizer.decode([*a], skip_special_tokens=True) for a in answers]
    assert texts == [answer for _, answer in KNOWN]
    assert all(answer[-1] == learner.encoder.end_id for answer in answers)


def test_greedy_answers_of_a_batch_are_those_of_each_alone(learner: Learner) -> None:
    questions = [question for question, _ in KNOWN] + ["Why?", "Who would sing if I asked"]
    asked = [learner.encoder.example(user_turn(question), "") for question in questions]
    adapters = nudged(learner, 0.15, 0.3)
    slots = torch.tensor([i % 2 for i in range(len(asked))])
    found = learner.greedy(asked, 9, rows_of(adapters, slots))
    expected = [
        plain_answer(learner, take(adapters, int(slot)), example, 9)
        for slot, example in zip(slots, asked, strict=True)
    ]
    assert found == expected
    assert found != learner.greedy(asked, 9), "the adapters change nothing"


def test_a_summary_is_what_the_last_layer_sees_at_the_last_token(learner: Learner) -> None:
    prompts = [learner.encoder.prompt(user_turn(question)).prefix for question, _ in KNOWN]
    with torch.no_grad():
        summaries = learner.summaries(prompts)
        for prompt, summary in zip(prompts, summaries, strict=True):
            states = learner.model(
                input_ids=torch.tensor([prompt]), output_hidden_states=True
            ).hidden_states
            torch.testing.assert_close(summary, states[-2][0, -1], rtol=1e-4, atol=1e-5)


def told(*turns: tuple[str, str]) -> tuple[Turn, ...]:
    return tuple(Turn(question, answer, question) for question, answer in turns)


def test_queries_after_their_support_are_judged_as_if_each_were_computed_alone(
    learner: Learner,
) -> None:
    """What an episode's prompts begin with is computed once; losses, summaries and gradients are
    those of whole prompts, whatever the lengths."""
    (first, second), episodes = KNOWN[:2], []
    for support, query in (((first, second), (second, first)), ((second,), (("Why?", "So."),))):
        taught = frozenset(question for question, _ in support)
        episodes.append(Episode("label", told(*support), told(*query), (), taught))
    aside = [Unrelated("aside", learner.encoder.example(user_turn("And you?"), "No."))]
    batch = encode_batch(episodes, [aside, aside], learner.encoder, room_tokens=200)
    assert batch.shown
    found, computed = [], []
    embedding = learner.model.get_input_embeddings()
    for shown in (True, False):
        learner.zero_grad()
        sizes: list[int] = []
        counting = embedding.register_forward_hook(lambda *call, s=sizes: s.append(call[2].numel()))
        episode = lay_out(learner, replace(batch, shown=shown))
        counting.remove()
        computed.append(sum(sizes))
        loss = episode.judge(None).loss
        (loss + episode.embeddings.square().mean()).backward()
        gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
        assert len(gradients) == len(list(learner.model.parameters()))
        found.append([loss.detach(), episode.embeddings.detach(), *gradients])
    assert computed[0] < 0.7 * computed[1]
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-3, atol=1e-5)
    assert not encode_batch(episodes, [aside, aside], learner.encoder).shown


def test_correct_rows_need_every_taught_token() -> None:
    logits = torch.eye(4)[torch.tensor([[1, 2, 3], [1, 2, 0], [0, 2, 3]])]  # (3, 3, 4)
    targets = torch.tensor([[1, 2, 3], [1, 2, 3], [-100, 2, 3]])
    assert correct_rows(logits, targets).tolist() == [True, False, True]


@pytest.mark.parametrize("gate", [None, Gate(1, 0.625)])
def test_an_artifact_is_the_learner_it_came_from(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, gate: Gate | None
) -> None:
    source = make_spoken(tokenizer)
    anchors = [Anchor("Thank you.", "Come again!")]
    part = InnerPart(rank=2, steps=3, anchors=1, clip=4.0, anchor_weight=0.4)
    learner = Learner(source.model, source.encoder, part, anchors, seed=1)
    learner.gate = gate
    with torch.no_grad():
        for tensor in [*learner.adapter, learner.log_sizes]:
            tensor += 0.1 * torch.randn(tensor.shape)
    artifact = export(learner, tmp_path / "a", {"recipe": {"name": "x"}})
    again = Learner.from_artifact(load_artifact(tmp_path / "a"))
    assert artifact.report == {"recipe": {"name": "x"}}
    assert again.spec == learner.spec
    assert again.gate == gate
    assert again.anchor_texts == learner.anchor_texts
    assert again.anchor_examples == learner.anchor_examples
    for name, tensor in learner.tensors().items():
        assert torch.equal(again.tensors()[name], tensor.half().float())
    rules = again.rule(), learner.rule()
    assert rules[0].clip == rules[1].clip
    torch.testing.assert_close(
        dict(rules[0].step_sizes), dict(rules[1].step_sizes), rtol=1e-6, atol=0
    )
    weights = [torch.as_tensor(rule.anchor_weight) for rule in rules]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=0)


def test_exporting_does_not_move_the_learner(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    learner = make_spoken(tokenizer)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    export(learner, tmp_path / "a", {})
    assert all(torch.equal(tensor, before[n]) for n, tensor in learner.state_dict().items())


def test_anchors_are_short_and_different(
    corpus: Corpus, learner: Learner, tokenizer: PreTrainedTokenizerFast
) -> None:
    part = InnerPart(anchors=6, anchor_tokens=20)
    anchors = choose_anchors(corpus, learner.encoder, part, 0)
    assert anchors == choose_anchors(corpus, learner.encoder, part, 0)
    assert len({anchor.completion for anchor in anchors}) == len(anchors) == 6
    assert max(len(learner.encoder.completion(a.completion)) for a in anchors) <= 20
    chat = {question for group in corpus.train_personas for question in group.questions}
    assert {anchor.prompt in chat for anchor in anchors} == {True, False}
    spoken = {turn for d in corpus.train_dialogues for _, turn in d.turns}
    assert all(anchor.prompt in chat | spoken for anchor in anchors)


def test_label_words_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    words = label_words(tokenizer)
    assert len(words) == len(set(words)) >= 40
    assert token_counts(words, tokenizer) == [1] * len(words)
    assert all(len(word) >= 3 and word.isascii() and word.isalpha() for word in words)
