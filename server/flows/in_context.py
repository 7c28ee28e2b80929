"""A session's most relevant feedback as earlier turns of the chat, whatever its adapter learned.

The nearest items to what is asked are its examples (Liu et al. 2022, arXiv 2101.06804), near by the
gate's own measure and no farther than what the gate opens for; without a gate, by the words that
they share. It knows items and the engine; nothing about adapters or HTTP.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.artifact import Artifact
from adapters.chat import EncodedPrompt, PromptError
from adapters.config import AdapterError, Gate
from adapters.gate import gate_opens, left_alone, threshold_of
from adapters.overlap import overlaps
from adapters.state import LEFT_ALONE, Taught
from server.engine import Engine
from server.flows.encoding import Encoding
from server.flows.outcome import Lesson
from server.sessions import Derivation, Item

MAX_EXAMPLES = 32
"""Of one prompt. What was meant to be learned from more is for the adapter."""

KNOWN_MAX = 4096
"""Items whose vectors are remembered, a few kilobytes each."""

LOOKS_AT_ONCE = 16
"""Prompts that are read for their vectors together."""

SOME = 1e-6
"""Least likeness without a gate: a token in common."""

Turn = Mapping[str, str]


class InContextError(AdapterError, ValueError):
    """The session's feedback cannot go into this prompt; the message says what to change."""


@dataclass(frozen=True)
class Shown:
    """The prompt that is run, and the items that are in it, the most relevant last.

    ``seen``: (1, E) how the gate sees what was asked, without them; None: as it sees the prompt.
    """

    prompt: EncodedPrompt
    items: tuple[int, ...] = ()
    seen: Tensor | None = None


class InContext:
    """Puts feedback into prompts, for one engine and its artifact."""

    def __init__(self, artifact: Artifact, engine: Engine, encoding: Encoding) -> None:
        self._gate = artifact.rule.gate
        self._context_tokens = artifact.context_tokens
        self._engine = engine
        self._encoding = encoding
        self._known: OrderedDict[tuple[str, str, int], Tensor] = OrderedDict()
        self.possible = artifact.tokenizer.chat_template is not None
        """Whether a prompt can have earlier turns at all."""

    async def show(
        self,
        derivation: Derivation,
        turns: Sequence[Turn],
        bare: EncodedPrompt,
        count: int,
        answer_tokens: int,
    ) -> Shown:
        """Put at most ``count`` of the items that count now, pending ones too, before ``turns``.

        ``bare`` is what the turns are without them. The least relevant are left out until the
        prompt and ``answer_tokens`` behind it fit the context.

        Raises:
            EngineError.
        """
        items = _usable(derivation)
        if not items or not self._engine.fits(len(bare.ids) + answer_tokens):
            return Shown(bare)
        near, seen = await self._nearest(derivation, items, turns, bare)
        chosen = near[:count]
        while chosen:
            prompt = await self._with(chosen, turns)
            if prompt is None or not self._engine.fits(len(prompt.ids) + answer_tokens):
                chosen = chosen[:-1]
                continue
            return Shown(prompt, tuple(item.id for item in reversed(chosen)), seen)
        return Shown(bare, (), seen)

    async def _nearest(
        self,
        derivation: Derivation,
        items: Sequence[Item],
        turns: Sequence[Turn],
        bare: EncodedPrompt,
    ) -> tuple[list[Item], Tensor | None]:
        """The items that are near enough, the nearest first, and how the gate sees the question."""
        if self._gate is None:
            texts = [item.payload["messages"][-1]["content"] for item in items]
            asked, *others = await self._encoding.words([turns[-1]["content"], *texts])
            return _ordered(items, overlaps(asked, others), SOME), None
        left = _left_alone(derivation)
        known, seen = await self._vectors(derivation, [*items, *left], bare)
        items, left = ([item for item in part if item.id in known] for part in (items, left))
        if not items:
            return [], seen
        keys = torch.stack([known[item.id] for item in [*items, *left]])
        taught = _taught(items, len(left), keys, self._gate)
        if not bool(gate_opens(self._gate, taught, seen)):
            return [], seen  # what the adapter leaves alone
        least = threshold_of(self._gate, taught)
        likeness = (taught.answered @ seen[0]).tolist()  # cosines
        return _ordered(items, likeness, least), seen

    async def _vectors(
        self, derivation: Derivation, items: Sequence[Item], bare: EncodedPrompt
    ) -> tuple[dict[int, Tensor], Tensor]:
        """How the gate sees each item's prompt, (E,) by id, and what is asked, (1, E)."""
        tenant, incarnation = derivation.pointer.tenant, derivation.pointer.incarnation
        names = {item.id: (tenant, incarnation, item.id) for item in items}
        prompts = {}
        for item in items:
            if names[item.id] not in self._known:
                prefix = await self._prefix(item)
                if prefix is not None:
                    prompts[item.id] = prefix
        # The keys and values of all prompts of a look are held until the last is ready.
        unknown = list(prompts)
        for start in range(0, len(unknown), LOOKS_AT_ONCE):
            chunk = unknown[start : start + LOOKS_AT_ONCE]
            seen = await self._engine.look([prompts[number] for number in chunk], tenant)
            for number, vector in zip(chunk, seen, strict=True):
                self._known[names[number]] = vector.clone()
        seen = await self._engine.look([bare.prefix], tenant)
        found = {}
        for number, name in names.items():
            if name in self._known:
                self._known.move_to_end(name)
                found[number] = self._known[name]
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return found, seen

    async def _prefix(self, item: Item) -> tuple[int, ...] | None:
        """Its prompt in tokens; None where the model that is served now cannot take it."""
        try:
            prefix = (await self._encoding.prompt(item.payload["messages"])).prefix
        except PromptError:
            return None
        return prefix if 0 < len(prefix) <= self._context_tokens else None

    async def _with(self, chosen: Sequence[Item], turns: Sequence[Turn]) -> EncodedPrompt | None:
        """The prompt with these items; None where the chat template refuses them."""
        system = [turn for turn in turns if turn["role"] == "system"]
        rest = [turn for turn in turns if turn["role"] != "system"]
        earlier = [turn for item in reversed(chosen) for turn in _turns_of(item)]
        try:
            return await self._encoding.prompt([*system, *earlier, *rest])
        except PromptError:
            return None


def _counting(derivation: Derivation) -> list[Item]:
    """Items that an answer comes from now; a pinned session's are those learned."""
    pinned = derivation.pointer.pinned
    return [item for item in derivation.items if item.status == "applied" or not pinned]


def _usable(derivation: Derivation) -> list[Item]:
    """Items that say what should be answered in a chat."""
    return [item for item in _counting(derivation) if _says_what_is_wanted(Lesson.of(item))]


def _left_alone(derivation: Derivation) -> list[Item]:
    """Items that say that their prompt is the base's."""
    items = _counting(derivation)
    told = [(item.prompt_key, Lesson.of(item).rating >= 0) for item in items]
    return [item for item, out in zip(items, left_alone(told), strict=True) if out]


def _taught(items: Sequence[Item], left_alone: int, keys: Tensor, gate: Gate) -> Taught:
    """The items as the gate remembers them, and behind them so many prompts that are the base's."""
    completions = [Lesson.of(item).completion for item in items]
    places = {text: place for place, text in enumerate(dict.fromkeys(completions))}
    answers = [*(places[text] for text in completions), *[LEFT_ALONE] * left_alone]
    return Taught(keys, torch.tensor(answers), gate.view)


def _says_what_is_wanted(lesson: Lesson) -> bool:
    cut = lesson.kind == "rating" and lesson.cut  # only half of an answer
    return not (lesson.raw or lesson.rating < 0 or cut)


def _turns_of(item: Item) -> list[Turn]:
    """The item as turns of a chat. Its own system turn is left out: the one that is asked holds."""
    lesson = Lesson.of(item)
    spoken = [turn for turn in lesson.turns if turn["role"] != "system"]
    return [*spoken, {"role": "assistant", "content": lesson.completion}]


def _ordered(items: Sequence[Item], likeness: Sequence[float], least: float) -> list[Item]:
    """Items from ``least`` on, the likest first, and of equally like ones the newest."""
    pairs = [pair for pair in zip(likeness, items, strict=True) if pair[0] >= least]
    return [item for _, item in sorted(pairs, key=lambda pair: (-pair[0], -pair[1].id))]
