"""A generate request inside the engine: what it needs, and what it holds while it runs.

`Ticket` is what every request has; `Writing` grows a text token by token. (`Choosing`, which picks
one of given texts, is in `choices`.) Knows nothing about rows, masks or other requests.
"""

from __future__ import annotations

import time

from torch import Tensor

from adapters.config import Gate
from adapters.gate import prompt_vectors
from adapters.prefix import Prefix
from adapters.recall import Disliked, Recall
from adapters.state import AdapterState
from server.engine.base import Base
from server.engine.detokenize import Detokenizer, StopFilter
from server.engine.errors import EngineError, EngineFailed
from server.engine.grammar import Grammar
from server.engine.outbox import Outbox
from server.engine.prefill import Prompt
from server.engine.prefix_cache import Tokens, prefix_owner
from server.engine.sampling import Chosen, Dice
from server.engine.slots import UNTAUGHT
from server.engine.types import Delta, Finished, FinishReason, GenerateRequest


class Ticket:
    """One generate request. ``done`` once its caller got the last answer or an error."""

    def __init__(
        self,
        base: Base,
        request: GenerateRequest,
        state: AdapterState | None,
        outbox: Outbox[Delta | Finished],
    ) -> None:
        """Split the prompt where the adapter starts to act."""
        self.request = request
        self.state = state
        # The adapter's key; None for an untaught session.
        self.key = None if request.adapter is None else request.adapter.key
        self.house: AdapterState | None = None  # until it is known which of both answers
        self.house_used = False
        self.outbox = outbox
        self.done = False
        self.failed = False
        self.slot = UNTAUGHT  # another one is pinned for this request
        self.prompt: Prompt | None = None
        self.arrived_s = time.monotonic()
        # When it got its place, when its prompt was ready, when its caller got the last of it.
        self.admitted_s = self.joined_s = self.finished_s = 0.0
        self.cached_tokens = 0
        whole = request.prompt.ids
        self._full_scope = base.spec.scope == "full"
        if self._full_scope:
            # The adapter acts on all tokens; the last one still has to be run for its logits.
            self.prefix, self.head = whole[:-1], whole[-1:]
        else:
            self.prefix, self.head = request.prompt.prefix, request.prompt.header

    def turn_to_house(self, house: AdapterState) -> None:
        """Have the house answer. It has no slot yet."""
        assert self.request.house is not None
        self.key, self.state, self.slot = self.request.house.key, house, UNTAUGHT
        self.house_used = True

    @property
    def prefix_owner(self) -> str:
        """Who may find the keys and values of ``prefix`` again."""
        return prefix_owner(self.request.tenant, self.key if self._full_scope else None)

    @property
    def prefix_slot(self) -> int:
        """Whose adapter acts on ``prefix``: nobody's, where adapters act from the header on."""
        return self.slot if self._full_scope else UNTAUGHT

    @property
    def waited_s(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.arrived_s

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do: answered, failed, or nobody waits."""
        return self.done or self.outbox.cancelled

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the whole prompt."""
        return len(self.prefix) + len(self.head)

    @property
    def columns(self) -> int:
        """Tokens that this request may keep in a row of the batch; 0 where it takes none."""
        return 0

    @property
    def ready_prefix(self) -> Prefix:
        """Keys and values of ``prefix``, (1, H, P, D) a layer; only where the prompt is ready."""
        assert self.prompt is not None
        assert self.prompt.prefix is not None
        return self.prompt.prefix

    def vector(self, gate: Gate) -> Tensor | None:
        """(1, E) how the gate sees what is asked; None for a prompt of the head alone."""
        if self.request.seen is not None:
            return self.request.seen
        summaries = self.ready_prefix.summaries
        return None if summaries is None else prompt_vectors(gate, summaries, [self.prefix])

    def fail(self, error: EngineError) -> None:
        """End the request with an error."""
        self.done = self.failed = True
        self.outbox.put(error)

    def not_finite(self, where: str = "") -> EngineFailed:
        """The error of an output that is no number; ``where``, if not everywhere."""
        if self.key is None:
            return EngineFailed(
                f"the model's output is not finite{where}, without any adapter: "
                + ("try without response_format" if where else "check the model's files")
            )
        advice = "try without response_format, or " if where else ""
        return EngineFailed(
            f"the model's output under adapter {self.key} is not finite{where}: "
            f"{advice}roll the session back"
        )

    def cut(self) -> None:
        """End the request where it stands, because the engine stops."""
        self._finish("", "cancelled", 0)

    def _finish(
        self,
        text: str,
        reason: FinishReason,
        completion_tokens: int,
        choice_logprobs: dict[str, float] | None = None,
    ) -> None:
        self.done = True
        self.outbox.put(
            Finished(
                text,
                reason,
                self.prompt_tokens,
                completion_tokens,
                self.cached_tokens,
                self.slot != UNTAUGHT,
                choice_logprobs,
                self.house_used,
            )
        )


class Writing(Ticket):
    """A request that is answered with text of its own."""

    def __init__(
        self,
        base: Base,
        request: GenerateRequest,
        state: AdapterState | None,
        outbox: Outbox[Delta | Finished],
        grammar: Grammar | None = None,
    ) -> None:
        """Start with no tokens."""
        super().__init__(base, request, state, outbox)
        self.sampling = request.sampling
        self.dice = Dice(self.sampling.seed)
        self.tokens: list[int] = []
        self.said: list[int] = []  # of these, what its text shows
        self.remembered: Recall | Disliked | None = None
        self.grammar = grammar
        self._end_ids = base.end_ids
        self._unseen_ids = base.unseen_ids
        said = request.prompt.ids if request.continues else ()
        self._detokenizer = Detokenizer(base.tokenizer, said)
        self._filter = StopFilter(self.sampling.stop)
        self._texts: list[str] = []
        self._unsent: list[Chosen] = []  # tokens whose text is not out yet

    @property
    def columns(self) -> int:
        """Tokens that this request may keep in a row of the batch."""
        return self.prompt_tokens + self.sampling.max_tokens

    @property
    def too_short(self) -> bool:
        """Whether the text may not end yet."""
        return len(self.tokens) < self.sampling.min_tokens

    @property
    def feed(self) -> Tokens:
        """Tokens to run next: the prompt's head, then the last token each time."""
        return tuple(self.tokens[-1:]) or self.head

    @property
    def start(self) -> int:
        """Column where ``feed`` goes."""
        return self.prompt_tokens + len(self.tokens) - len(self.feed)

    @property
    def kept_tokens(self) -> int:
        """Columns that hold this request's keys and values, all tokens but the last one."""
        return self.prompt_tokens + max(len(self.tokens) - 1, 0)

    def accept(self, chosen: Chosen) -> None:
        """Take the next token and send what became text.

        Raises:
            EngineFailed: there was no token, because the logits were not finite, or the schema
                could not be followed.
        """
        if chosen.token is None:
            raise self.not_finite("" if self.grammar is None else " on all that the schema allows")
        may_stop = not self.too_short
        self.tokens.append(chosen.token)
        if chosen.token not in self._unseen_ids:
            self.said.append(chosen.token)
        self._unsent.append(chosen)
        ended = chosen.token in self._end_ids
        if self.grammar is not None and not ended:
            self.grammar.accept(chosen.token)
        text = "" if ended else self._detokenizer.push(chosen.token)
        text, stopped = self._filter.push(text) if may_stop else (text, False)
        full = len(self.tokens) == self.sampling.max_tokens
        if (ended or full) and not stopped:
            rest, stopped = self._rest()
            text += rest
        self._send(text, last=ended or stopped or full)
        if ended or stopped or full:
            reason: FinishReason = "stop" if ended or stopped else "length"
            self._finish("".join(self._texts), reason, len(self.tokens))

    def cut(self) -> None:
        """End the text where it stands, because the engine stops."""
        self._send(self._rest()[0], last=True)
        self._finish("".join(self._texts), "cancelled", len(self.tokens))

    def _rest(self) -> tuple[str, bool]:
        """Text that was held back, and whether a stop text is behind it."""
        text, stopped = self._filter.push(self._detokenizer.flush())
        return (text, True) if stopped else (text + self._filter.flush(), False)

    def _send(self, text: str, last: bool) -> None:
        if not text and not (last and self._unsent):
            return
        sent, self._unsent = self._unsent, []
        tokens = tuple(chosen.token for chosen in sent if chosen.token is not None)
        logprobs = tops = None
        if self.sampling.logprobs:
            logprobs = tuple(chosen.logprob for chosen in sent if chosen.logprob is not None)
        if self.sampling.top_logprobs:
            tops = tuple(chosen.top for chosen in sent)
        self._texts.append(text)
        self.outbox.put(Delta(text, tokens, logprobs, tops))
