"""Stage one: a small Llama learns dialogue text from scratch, or a base is fetched. Resumable.

Knows the recipe, the corpus and the tokenizer; knows nothing about adapters or episodes.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from adapters.artifact import RULE_FILE, ArtifactError
from adapters.base_model import LoadedBase, load_base
from adapters.device import CPU
from adapters.pretrained import check_vocabulary, from_folder
from meta_training.checkpoint import (
    Draws,
    Stateful,
    load_checkpoint,
    save_checkpoint,
    whole_steps,
)
from meta_training.corpus import Corpus, training_texts
from meta_training.device import bfloat16_products
from meta_training.recipe import Recipe, RecipeError
from meta_training.recipe_parts import ModelPart, PretrainPart
from meta_training.tasks.own import texts_of
from meta_training.tasks.sources import DataError, Dialogue
from meta_training.tokenizer import token_ids, train_tokenizer

SAVED_LAST = ("model.safetensors", "model.safetensors.index.json")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
SAVED_EVERY = 500


def build_model(
    part: ModelPart, tokenizer: PreTrainedTokenizerFast, device: torch.device = CPU
) -> LlamaForCausalLM:
    """A randomly initialised Llama of the recipe's size, with tied embeddings.

    Drawn on the CPU, so that a seed begins alike on every ``device``.
    """
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
    model = LlamaForCausalLM(config)
    module: torch.nn.Module = model
    module.to(device)
    return model


def corpus_texts(corpus: Corpus) -> list[str]:
    """Every training text: what the tokenizer is trained on."""
    texts = training_texts(corpus.train_dialogues, corpus.train_intents, corpus.train_personas)
    return texts + texts_of(corpus.train_pairs)


class TextRows:
    """Endless rows of chat text, ``row_tokens`` long, packed from dialogue windows and questions.

    ``dialogue_share`` of the windows are dialogues; of the others, two thirds are single questions
    of training intents and one third persona questions with an answer. What a corpus has none of
    leaves its share to the rest; pairs of one's own tasks come as often as dialogues.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        row_tokens: int,
        seed: int,
        dialogue_share: float = 0.7,
    ) -> None:
        other_share = 1 - dialogue_share
        self._pairs = [pair for task in corpus.train_pairs for pair in task.pairs]
        windows: list[tuple[float, Sequence[object], Callable[[], list[dict[str, str]]]]] = [
            (other_share * 2 / 3, corpus.train_intents, self._question),
            (other_share / 3, corpus.train_personas, self._small_talk),
            (dialogue_share, corpus.train_dialogues, self._dialogue),
            (dialogue_share, self._pairs, self._pair),
        ]
        self._windows = [(share, draw) for share, some, draw in windows if some and share]
        if not self._windows:
            raise DataError("there is no text to train on: the data has no training tasks")
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
        return _chat_ids(self._drawn(self._random.random())(), self._tokenizer)

    def _drawn(self, place: float) -> Callable[[], list[dict[str, str]]]:
        """What stands at ``place``, from 0 to 1, of the windows by their shares."""
        ends = list(accumulate(share for share, _ in self._windows))
        here = bisect_right(ends, place * ends[-1])
        return self._windows[min(here, len(ends) - 1)][1]

    def _question(self) -> list[dict[str, str]]:
        question = self._random.choice(self._random.choice(self._intents).questions)
        return [{"role": "user", "content": question}]

    def _small_talk(self) -> list[dict[str, str]]:
        group = self._random.choice(self._personas)
        question = self._random.choice(group.questions)
        answer = self._random.choice(group.answers)[1]
        return _messages([("user", question), ("assistant", answer)])

    def _dialogue(self) -> list[dict[str, str]]:
        return _messages(_dialogue_window(self._random.choice(self._dialogues), self._random))

    def _pair(self) -> list[dict[str, str]]:
        pair = self._random.choice(self._pairs)
        return _messages([("user", pair.prompt), ("assistant", pair.completion)])


def dialogue_rows(
    dialogues: Sequence[Dialogue],
    tokenizer: PreTrainedTokenizerBase,
    row_tokens: int,
    most: int,
    seed: int,
) -> torch.Tensor:
    """Token ids (rows, row_tokens) of windows as ``TextRows`` packs them, no dialogue twice.

    At most ``most`` rows, in an order drawn from ``seed``. What fills no row is left out, but where
    there is none: then it is the only one, and shorter.
    """
    rng = random.Random(seed)
    rows: list[list[int]] = []
    ids: list[int] = []
    for dialogue in rng.sample(dialogues, len(dialogues)):
        if len(rows) == most:
            break
        ids += _chat_ids(_messages(_dialogue_window(dialogue, rng)), tokenizer)
        if len(ids) >= row_tokens:
            rows.append(ids[:row_tokens])
            ids = []
    return torch.tensor(rows or [ids])


def _chat_ids(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.chat_template is None:
        text = "\n".join(message["content"] for message in messages)
        return token_ids([text + (tokenizer.eos_token or "\n")], tokenizer)[0]
    encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
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
    recipe: Recipe,
    corpus: Corpus,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    device: torch.device = CPU,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train (or load, or resume) the base model on ``device``, in float32.

    Leaves a Hugging Face folder at ``folder``. Where the recipe has a base, that is loaded, and
    trained on where ``pretrain.steps`` says so.
    Ctrl-C finishes the step and saves; a second call goes on, bit for bit on the same CPU.

    Raises:
        RecipeError: the recipe's base is neither a folder nor to be had from the hub.
        ArtifactError: it is no causal LM that we can compute with, or the recipe's tokenizer none.
    """
    if any((folder / name).exists() for name in SAVED_LAST):
        return _differentiable(load_base(folder, device, torch.float32))
    torch.manual_seed(recipe.seed)
    if recipe.model.given is not None:
        base = load_base(_base_folder(recipe.model), device, torch.float32)
        model, tokens = _differentiable(base)
        if recipe.pretrain.steps:
            rows = TextRows(corpus, tokens, recipe.pretrain.row_tokens, recipe.seed)
            _optimise(model, rows, recipe.pretrain, folder)
        tokens.save_pretrained(folder)
        model.save_pretrained(folder)
        return model, tokens
    if tokenizer is None:
        tokenizer = _tokenizer(recipe.model, corpus)
    model = build_model(recipe.model, tokenizer, device)
    model.set_attn_implementation("eager")
    rows = TextRows(corpus, tokenizer, recipe.pretrain.row_tokens, recipe.seed)
    _optimise(model, rows, recipe.pretrain, folder)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)  # last: that it is there says that this stage is done
    return model, tokenizer


def _tokenizer(part: ModelPart, corpus: Corpus) -> PreTrainedTokenizerFast:
    """The one that the recipe names, or one that is trained on the corpus."""
    if part.tokenizer is None:
        return train_tokenizer(corpus_texts(corpus), part.vocab_size, part.context_tokens)
    folder = Path(part.tokenizer)
    load = AutoTokenizer.from_pretrained
    tokenizer: PreTrainedTokenizerFast = from_folder(folder, load, "a tokenizer", ArtifactError)
    check_vocabulary(folder, tokenizer, part.vocab_size, ArtifactError)
    tokenizer.model_max_length = part.context_tokens
    return tokenizer


def _differentiable(base: LoadedBase) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base with weights that learn, and attention that can be differentiated twice."""
    base.model.requires_grad_(True)
    base.model.set_attn_implementation("eager")
    return base.model, base.tokenizer


def _base_folder(part: ModelPart) -> Path:
    """Where the recipe's base lies, once it is fetched."""
    base = part.base
    if base is None:
        return artifact_folder(part)
    if Path(base).is_dir():
        return Path(base)
    try:
        return Path(snapshot_download(base, allow_patterns=HUB_FILES))
    except Exception as error:  # of the network, of the hub, or a name that is none
        raise RecipeError(
            f"model.base: there is no folder {base}, and no such model could be fetched: "
            f"{type(error).__name__}: {error}"
        ) from error


def artifact_folder(part: ModelPart) -> Path:
    """The artifact that the recipe goes on from.

    Raises:
        RecipeError: it names none, or what it names has no inner rule.
    """
    folder = Path(part.artifact or "")
    if part.artifact is None or not (folder / RULE_FILE).is_file():
        raise RecipeError(
            f"model.artifact: {part.artifact} is no artifact, as it has no {RULE_FILE}: name a "
            "folder that meta-train made, or say model.base for a plain model"
        )
    return folder


def _optimise(model: PreTrainedModel, rows: TextRows, part: PretrainPart, folder: Path) -> None:
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
    model: PreTrainedModel,
    ids: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    optimizer.zero_grad()
    with bfloat16_products(model.device):
        loss = language_loss(model, ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return loss.item()


def language_loss(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy over text rows (B, T) from any device, in nats."""
    ids = ids.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits  # (B, T, V)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
