"""Our layer, prefix and folders compute what PEFT computes on the same weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import CPU, GPT2_TARGETS, llama_spec, make_gpt2, random_adapter
from torch import Tensor
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from adapters.chat import ChatEncoder
from adapters.config import LoraSpec, Scope
from adapters.layer import LoraHooks, Rows
from adapters.peft_io import save_peft
from adapters.prefix import continue_from, empty_prefix, pad, prefill
from adapters.state import AdapterState, Tensors, stack

# PEFT 0.21 asks transformers 5.23 by a name that the latter deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CHATS = [
    [{"role": "user", "content": "When do you open?"}],
    [
        {"role": "system", "content": "You work in a shop."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good morning!"},
        {"role": "user", "content": "Where is my parcel?"},
        {"role": "assistant", "content": "On the van."},
        {"role": "user", "content": "Why?"},
    ],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ],
]
ANSWERS = ["At nine.", "The roof is warm there, I think.", "four"]


def peft_logits(
    base: PreTrainedModel,
    folder: Path,
    state: AdapterState,
    sequence: tuple[int, ...],
    header: tuple[int, ...] | None,
) -> Tensor:
    """What PEFT says about one whole sequence, (T, V)."""
    save_peft(folder, state, header, transposed=isinstance(base, GPT2LMHeadModel))
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([sequence])).logits[0]
    return logits


def adapters_of(base: PreTrainedModel, spec: LoraSpec, count: int) -> list[Tensors]:
    return [random_adapter(base, spec, seed) for seed in range(count)]


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("scope", ["activated", "full"])
def test_batch_of_sessions_equals_peft_row_by_row(
    scope: Scope,
    alpha: float | None,
    chat_llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    encoder, spec = ChatEncoder(tokenizer), llama_spec(scope, alpha=alpha)
    header = encoder.assistant_header()
    adapters = adapters_of(chat_llama, spec, 2)
    examples = [encoder.example(c, a) for c, a in zip(CHATS, ANSWERS, strict=True)]
    slots = [1, 0, 1]
    base = copy.deepcopy(chat_llama)
    hooks = LoraHooks(chat_llama, spec)
    if scope == "full":
        prefix = empty_prefix(3, CPU)
        rows = [e.prompt + e.header + e.completion for e in examples]
    else:
        prefix = prefill(chat_llama, [e.prompt for e in examples], CPU)
        rows = [e.header + e.completion for e in examples]
    with torch.no_grad(), hooks.use(Rows(stack(adapters), torch.tensor(slots))):
        ours = continue_from(chat_llama, prefix, pad(rows, 0, CPU))
    for index, (example, slot) in enumerate(zip(examples, slots, strict=True)):
        state = AdapterState(spec, adapters[slot], "")
        sequence = example.prompt + example.header + example.completion
        theirs = peft_logits(base, tmp_path / str(index), state, sequence, header)
        length = len(rows[index])
        torch.testing.assert_close(ours[index, :length], theirs[-length:], atol=1e-4, rtol=0)


def test_activation_mask_on_whole_sequences_equals_peft(
    chat_llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encoder, spec = ChatEncoder(tokenizer), llama_spec()
    adapters = adapters_of(chat_llama, spec, 2)
    examples = [encoder.example(c, a) for c, a in zip(CHATS, ANSWERS, strict=True)]
    sequences = [e.prompt + e.header + e.completion for e in examples]
    ids = pad(sequences, 0, CPU)
    starts = torch.tensor([len(e.prompt) for e in examples]).unsqueeze(1)
    active = torch.arange(ids.shape[1]).unsqueeze(0) >= starts  # (B, T)
    slots = [0, 1, 1]
    base = copy.deepcopy(chat_llama)
    hooks = LoraHooks(chat_llama, spec)
    rows = Rows(stack(adapters), torch.tensor(slots), active)
    with torch.no_grad(), hooks.use(rows):
        ours = continue_from(chat_llama, empty_prefix(3, CPU), ids)
    for index, slot in enumerate(slots):
        state = AdapterState(spec, adapters[slot], "")
        theirs = peft_logits(
            base, tmp_path / str(index), state, sequences[index], encoder.assistant_header()
        )
        length = len(sequences[index])
        torch.testing.assert_close(ours[index, :length], theirs, atol=1e-4, rtol=0)


def test_the_adapters_matter_and_the_prompt_does_not_change_with_them(
    chat_llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    example = ChatEncoder(tokenizer).example(CHATS[1], ANSWERS[1])
    spec = llama_spec()
    hooks = LoraHooks(chat_llama, spec)
    prefix = prefill(chat_llama, [example.prompt], CPU)
    ids = torch.tensor([example.header + example.completion])
    with torch.no_grad():
        plain = continue_from(chat_llama, prefix, ids)
        rows = Rows(stack(adapters_of(chat_llama, spec, 1)), torch.tensor([0]))
        with hooks.use(rows):
            taught = continue_from(chat_llama, prefix, ids)
        again = continue_from(chat_llama, prefix, ids)
    assert float((plain - taught).abs().max()) > 0.1
    assert torch.equal(plain, again)


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_gpt2_with_transposed_weights_equals_peft(scope: Scope, tmp_path: Path) -> None:
    model, header = make_gpt2(), (3, 4)
    spec = LoraSpec(4, GPT2_TARGETS, 8.0, scope)
    prompts = [(7, 8, 9, 3, 4, 11, 12), (20, 21)]
    tails = [(*header, 30, 31), (*header, 32)]
    adapters = adapters_of(model, spec, 2)
    base = copy.deepcopy(model)
    hooks = LoraHooks(model, spec)
    if scope == "full":
        prefix, rows = empty_prefix(2, CPU), [p + t for p, t in zip(prompts, tails, strict=True)]
    else:
        prefix, rows = prefill(model, prompts, CPU), tails
    with torch.no_grad(), hooks.use(Rows(stack(adapters), torch.tensor([1, 0]))):
        ours = continue_from(model, prefix, pad(rows, 0, CPU))
    for index, slot in enumerate([1, 0]):
        state = AdapterState(spec, adapters[slot], "")
        theirs = peft_logits(
            base, tmp_path / str(index), state, prompts[index] + tails[index], header
        )
        length = len(rows[index])
        torch.testing.assert_close(ours[index, :length], theirs[-length:], atol=1e-4, rtol=0)


def test_removed_hooks_leave_the_model_as_it_was() -> None:
    model, spec = make_gpt2(), LoraSpec(4, GPT2_TARGETS)
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    hooks = LoraHooks(model, spec)
    hooks.rows = Rows(stack(adapters_of(model, spec, 1)), torch.tensor([0]))
    assert not torch.equal(model(input_ids=ids).logits, before)
    hooks.remove()
    assert torch.equal(model(input_ids=ids).logits, before)
