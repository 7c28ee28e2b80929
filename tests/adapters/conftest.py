from __future__ import annotations

import pytest
from tiny_models import make_llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from meta_training.tokenizer import train_tokenizer

TEXTS = [
    "What time do you open tomorrow?",
    "We open at nine and close at six.",
    "Where is my parcel? It was due on Monday.",
    "Your parcel is on the roof of the van.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the chat template of the models we train."""
    return train_tokenizer(TEXTS, 300, 128)


@pytest.fixture
def chat_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A tiny Llama that goes with ``tokenizer``."""
    model = make_llama(vocab=len(tokenizer))
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    return model
