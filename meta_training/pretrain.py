"""Stage one: a small Llama learns dialogue text from scratch. Resumable.

Knows the recipe, the corpus and the tokenizer; knows nothing about adapters or episodes.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from meta_training.checkpoint import (
    Draws,
    Stateful,
    load_checkpoint,
    save_checkpoint,
    whole_steps,
)
from meta_training.corpus import Corpus, training_texts
from meta_training.recipe import ModelPart, PretrainPart, Recipe
from meta_training.tasks.sources import Dialogue
from meta_training.tokenizer import train_tokenizer

SAVED_EVERY = 500


def build_model(part: ModelPart, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama of the recipe's size, with tied embeddings."""
    config = LlamaConfig(
        vocab_size=part.vocab_size,
        hidden_size=part.hidden_size,
        num_hidden_layers=part.layers,
        num_attention_heads=part.heads,
        num_key_value_heads=part.heads,
        intermediate_size=part.intermediate_size,
        max_position_embeddings=part.context_tokens,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def corpus_texts(corpus: Corpus) -> list[str]:
    """Every training text: what the tokenizer is trained on."""
    return training_texts(corpus.train_dialogues, corpus.train_intents, corpus.train_personas)


class TextRows:
    """Endless rows of chat text, ``row_tokens`` long, packed from dialogue windows and questions.

    ``dialogue_share`` of the windows are dialogues; of the others, two thirds are single questions
    of training intents and one third persona questions with an answer.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        row_tokens: int,
        seed: int,
        dialogue_share: float = 0.7,
    ) -> None:
        self._other_share = 1 - dialogue_share
        self._random = random.Random(seed)
        self._row_tokens = row_tokens
        self._tokenizer = tokenizer
        self._dialogues = corpus.train_dialogues
        self._intents = corpus.train_intents
        self._personas = corpus.train_personas

    def batch(self, rows: int) -> torch.Tensor:
        """Return token ids, (rows, row_tokens)."""
        texts = [self._row() for _ in range(rows)]
        return torch.tensor(texts)

    def state_dict(self) -> dict[str, Any]:
        """Where the draws stand."""
        return Draws(self._random).state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the rows that were next when ``state_dict`` was taken."""
        Draws(self._random).load_state_dict(state_dict)

    def _row(self) -> list[int]:
        ids: list[int] = []
        while len(ids) < self._row_tokens:
            ids += self._window()
        return ids[: self._row_tokens]

    def _window(self) -> list[int]:
        draw = self._random.random()
        if draw < self._other_share * 2 / 3:
            question = self._random.choice(self._random.choice(self._intents).questions)
            messages = [{"role": "user", "content": question}]
        elif draw < self._other_share:
            group = self._random.choice(self._personas)
            question = self._random.choice(group.questions)
            answer = self._random.choice(group.answers)[1]
            messages = _messages([("user", question), ("assistant", answer)])
        else:
            messages = _messages(
                _dialogue_window(self._random.choice(self._dialogues), self._random)
            )
        encoded = self._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        return cast("list[int]", encoded)


def _messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def _dialogue_window(dialogue: Dialogue, rng: random.Random) -> list[tuple[str, str]]:
    starts = [i for i, (role, _) in enumerate(dialogue.turns) if role == "user"]
    start = rng.choice(starts or [0])
    return list(dialogue.turns[start : start + 6])


def cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then cosine to 2%."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def pretrain(
    recipe: Recipe, corpus: Corpus, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train (or load, or resume) the base model; leaves a Hugging Face folder at ``folder``.

    Ctrl-C finishes the step and saves; the same call goes on from there, bit for bit on a CPU.
    """
    if (folder / "model.safetensors").exists():
        return (
            LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager"),
            PreTrainedTokenizerFast.from_pretrained(folder),
        )
    torch.manual_seed(recipe.seed)
    if tokenizer is None:
        tokenizer = train_tokenizer(
            corpus_texts(corpus), recipe.model.vocab_size, recipe.model.context_tokens
        )
    model = build_model(recipe.model, tokenizer)
    model.set_attn_implementation("eager")
    rows = TextRows(corpus, tokenizer, recipe.pretrain.row_tokens, recipe.seed)
    _optimise(model, rows, recipe.pretrain, folder)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)  # last: that it is there says that this stage is done
    return model, tokenizer


def _optimise(model: LlamaForCausalLM, rows: TextRows, part: PretrainPart, folder: Path) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=part.learning_rate, betas=(0.9, 0.98), weight_decay=part.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine(step, part.steps, part.warmup_steps)
    )
    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    draws: dict[str, Stateful] = {"rows": rows}
    path = folder / "checkpoint.pt"
    done = load_checkpoint(path, parts, draws).step
    average = math.nan
    progress = tqdm(range(done, part.steps), initial=done, total=part.steps, desc="pretrain")
    with whole_steps() as stop:
        for step in progress:
            loss = _step(model, rows.batch(part.rows), optimizer, schedule)
            average = loss if math.isnan(average) else 0.98 * average + 0.02 * loss
            if step % 20 == 0:
                progress.set_postfix(loss=f"{average:.3f}")
            done = step + 1
            if done % SAVED_EVERY == 0:
                save_checkpoint(path, parts, draws, done)
            if stop.is_set():
                save_checkpoint(path, parts, draws, done)
                raise KeyboardInterrupt


def _step(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    optimizer.zero_grad()
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        loss = language_loss(model, ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return loss.item()


def language_loss(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy over text rows (B, T), in nats."""
    logits = model(input_ids=ids, use_cache=False).logits  # (B, T, V)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
