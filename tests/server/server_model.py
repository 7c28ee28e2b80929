"""A tiny random model folder that learns fast, for tests of the whole server."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.artifact import Artifact, save_artifact
from adapters.chat import ChatEncoder
from adapters.config import InnerRule, LoraSpec
from adapters.state import tensor_shapes
from meta_training.tokenizer import train_tokenizer

SHOP = Path(__file__).parents[1] / "data" / "shop.jsonl"
CONTEXT_TOKENS = 192
TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_model_folder(folder: Path, seed: int = 0) -> Artifact:
    """Write the artifact; another ``seed`` gives another base."""
    rows = [json.loads(line) for line in SHOP.read_text().splitlines()]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        texts = [row[key] for row in rows for key in ("text", "answer")]
        tokenizer = train_tokenizer(texts, 400, CONTEXT_TOKENS)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=CONTEXT_TOKENS,
                initializer_range=0.25,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ).eval()
        spec = LoraSpec(8, TARGETS)
        init = {
            name: torch.randn(shape) * (shape[1] ** -0.5 if name.endswith("lora_A") else 0.02)
            for name, shape in tensor_shapes(model, spec).items()
        }
    rule = InnerRule(12, {name: torch.full((12,), 0.7) for name in init}, 1.5)
    header = ChatEncoder(tokenizer).assistant_header()
    return save_artifact(folder, model, tokenizer, spec, init, rule, {}, header)
