from __future__ import annotations

from pathlib import Path

import pytest
from tiny_encoder import save_encoder
from tiny_models import make_llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.encoder import Encoder
from adapters.encoder_folder import load_encoder
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


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence encoder; whoever changes it takes a copy."""
    return save_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def encoder(encoder_folder: Path, tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """That encoder, for prompts of ``tokenizer``."""
    return load_encoder(str(encoder_folder), tokenizer)
