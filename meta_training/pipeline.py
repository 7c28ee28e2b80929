"""Puts a recipe's parts together: corpus, base, learner, episodes and the outer loop.

The one place that knows all stages of meta-training; holds no algorithm of its own.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters.base_model import input_embedding
from adapters.chat import ChatEncoder, PromptError, user_turn
from adapters.config import Anchor, Gate, SpecError
from adapters.device import CPU
from adapters.plain import linear_targets
from adapters.state import target_modules
from adapters.words import Words
from meta_training.base_lora import add_base_lora
from meta_training.contrast import QuestionDraws
from meta_training.corpus import Corpus, load_corpus
from meta_training.embed import embed
from meta_training.evaluation.cells import TaskDrawer, drawable_cells, held_out_questions
from meta_training.further import check_material, check_split, further_learner, further_seed
from meta_training.gating import calibrate_gate, calibrate_memory, gate_intents
from meta_training.kept_out import keep_kept_out
from meta_training.learner import Learner
from meta_training.pretrain import TextRows, pretrain
from meta_training.recipe import Recipe, RecipeError
from meta_training.recipe_parts import InnerPart, OuterPart
from meta_training.record import keep_record
from meta_training.tasks.batches import UnrelatedPool
from meta_training.tasks.difficulty import Difficulty
from meta_training.tasks.episodes import as_intent, unrelated_questions
from meta_training.tasks.families import Families
from meta_training.tasks.neighbours import neighbour_intents, short_turns
from meta_training.tasks.sampler import EpisodeSampler
from meta_training.tasks.sources import DataError, Intent, PairTask, PersonaGroup
from meta_training.team import ALONE, Team
from meta_training.tokenizer import token_ids
from meta_training.train import JUDGED_EVERY, OuterLoop
from meta_training.words import train_words

POOL_SIZE = 96  # unrelated questions held at a time
ANSWER_TOKENS = 12  # of the untaught model's greedy answer that must stay


@dataclass(frozen=True)
class Workshop:
    """A recipe with its corpus loaded and its base there."""

    recipe: Recipe
    corpus: Corpus
    turns: list[str]  # of training dialogues, about as long as a question
    intents: list[Intent]  # labelled ones of the corpus, and neighbours among the turns
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @property
    def inner(self) -> InnerPart:
        """Shape and steps of the sessions' adapters on this base."""
        inner = self.recipe.session
        targets = inner.targets or list(linear_targets(self.model))
        return inner.model_copy(update={"targets": targets})

    @property
    def context_tokens(self) -> int:
        """The longest sequence that the base is right for."""
        return _context_tokens(self.model)

    @property
    def kinds(self) -> list[Intent]:
        """Everything that has several wordings of one question."""
        return self.intents + [as_intent(group) for group in self.corpus.train_personas]


def open_workshop(recipe: Recipe, data: Path, folder: Path, device: torch.device = CPU) -> Workshop:
    """Load the corpus and pre-train the base, or take up where an earlier call stopped.

    All stages run on ``device``: where the base is, everything is.

    Raises:
        DataError: a file is missing or broken, the data is too little for the recipe, or it is
            split in another way than when ``folder`` or the recipe's artifact was made.
        RecipeError: ``folder`` was made with another recipe, or the recipe's artifact may have been
            trained on what it holds out.
        ArtifactError: that artifact is broken, or its report.
        CheckpointError: ``folder`` has a checkpoint that does not fit.
    """
    check_split(recipe)  # before minutes of reading
    corpus = load_corpus(data, recipe.data, recipe.seed)
    check_material(recipe, corpus.kept_out)
    if recipe.inner.gate:
        gate_intents(corpus)
    keep_record(recipe, folder, {"seed", "model", "data", "pretrain", "embed"})
    keep_kept_out(corpus.kept_out, folder)
    model, tokenizer = pretrain(recipe, corpus, folder / "pretrained", device=device)
    _check_fit(recipe, corpus, model, tokenizer)
    turns = short_turns(corpus.train_dialogues)
    neighbours = neighbour_intents(turns, recipe.data.neighbours, recipe.seed)
    intents = corpus.train_intents + neighbours
    return Workshop(recipe, corpus, turns, intents, model, tokenizer, folder)


def build_learner(workshop: Workshop) -> Learner:
    """A learner at the start of meta-training: as it always begins, or as its artifact ended.

    Raises:
        RecipeError: the recipe cannot go on from its artifact.
    """
    if workshop.recipe.model.artifact is not None:
        return further_learner(workshop.recipe, workshop.model)
    encoder = ChatEncoder(workshop.tokenizer)
    inner = workshop.inner
    anchors = choose_anchors(workshop.corpus, encoder, inner, workshop.recipe.seed)
    return Learner(workshop.model, encoder, inner, anchors, workshop.recipe.seed)


def choose_base(learner: Learner, recipe: Recipe) -> None:
    """Let the outer loop learn of the base what the recipe says; after the stages before it.

    Raises:
        SpecError: the base has no module of a name.
    """
    part = recipe.outer
    if part.base == "lora":
        add_base_lora(learner.model, learner.spec.targets, part.base_rank, recipe.seed)
    elif part.base == "frozen" or part.base_modules:
        learner.model.requires_grad_(False)
        for module in target_modules(learner.model, part.base_modules).values():
            module.requires_grad_(True)


def embed_questions(workshop: Workshop, learner: Learner) -> None:
    """The contrastive stage, once; later calls load what it made."""
    recipe, corpus = workshop.recipe, workshop.corpus
    if recipe.embed.steps:
        texts = TextRows(corpus, workshop.tokenizer, recipe.pretrain.row_tokens, recipe.seed + 2)
        path = workshop.folder / "embedded.pt"
        kinds = workshop.kinds
        embed(learner, kinds, workshop.turns, texts, recipe.embed, path, recipe.seed)


def build_outer_loop(
    workshop: Workshop,
    learner: Learner,
    team: Team = ALONE,
    judge: Callable[[int], dict[str, float]] | None = None,
    judged_every: int = JUDGED_EVERY,
) -> OuterLoop:
    """The outer loop over the recipe's training tasks; ``judge`` is as of ``OuterLoop``.

    Raises:
        RecipeError: the run's folder has another outer loop of this algorithm.
    """
    corpus, recipe = workshop.corpus, workshop.recipe
    encoder = learner.encoder
    difficulty = Difficulty() if recipe.outer.selection == "difficulty" else None
    families = make_families(
        workshop.tokenizer,
        workshop.intents,
        corpus.train_replies,
        corpus.train_personas,
        corpus.train_pairs,
        difficulty,
    )
    pool = UnrelatedPool(
        unrelated_questions(corpus.train_intents, corpus.train_personas, corpus.train_pairs),
        encoder,
        lambda examples: learner.greedy(examples, ANSWER_TOKENS),
        POOL_SIZE,
    )
    room = workshop.context_tokens if recipe.outer.algorithm == "in-context" else 0
    sampler = EpisodeSampler(
        families,
        pool,
        encoder,
        recipe.outer.families,
        recipe.outer.tasks,
        room,
        recipe.outer.wrong_share,
        difficulty,
    )
    part, seed = recipe.outer, further_seed(recipe)
    _tell_unbounded(part, sampler)
    texts = TextRows(corpus, workshop.tokenizer, recipe.pretrain.row_tokens, seed + 1)
    folder = workshop.folder / recipe.outer.algorithm
    keep_record(recipe, folder, {"inner", "outer"})
    choose_base(learner, recipe)
    return OuterLoop(learner, sampler, pool, texts, part, folder, seed, judge, team, judged_every)


def make_gate(workshop: Workshop, learner: Learner) -> Gate | None:
    """The gate of a learner whose outer loop is done, where the recipe wants one."""
    recipe, corpus = workshop.recipe, workshop.corpus
    if not recipe.inner.gate:
        return None
    words = _words(workshop, learner) if recipe.words.steps else None
    gate = calibrate_gate(learner, corpus, words, recipe.seed)
    drawer = validation_drawer(corpus, workshop.tokenizer, recipe.seed)
    try:
        return calibrate_memory(learner, gate, drawer)
    except DataError as error:  # hours of training are not lost for this
        print(f"the model alone will pick from choices: {error}", file=sys.stderr)
        return gate


def _context_tokens(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().max_position_embeddings)


def _check_fit(
    recipe: Recipe, corpus: Corpus, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse now what the export or an episode would stumble over after hours."""
    encoder = ChatEncoder(tokenizer)
    if recipe.inner.scope == "activated" and encoder.assistant_header() is None:
        raise RecipeError(
            f"{recipe.model.given or recipe.model.tokenizer} has no chat template whose answers "
            "begin with tokens of their own, which inner.scope activated needs: use an "
            "instruction-tuned model or its tokenizer, or set inner.scope to full and inner.gate "
            "to false"
        )
    if recipe.inner.scope == "full" and recipe.inner.gate:
        raise RecipeError("inner.gate needs inner.scope activated: set it to false")
    try:
        target_modules(model, recipe.outer.base_modules)
    except SpecError as error:
        raise RecipeError(f"outer.base_modules: {error}") from error
    for text in corpus.own_texts() if recipe.data.tasks else ():
        try:
            encoder.completion(text)
        except PromptError as error:
            raise DataError(f"data.tasks: the text {text[:80]!r}: {error}") from error
    if recipe.data.tasks:
        _check_lengths(corpus, encoder, _context_tokens(model))
        _tell_unjudged(recipe, held_out_drawer(corpus, tokenizer, recipe.seed))


def _check_lengths(corpus: Corpus, encoder: ChatEncoder, context_tokens: int) -> None:
    """Refuse turns for which the base has too few positions, in training or where it answers."""
    turns = list(corpus.own_turns())
    frame = encoder.example(user_turn("a"), "").tokens - 1  # what the chat template adds
    asked = token_counts([question for _, question, _ in turns], encoder.tokenizer)
    said = token_counts([answer for *_, answer in turns], encoder.tokenizer)
    for (source, question, _), *counts in zip(turns, asked, said, strict=True):
        tokens = frame + counts[0] + max(counts[1], ANSWER_TOKENS)
        if tokens > context_tokens:
            raise DataError(
                f"data.tasks: {source}: {question[:60]!r} is {tokens} tokens with its answer, and "
                f"the base has {context_tokens} positions: lower longest_words of its part, or "
                "take a base with more"
            )


def _tell_unjudged(recipe: Recipe, drawer: TaskDrawer) -> None:
    judged = {cell.family for cell in drawable_cells(drawer)}
    unjudged = [name for name in recipe.outer.families if name not in judged]
    if unjudged:
        print(
            f"too little is held out to judge {', '.join(unjudged)} by: raise held_out of its "
            "data.tasks, or the report will not have it",
            file=sys.stderr,
        )


def _tell_unbounded(part: OuterPart, sampler: EpisodeSampler) -> None:
    unbounded = sampler.never_unrelated() if part.locality_weight else []
    if unbounded:
        print(
            f"no training question is unrelated to an episode of {', '.join(unbounded)}: "
            "outer.locality_weight does nothing there, and nobody learns to leave other answers "
            "alone; more classes or tasks would change that",
            file=sys.stderr,
        )


def make_families(
    tokenizer: PreTrainedTokenizerBase,
    intents: Sequence[Intent],
    replies: Sequence[str],
    personas: Sequence[PersonaGroup],
    pairs: Sequence[PairTask] = (),
    difficulty: Difficulty | None = None,
) -> Families:
    """Episodes of every family about this material, in a tokenizer's words and lengths."""
    counts = token_counts(list(replies), tokenizer)
    words = label_words(tokenizer)
    return Families(intents, replies, personas, words, counts, pairs, difficulty)


def validation_drawer(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, seed: int) -> TaskDrawer:
    """Tasks about validation intents, with the replies and personas of training."""
    families = make_families(
        tokenizer,
        corpus.validation_intents,
        corpus.train_replies,
        corpus.train_personas,
        corpus.validation_pairs,
    )
    others = unrelated_questions(
        corpus.validation_intents, corpus.train_personas, corpus.validation_pairs
    )
    return TaskDrawer(families, others, seed)


def held_out_drawer(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, seed: int) -> TaskDrawer:
    """Tasks about intents, replies, personas and questions that no training stage has seen."""
    families = make_families(
        tokenizer,
        corpus.held_out_intents,
        corpus.test_replies,
        corpus.held_out_personas,
        corpus.held_out_pairs,
    )
    return TaskDrawer(families, held_out_questions(corpus), seed)


def _words(workshop: Workshop, learner: Learner) -> Words:
    recipe, turns = workshop.recipe, workshop.turns
    folder = workshop.folder / recipe.outer.algorithm / "words"
    keep_record(recipe, folder, {"words"})
    rng, kinds = random.Random(f"{recipe.seed}-words"), workshop.kinds
    # Who leaves the contrastive stage out never said how many kinds a step has.
    fitting = recipe.embed.model_copy(update={"kinds": min(recipe.embed.kinds, len(kinds))})
    draws = QuestionDraws(kinds, turns, fitting, rng)
    labelled = [text for intent in workshop.corpus.train_intents for text in intent.questions]
    return train_words(
        input_embedding(learner.model),
        workshop.tokenizer,
        draws,
        turns + labelled,
        recipe.words,
        folder / "words.safetensors",
    )


def token_counts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each text, without control tokens."""
    return [len(ids) for ids in token_ids(texts, tokenizer)]


def label_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Plain words that are one token of the vocabulary, in the vocabulary's order."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    words = (token[1:] for token, _ in tokens if token.startswith(("Ġ", "▁")))
    return [word for word in words if len(word) >= 3 and word.isascii() and word.isalpha()]


def choose_anchors(
    corpus: Corpus, encoder: ChatEncoder, part: InnerPart, seed: int
) -> list[Anchor]:
    """Short first turns of training dialogues and persona questions, drawn by ``seed``.

    Half of them are persona questions; no two have the same answer. Fewer where there are fewer.
    """
    rng = random.Random(seed)
    pairs = [
        (dialogue.turns[0][1], dialogue.turns[1][1])
        for dialogue in corpus.train_dialogues
        if len(dialogue.turns) > 1 and dialogue.turns[0][0] == "user"
    ]
    rng.shuffle(pairs)
    chat = [(group.questions[0], group.answers[0][1]) for group in corpus.train_personas]
    if chat:
        pairs = [pair for both in zip(pairs, chat * len(pairs), strict=False) for pair in both]
    anchors: dict[str, Anchor] = {}
    for prompt, completion in pairs:
        if len(anchors) == part.anchors:
            break
        if len(encoder.completion(completion)) <= part.anchor_tokens:
            anchors.setdefault(completion, Anchor(prompt, completion))
    return list(anchors.values())
