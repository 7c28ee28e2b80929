"""A tiny random sentence encoder in a folder, in the form of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from meta_training.tokenizer import train_tokenizer

WIDTH = 16
TEXTS = (
    "What time do you open tomorrow?",
    "Where is my parcel? It was due on Monday.",
    "Can I return a jug?",
)


def save_encoder(
    folder: Path, texts: Sequence[str] = TEXTS, seed: int = 0, pooling: str = "mean_tokens"
) -> Path:
    """Two layers of random weights; its tokenizer knows ``texts``."""
    tokenizer = train_tokenizer(list(texts), 300, 64)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=256,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": n,
            "path": "1_Pooling" if n == 1 else "",
            "type": f"sentence_transformers.models.{k}",
        }
        for n, k in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens")}
    text = json.dumps({"word_embedding_dimension": WIDTH, f"pooling_mode_{pooling}": True} | modes)
    (folder / "1_Pooling" / "config.json").write_text(text, encoding="utf-8")
    return folder


def spoil(folder: Path, file: str, content: object) -> Path:
    """Put JSON content in the place of a file of ``folder``."""
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / file).write_text(text, encoding="utf-8")
    return folder
