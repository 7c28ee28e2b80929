from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import CPU, llama_spec, make_llama, make_rule, random_adapter
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.artifact import ArtifactError, load_artifact, save_artifact
from adapters.chat import ChatEncoder
from adapters.config import Gate, InnerRule
from adapters.gate import gate_keys, gate_opens, gate_similarity
from adapters.prefix import prefill
from adapters.snapshot import SnapshotError, dumps, loads
from adapters.state import AdapterState, Tensors

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]


def with_gate(rule: InnerRule, gate: Gate) -> InnerRule:
    return InnerRule(rule.steps, rule.step_sizes, rule.clip, gate=gate)


def test_a_taught_prompt_opens_its_own_gate_at_any_threshold_below_one() -> None:
    summaries = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    keys = gate_keys(summaries)
    assert gate_opens(Gate(1, 0.9999), keys, summaries).all()
    torch.testing.assert_close(gate_similarity(keys, 7 * summaries), torch.ones(3))


def test_what_is_far_from_every_key_stays_closed() -> None:
    keys = gate_keys(torch.eye(4)[:2])
    far = torch.eye(4)[2:]
    near = torch.tensor([[1.0, 0.0, 0.1, 0.0]])
    assert not gate_opens(Gate(1, 0.5), keys, far).any()
    assert gate_opens(Gate(1, 0.5), keys, near).all()


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
    keys = gate_keys(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    return AdapterState(spec, random_adapter(chat_llama, spec), "base", keys)


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_a_snapshot_keeps_the_keys(gated: AdapterState) -> None:
    shapes = shapes_of(gated.tensors)
    back = loads(dumps(gated), spec=gated.spec, base_fingerprint="base", shapes=shapes)
    assert back.keys is not None
    assert gated.keys is not None
    assert torch.equal(back.keys, gated.keys)
    assert list(back.tensors) == list(shapes)


def test_a_snapshot_with_keys_that_are_no_vectors_is_refused(gated: AdapterState) -> None:
    broken = AdapterState(gated.spec, gated.tensors, "base", torch.ones(3))
    shapes = shapes_of(gated.tensors)
    with pytest.raises(SnapshotError, match="vectors"):
        loads(dumps(broken), spec=gated.spec, base_fingerprint="base", shapes=shapes)


def test_an_artifact_keeps_its_gate_and_refuses_one_that_cannot_work(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, chat_llama: LlamaForCausalLM
) -> None:
    spec = llama_spec()
    start = random_adapter(chat_llama, spec)
    rule = make_rule(start)
    header = ChatEncoder(tokenizer).assistant_header()

    def save(name: str, gate: Gate) -> None:
        gated_rule = with_gate(rule, gate)
        save_artifact(tmp_path / name, chat_llama, tokenizer, spec, start, gated_rule, {}, header)

    save("good", Gate(1, 0.25, 0.05))
    assert load_artifact(tmp_path / "good").rule.gate == Gate(1, 0.25, 0.05)
    with pytest.raises(ArtifactError, match="layer 9"):
        save("deep", Gate(9, 0.25))
    with pytest.raises(ArtifactError, match="threshold"):
        save("wide", Gate(1, 1.5))


def test_the_more_is_taught_the_nearer_a_prompt_must_be() -> None:
    gate = Gate(1, 0.3, 0.1)
    assert gate.threshold_for(1) == 0.3
    assert gate.threshold_for(5) < gate.threshold_for(50) < gate.threshold_for(10**6) <= 0.99
    keys = gate_keys(torch.eye(8)[:6])
    summary = torch.tensor([[0.4, 0, 0, 0, 0, 0, 0, 0.917]])
    assert gate_opens(gate, keys[:1], summary).all()
    assert not gate_opens(gate, keys, summary).any()
