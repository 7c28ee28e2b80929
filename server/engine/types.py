"""What callers hand to the engine and get back, as frozen values.

These are the engine's own types: no HTTP field and no stored form, because those change for other
reasons. Texts are already tokens here; who owns a session is unknown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from torch import Tensor

from adapters.chat import EncodedPrompt
from adapters.guard import Verdict
from adapters.minibatches import ITEMS_A_STEP
from adapters.state import AdapterState
from adapters.support import Example
from server.engine.errors import InvalidRequest

FinishReason = Literal["stop", "length", "cancelled"]
TopLogprobs = tuple[tuple[int, float], ...]
"""Tokens with their log-probabilities, the likeliest first."""
_MAY_BE_0 = frozenset({"prefix_cache_bytes", "host_adapter_bytes", "halvings"})


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on at once."""

    rows: int = 32  # sequences decoded together
    slots: int = 64  # adapters on the device
    host_adapter_bytes: int = 2**30  # adapters kept in the host's memory
    queue: int = 256  # requests and adapt jobs waiting; one more is EngineBusy
    patience_s: float = 60.0  # wait for a place in the batch or a lesson; after it, EngineBusy
    prefill_tokens: int = 512  # padded tokens of one prefill forward pass
    prefix_cache_bytes: int = 256 * 2**20
    kv_bytes: int = 4 * 2**30  # keys and values of the sequences being decoded
    adapt_batch: int = 8  # sessions that learn together
    adapt_tokens: int = 8192  # padded tokens of a step over several sessions, prompts included
    micro_step_tokens: int = 128  # padded tokens, without prompts, of a pass while others wait
    halvings: int = 2  # of an update that the guard refuses, before it stays refused
    learn_share: float = 0.42  # of the engine's time, while others wait for answers too
    # Decode steps from a recording, on a GPU CUDA graphs, where one can be made.
    recorded: bool = True
    kernels: bool = True  # recorded ones by operations of our own, where they can be compiled
    threads: int | None = None  # of one torch operation on the CPU; None means one per core

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could run.

        Raises:
            InvalidRequest: a limit below 1, no patience, or a share that is not between 0 and 1.
        """
        for limit in fields(self):
            value = getattr(self, limit.name)
            least = 0 if limit.name in _MAY_BE_0 else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise InvalidRequest(f"{limit.name} must be at least {least}, got {value}")
        if not self.patience_s > 0:
            raise InvalidRequest(f"patience_s must be above 0, got {self.patience_s}")
        if not 0 < self.learn_share < 1:
            raise InvalidRequest(f"learn_share must be above 0 and below 1, got {self.learn_share}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy and repeatable, whatever the seed."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0  # the smallest set of tokens with at least this probability
    top_k: int = 0  # the k most likely tokens; 0 means all
    stop: tuple[str, ...] = ()  # the text ends before the first of them
    seed: int | None = None
    logprobs: bool = False  # natural logarithms, of the model before temperature
    top_logprobs: int = 0  # so many likeliest tokens beside each sampled one
    choices: tuple[str, ...] = ()  # answer with the likeliest of these; nothing is drawn then
    min_tokens: int = 0  # no end token before so many, and no stop text that begins before them
    schema: str | None = None  # JSON schema, as JSON, that the answer is held to

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            InvalidRequest: the message names the field.
        """
        checks = (
            (self.max_tokens >= 1, "max_tokens must be at least 1"),
            (self.min_tokens >= 0, "min_tokens must be 0 or more"),
            (self.min_tokens <= self.max_tokens, "min_tokens must not be above max_tokens"),
            (0 <= self.temperature < float("inf"), "temperature must be 0 or more, and finite"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.top_k >= 0, "top_k must be 0 (all tokens) or more"),
            (self.top_logprobs >= 0, "top_logprobs must be 0 or more"),
            (self.logprobs or not self.top_logprobs, "top_logprobs need logprobs"),
            (all(self.stop), "stop must not contain an empty text"),
            (self.seed is None or -(2**63) <= self.seed < 2**63, "seed must fit into 64 bits"),
            (len(set(self.choices)) == len(self.choices), "choices must differ from each other"),
            (
                self.schema is None or not (self.choices or self.min_tokens),
                "an answer held to a schema has no choices and no min_tokens",
            ),
        )
        for holds, message in checks:
            if not holds:
                raise InvalidRequest(message)


@dataclass(frozen=True)
class AdapterRef:
    """A version of a session's adapter.

    ``key`` names it for ever: another version has another key.
    ``load`` is awaited on the caller's event loop, only when the engine does not hold the key; what
    it raises reaches the caller as it is.
    """

    key: str
    load: Callable[[], Awaitable[AdapterState]]


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt to go on from. Without an adapter the session is untaught: the base answers.

    Prompts computed for one ``tenant`` are found again only for the same.
    """

    prompt: EncodedPrompt
    sampling: Sampling
    adapter: AdapterRef | None = None
    tenant: str = ""
    recall: bool = False  # mix in what was taught for prompts like this one, word by word
    continues: bool = False  # the answer's text goes on from the prompt's own
    house: AdapterRef | None = None  # answers where a prompt it was taught is the nearest one
    # (1, E) what the gate compares, in place of what the prompt itself looks like to it.
    seen: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer; all pieces together are the answer.

    ``token_ids`` are the tokens as sampled, the end token and the tokens of a stop text included,
    so a piece may have tokens and no text.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None  # of the tokens, where they were asked for
    top_logprobs: tuple[TopLogprobs, ...] | None = None  # for each token, where asked for


@dataclass(frozen=True)
class Finished:
    """The last thing an answer's iterator gives.

    ``adapter_used`` is false for an untaught session, and where the gate left the answer to the
    base. ``completion_tokens`` counts sampled tokens, the end token included; with choices, the
    tokens of the chosen one. ``cached_tokens`` of the prompt were there, or under way for another.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    adapter_used: bool
    choice_logprobs: dict[str, float] | None = None
    house_used: bool = False  # of the request's two adapters it was the house's


@dataclass(frozen=True)
class AdaptRequest:
    """Derive an adapter from session_init, or from ``start``, over these examples, in ``steps`` or
    the rule's K.

    ``steps`` are over all examples where there are at most ``items_a_step``, else passes over them
    in steps of so many (``adapters.minibatches``); not where some are ratings.
    ``scale``: the part of the update that the guard accepted when this was derived before, and the
    only one that it judges now; None lets it look for one.
    """

    examples: tuple[Example, ...]
    steps: int | None = None
    tenant: str = ""  # as of a GenerateRequest
    scale: float | None = None
    start: Mapping[str, Tensor] | None = None  # an adapter's tensors
    items_a_step: int | None = ITEMS_A_STEP  # None: all of them

    def __post_init__(self) -> None:
        """Refuse what cannot be learned from.

        Raises:
            InvalidRequest: no examples, an example without header or completion, one that is both a
                preference and a rating, no steps, or a scale that is no part of an update.
        """
        if not self.examples:
            raise InvalidRequest("examples must not be empty")
        for index, example in enumerate(self.examples):
            if not example.header or not example.completion:
                raise InvalidRequest(f"examples[{index}] needs a header and a completion")
            if example.rating not in (-1, 0, 1) or (example.rating and example.rejected):
                raise InvalidRequest(f"examples[{index}] is a preference, or rated 1 or -1")
        if self.steps is not None and self.steps < 1:
            raise InvalidRequest(f"steps must be at least 1, got {self.steps}")
        if self.items_a_step is not None and self.items_a_step < 1:
            raise InvalidRequest(f"items_a_step must be at least 1, got {self.items_a_step}")
        if self.scale is not None and not 0 < self.scale <= 1:
            raise InvalidRequest(f"scale must be above 0 and at most 1, got {self.scale}")


@dataclass(frozen=True)
class Candidate:
    """An adapted adapter and what its derivation saw; nobody uses it before it is promoted.

    ``loss_before``: mean loss over the examples with the adapter *off*, because that is how an
    untaught session answers; session_init's own loss is not it. With a start, the loss there.
    ``loss_after``: the same with ``state`` as it stands. Neither contains the anchors.
    ``step_losses``, ``gradient_norms``: at the start of each inner step, the first at session_init;
    losses here are the inner loss of what the step is over, anchors included; norms are before the
    clip.
    ``update_norm``: distance of ``state`` from where it began, over all tensors.
    """

    state: AdapterState
    loss_before: float
    loss_after: float
    step_losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    update_norm: float
    verdict: Verdict
    steps: int
    items_a_step: int | None  # None: each step was over all of them
    duration_ms: float  # from the engine's taking it over to the verdict, waiting included
