from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import CPU, llama_spec, make_llama, make_rule, random_adapter, random_words
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.artifact import WORDS_FILE, ArtifactError, load_artifact, save_artifact
from adapters.chat import ChatEncoder
from adapters.config import Gate, InnerRule, Mix
from adapters.gate import (
    answer_number,
    choice_likeness,
    choice_scores,
    gate_opens,
    gate_similarity,
    house_answers,
    left_alone,
    nearest,
    prompt_vectors,
    threshold_of,
)
from adapters.prefix import prefill
from adapters.snapshot import SnapshotError, dumps, loads
from adapters.state import LEFT_ALONE, AdapterState, Taught, Tensors

PROMPTS = [[55, 56, 57], [58, 59, 60, 61, 62], [63]]


def with_gate(rule: InnerRule, gate: Gate) -> InnerRule:
    return InnerRule(rule.steps, rule.step_sizes, rule.clip, gate=gate)


def test_a_taught_prompt_opens_its_own_gate_at_any_threshold_below_one() -> None:
    summaries = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    gate = Gate(1, 0.9999)
    keys = prompt_vectors(gate, summaries, PROMPTS)
    again = prompt_vectors(gate, 7 * summaries, PROMPTS)
    for answers in ([0, 1, 2], [0, 0, 0], [0, 0, 1]):
        assert gate_opens(gate, Taught(keys, torch.tensor(answers), "view"), again).all()
    for key, vector in zip(keys.split(1), again.split(1), strict=True):
        alone = Taught(key, torch.tensor([7]), "view")
        torch.testing.assert_close(gate_similarity(alone, vector), torch.ones(1))


def test_words_are_compared_beside_summaries(tokenizer: PreTrainedTokenizerFast) -> None:
    generator = torch.Generator().manual_seed(0)
    summaries = torch.randn(3, 8, generator=generator)
    words = random_words(tokenizer)
    vectors = prompt_vectors(Gate(1, 0.5, words=words), summaries, PROMPTS)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))

    def cosine(rows: torch.Tensor) -> float:
        return float(torch.cosine_similarity(rows[0], rows[1], dim=0))

    meanings, tokens = words.bags(PROMPTS)
    mean = (cosine(summaries) + cosine(meanings) + 2 * cosine(tokens)) / 4
    assert float(vectors[0] @ vectors[1]) == pytest.approx(mean, abs=1e-6)


def taught_three() -> Taught:
    """Two prompts of one answer and one of another, at right angles."""
    answers = [answer_number(ids) for ids in ([5, 6], [5, 6], [7])]
    return Taught(torch.eye(4)[:3], torch.tensor(answers), "view")


def test_a_choice_is_wanted_as_much_as_its_prompts_say() -> None:
    gate = Gate(1, 0.3, 0.1)
    asked = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0, 0.5, 0.0]]), dim=1)
    likeness = choice_likeness(gate, taught_three(), asked, [[7], [5, 6], [5, 6, 8]])
    neutral = gate.threshold_for(3 / 2)
    expected = [0.5 / 1.5 - neutral, 2 / 1.5 - neutral, torch.nan]
    torch.testing.assert_close(likeness, torch.tensor([expected]), equal_nan=True)


@pytest.mark.parametrize(
    ("likeness", "expected"),
    [
        ([0.5, 0.0, -0.25], [5.5, -0.5, -6.0]),
        ([-0.5, -0.1, -0.25], [-14.5, -2.5, -6.0]),  # it knows them all, however far
        ([0.5, torch.nan, -0.25], [5.5, -0.5, -6.0]),  # one was taught for such prompts
        ([-0.1, torch.nan, -0.25], [-9.0, -1.0, -2.0]),  # none was: the model alone
        ([torch.nan] * 3, [-9.0, -1.0, -2.0]),
    ],
)
def test_model_and_memory_choose_together_where_memory_knows(
    likeness: list[float], expected: list[float]
) -> None:
    logprobs = torch.tensor([[-9.0, -1.0, -2.0]])
    scores = choice_scores(Mix(0.5, 20.0), torch.tensor([likeness]), logprobs)
    torch.testing.assert_close(scores, torch.tensor([expected]))


def test_answers_are_told_apart_by_all_their_tokens() -> None:
    numbers = [answer_number(ids) for ids in ([], [1], [1, 0], [0, 1], [256], [1, 2, 3])]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 2**63 for number in numbers)
    assert answer_number((1, 2, 3)) == numbers[-1]


def test_a_margin_is_for_answering_and_for_nothing_else() -> None:
    taught = taught_three()
    asked = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.8, 0.0, 0.0, 0.6], [0.0, 0.0, 0.0, 1.0]])
    gate = Gate(1, 0.3, 0.1)
    likeness = gate_similarity(taught, asked)
    assert float(likeness[1]) == pytest.approx(0.8)
    for margin, opened in ((0.0, [1, 1, 0]), (0.4, [1, 1, 0]), (0.6, [1, 0, 0]), (2.0, [1, 0, 0])):
        stricter = replace(gate, margin=margin)
        assert gate_opens(stricter, taught, asked).tolist() == [bool(each) for each in opened]
        choices = [[7], [5, 6], [5, 6, 8]]
        assert torch.equal(
            choice_likeness(stricter, taught, asked, choices).nan_to_num(),
            choice_likeness(gate, taught, asked, choices).nan_to_num(),
        )
    assert gate_opens(replace(gate, margin=-1.0), taught, asked).all()


def test_what_is_far_from_every_key_stays_closed() -> None:
    taught = Taught(torch.eye(4)[:2], torch.tensor([3, 5]), "view")
    far = torch.eye(4)[2:]
    near = torch.tensor([[0.995, 0.0, 0.0999, 0.0]])
    assert not gate_opens(Gate(1, 0.5), taught, far).any()
    assert gate_opens(Gate(1, 0.5), taught, near).all()


def test_a_question_between_answers_is_less_like_them_than_one_of_an_answer() -> None:
    """Its nearest prompt is as near, but what it has in common with that, others have too."""
    shared, first, second, other = torch.eye(4)
    keys = torch.nn.functional.normalize(torch.stack([shared + first, shared + second]), dim=1)
    own, between = torch.nn.functional.normalize(
        torch.stack([first + 0.5 * other, shared + 0.5 * other]), dim=1
    ).split(1)
    assert float(nearest(keys, own)) == pytest.approx(float(nearest(keys, between)))
    two = Taught(keys, torch.tensor([3, 5]), "view")
    one = Taught(keys, torch.tensor([3, 3]), "view")
    assert float(gate_similarity(two, own)) > float(gate_similarity(two, between)) + 0.05
    assert float(gate_similarity(one, own)) < float(gate_similarity(one, between))


def test_summaries_are_those_of_each_prompt_alone() -> None:
    model = make_llama()
    with torch.no_grad():
        batch = prefill(model, PROMPTS, CPU, summary_layer=1)
        alone = [prefill(model, [prompt], CPU, summary_layer=1) for prompt in PROMPTS]
        hidden = model(torch.tensor([PROMPTS[1]]), output_hidden_states=True).hidden_states[1]
    assert batch.summaries is not None
    for row, prefix in zip(batch.summaries, alone, strict=True):
        assert prefix.summaries is not None
        torch.testing.assert_close(row, prefix.summaries[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.summaries[1], hidden[0, -1], rtol=1e-4, atol=1e-5)


@pytest.fixture
def gated(tokenizer: PreTrainedTokenizerFast, chat_llama: LlamaForCausalLM) -> AdapterState:
    spec = llama_spec()
    keys = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    said = torch.tensor([[5, 6, 2], [7, 2, -1], [-1, -1, -1]])
    taught = Taught(keys, torch.tensor([2**62, 0, LEFT_ALONE]), "layer 1, words None", said)
    return AdapterState(spec, random_adapter(chat_llama, spec), "base", taught)


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_a_snapshot_keeps_what_was_taught(gated: AdapterState) -> None:
    shapes = shapes_of(gated.tensors)
    back = loads(dumps(gated), spec=gated.spec, base_fingerprint="base", shapes=shapes)
    assert back.taught is not None
    assert gated.taught is not None
    assert torch.equal(back.taught.keys, gated.taught.keys)
    assert torch.equal(back.taught.answers, gated.taught.answers)
    assert back.taught.completions is not None
    assert gated.taught.completions is not None
    assert torch.equal(back.taught.completions, gated.taught.completions)
    assert back.taught.view == gated.taught.view
    keys, kept, two_answers = 3 * 32 * 4, 3 * (8 + 3 * 8), 2 * (8 + 32 * 4)
    known = 2 * keys + kept + two_answers  # keys as they are, and those of answers apart
    assert back.nbytes == gated.nbytes == sum(t.nbytes for t in gated.tensors.values()) + known
    assert list(back.tensors) == list(shapes)


def test_a_snapshot_of_before_there_were_answers_in_tokens_is_read(gated: AdapterState) -> None:
    assert gated.taught is not None
    old = replace(gated, taught=replace(gated.taught, completions=None))
    shapes = shapes_of(gated.tensors)
    back = loads(dumps(old), spec=gated.spec, base_fingerprint="base", shapes=shapes)
    assert back.taught is not None
    assert back.taught.completions is None


def test_a_snapshot_with_keys_that_are_no_vectors_is_refused(gated: AdapterState) -> None:
    shapes = shapes_of(gated.tensors)
    three = torch.tensor([1, 2, 3])
    for taught, message in (
        (Taught(torch.ones(3), three, ""), "vectors"),
        (Taught(torch.ones(2, 32), three, ""), "gate.answers has shape"),
        (Taught(torch.ones(3, 32), three.float(), ""), "gate.answers is torch.float32"),
        (Taught(torch.ones(3, 32), three, "", three.unsqueeze(0)), "gate.completions has shape"),
        (Taught(torch.ones(3, 32), three, "", three), "gate.completions has shape"),
    ):
        broken = AdapterState(gated.spec, gated.tensors, "base", taught)
        with pytest.raises(SnapshotError, match=message):
            loads(dumps(broken), spec=gated.spec, base_fingerprint="base", shapes=shapes)


def test_an_artifact_keeps_its_gate_and_refuses_one_that_cannot_work(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, chat_llama: LlamaForCausalLM
) -> None:
    spec = llama_spec()
    start = random_adapter(chat_llama, spec)
    rule = make_rule(start)
    header = ChatEncoder(tokenizer).assistant_header()

    def save(name: str, gate: Gate) -> str:
        gated_rule, folder = with_gate(rule, gate), tmp_path / name
        saved = save_artifact(folder, chat_llama, tokenizer, spec, start, gated_rule, {}, header)
        return saved.rule_hash

    good = Gate(1, 0.25, 0.05, Mix(0.5, 20.0))
    hashes = {save("good", good), save("plain", Gate(1, 0.25, 0.05))}
    assert load_artifact(tmp_path / "good").rule.gate == good
    for seed in (0, 1):
        words = random_words(tokenizer, seed)
        hashes.add(save("words", replace(good, words=words)))
    assert len(hashes) == 4, "what sessions derive by has changed"
    back = load_artifact(tmp_path / "words").rule.gate
    assert back is not None
    assert back.words is not None
    assert torch.equal(back.words.vectors, words.vectors)
    assert replace(back, words=None) == good
    path = tmp_path / "words" / WORDS_FILE
    first = path.read_bytes()
    save("words", replace(good, words=random_words(tokenizer, 2)))
    path.write_bytes(first)
    with pytest.raises(ArtifactError, match="of one export"):
        load_artifact(tmp_path / "words")
    path.write_bytes(b"words")
    with pytest.raises(ArtifactError, match=WORDS_FILE):
        load_artifact(tmp_path / "words")
    path.unlink()
    with pytest.raises(ArtifactError, match="of one export"):
        load_artifact(tmp_path / "words")
    with pytest.raises(ArtifactError, match="layer 9"):
        save("deep", Gate(9, 0.25))
    with pytest.raises(ArtifactError, match="threshold"):
        save("wide", Gate(1, 1.5))


def test_the_more_ways_to_ask_are_known_the_liker_a_prompt_must_be() -> None:
    gate = Gate(1, 0.3, 0.1)
    assert gate.threshold_for(1) == 0.3
    assert gate.threshold_for(5) < gate.threshold_for(50) < gate.threshold_for(10**6) <= 0.99
    keys, summary = torch.eye(8)[:6], torch.tensor([[0.4, 0, 0, 0, 0, 0, 0, 0.917]])
    several, one = Taught(keys, torch.arange(6), "view"), Taught(keys, torch.ones(6).long(), "view")
    assert threshold_of(gate, several) == 0.3
    assert threshold_of(gate, one) == gate.threshold_for(6)
    assert gate_opens(gate, several, summary).all()
    assert not gate_opens(gate, one, summary).any()


def leaving(*directions: int) -> Taught:
    """Two answers, of the first two directions, and prompts that are to be left alone."""
    answers = torch.tensor([3, 5, *(LEFT_ALONE for _ in directions)])
    return Taught(torch.eye(5)[[0, 1, *directions]], answers, "view")


def between(first: int, second: int, share: float) -> torch.Tensor:
    """(1, 5) a prompt that is nearer to the first direction by more than a half."""
    return torch.nn.functional.normalize(
        share * torch.eye(5)[[first]] + (1 - share) * torch.eye(5)[[second]], dim=1
    )


def test_a_prompt_that_is_nearer_to_one_to_be_left_alone_stays_closed() -> None:
    gate = Gate(1, 0.4)
    for share in (0.45, 0.55):
        asked = between(0, 2, share)
        assert gate_opens(gate, leaving(), asked).all(), "nothing else is known"
        assert gate_opens(gate, leaving(2), asked).item() == (share > 0.5)
        assert gate_opens(gate, leaving(3), asked).all(), "another prompt is left alone"
    assert not gate_opens(gate, leaving(2, 3), torch.eye(5)[[2, 3]]).any()
    assert gate_opens(gate, leaving(2, 3), torch.eye(5)[[0, 1]]).all()


def test_what_is_left_alone_is_no_answer_and_makes_others_less_wanted() -> None:
    numbers, weights = leaving(2).fitted
    assert numbers.tolist() == [3, 5]
    assert weights.shape == (5, 2)
    asked = between(0, 2, 0.55)
    taught = Taught(torch.eye(5)[:2] + 0.3 * torch.eye(5)[2], torch.tensor([3, 5]), "view")
    left = replace(taught, keys=torch.cat([taught.keys, torch.eye(5)[[2]]]))
    left = replace(left, answers=torch.tensor([3, 5, LEFT_ALONE]))
    assert gate_similarity(left, asked).item() < gate_similarity(taught, asked).item()
    assert threshold_of(Gate(1, 0.3, 0.1), left) == threshold_of(Gate(1, 0.3, 0.1), taught)


def test_nothing_taught_opens_no_gate() -> None:
    alone = leaving(2, 3).rows(torch.tensor([2, 3]))
    assert not gate_opens(Gate(1, 0.4), alone, torch.eye(5)).any()
    assert nearest(alone.answered, torch.eye(5)).tolist() == [-1.0] * 5
    assert threshold_of(Gate(1, 0.4, 0.1), alone) == 0.4
    assert choice_likeness(Gate(1, 0.4), alone, torch.eye(5), [(1,), (2,)]).isnan().all()


def test_a_house_does_not_say_what_a_session_disliked() -> None:
    gate, said, other = Gate(1, 0.4), answer_number((7,)), answer_number((8,))
    house = Taught(torch.eye(5)[:2], torch.tensor([said, other]), "view")
    own = Taught(torch.eye(5)[[3, 0]], torch.tensor([other, ~said]), "view")
    asked = torch.cat([torch.eye(5)[:2], between(0, 2, 0.6), between(0, 1, 0.6)])
    assert house_answers(gate, own, house, asked).tolist() == [False, True, False, False]
    # Another answer's dislike says nothing about the house's.
    own = replace(own, answers=torch.tensor([other, ~other]))
    assert house_answers(gate, own, house, asked).all()
    # Nor does one at a prompt that is farther away than the house's.
    own = replace(own, keys=torch.eye(5)[[3, 2]], answers=torch.tensor([other, ~said]))
    assert house_answers(gate, own, house, asked).all()
    assert not house_answers(gate, own, house.rows(torch.tensor([], dtype=torch.long)), asked).any()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([("p", True), ("q", False)], [False, True]),
        ([("q", False), ("p", True)], [True, False]),  # whichever came first
        ([("p", True), ("p", False)], [False, False]),  # no rating outweighs what is taught there
        ([("q", False), ("r", False)], [True, True]),  # nothing is taught at all
        ([("p", True), ("q", False), ("q", True)], [False, False, False]),
    ],
)
def test_a_prompt_that_was_only_answered_badly_is_the_bases(
    told: list[tuple[str, bool]], expected: list[bool]
) -> None:
    assert left_alone(told) == expected
