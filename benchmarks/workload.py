"""What every contender gets: prompts, examples and adapters, of exactly the asked size.

Texts are invented words, because times depend on how many tokens there are and not on which.
Knows tokenizers through `ChatEncoder`; knows nothing about engines or peers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import torch

from adapters.artifact import Artifact
from adapters.chat import ChatEncoder, EncodedPrompt, user_turn
from adapters.state import Tensors
from adapters.support import Example

CONSONANTS, VOWELS = "bdfghjklmnprstvz", "aeiou"


class BenchmarkError(ValueError):
    """The benchmark cannot run as asked; the message says what to change."""


@dataclass(frozen=True)
class Sizes:
    """How much work one round is."""

    sessions: int = 8  # beside 1
    examples: int = 4  # of one session
    prompt_tokens: int = 88  # template and assistant header included
    answer_tokens: int = 8  # end token included
    steps: int = 5  # inner steps here, optimizer steps with PEFT
    new_tokens: int = 32  # decoded by every row
    stream_tokens: int = 96  # of every stream while another session learns
    rounds: int = 5  # after one that is thrown away
    threads: int = 1  # of one torch operation
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes at which nothing could be measured.

        Raises:
            BenchmarkError: a size is too small.
        """
        for field in fields(self):
            least = {"seed": 0, "new_tokens": 3, "stream_tokens": 3}.get(field.name, 1)
            if getattr(self, field.name) < least:
                option = field.name.replace("_", "-")
                raise BenchmarkError(f"--{option} must be at least {least}")

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of sessions that are measured."""
        return tuple(sorted({1, self.sessions}))


@dataclass(frozen=True)
class Work:
    """One thing per session in each field; `examples` has several."""

    prompts: tuple[EncodedPrompt, ...]
    examples: tuple[tuple[Example, ...], ...]
    adapters: tuple[Tensors, ...]


def make_work(artifact: Artifact, sizes: Sizes) -> Work:
    """Invent the work for all sessions.

    Raises:
        BenchmarkError: it does not fit the model's context or template.
    """
    longest = sizes.prompt_tokens + max(sizes.answer_tokens, sizes.new_tokens, sizes.stream_tokens)
    if longest > artifact.context_tokens:
        raise BenchmarkError(
            f"prompt and answer need {longest} tokens, the model's context is "
            f"{artifact.context_tokens}: lower --prompt-tokens, --answer-tokens, --new-tokens or "
            "--stream-tokens"
        )
    rng, encoder = random.Random(sizes.seed), ChatEncoder(artifact.tokenizer)
    sessions = range(sizes.sessions)
    return Work(
        prompts=tuple(_prompt(encoder, sizes.prompt_tokens, rng) for _ in sessions),
        examples=tuple(
            tuple(_example(encoder, sizes, rng) for _ in range(sizes.examples)) for _ in sessions
        ),
        adapters=tuple(_adapter(artifact, sizes.seed + session) for session in sessions),
    )


def words(count: int, rng: random.Random) -> str:
    """Invented words of one to four syllables."""
    return " ".join(
        "".join(
            rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.choice((1, 2, 2, 3, 4)))
        )
        for _ in range(count)
    )


def _prompt(encoder: ChatEncoder, tokens: int, rng: random.Random) -> EncodedPrompt:
    prompt = encoder.prompt(user_turn(words(tokens, rng)))
    keep = tokens - len(prompt.header)
    if not 2 <= keep <= len(prompt.prefix):
        raise BenchmarkError(f"a prompt of {tokens} tokens is too short: raise --prompt-tokens")
    # Cut before the turn's last token, so that the turn still ends.
    return EncodedPrompt(prompt.prefix[: keep - 1] + prompt.prefix[-1:], prompt.header)


def _example(encoder: ChatEncoder, sizes: Sizes, rng: random.Random) -> Example:
    prompt = _prompt(encoder, sizes.prompt_tokens, rng)
    answer = encoder.completion(words(sizes.answer_tokens, rng))
    completion = answer[: sizes.answer_tokens - 1] + answer[-1:]
    return Example(prompt.prefix, prompt.header, completion)


def _adapter(artifact: Artifact, seed: int) -> Tensors:
    """A session's adapter that changes answers: session_init moved at random, and no gate."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor.cpu() + 0.2 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in artifact.session_init.items()
    }
