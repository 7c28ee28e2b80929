"""The engine as the rest of the server sees it: asynchronous calls, answered by the engine thread.

Runs on callers' event loops: checks requests, loads adapters that the engine does not hold, and
waits. Knows nothing about HTTP, sessions or Redis, and never touches the model itself after start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from itertools import pairwise

from torch import Tensor

from adapters.artifact import Artifact
from adapters.state import AdapterState
from server import spans
from server.engine.base import make_base
from server.engine.choices import Choosing
from server.engine.course import make_course
from server.engine.errors import AdapterMismatch, EngineStopped, InvalidRequest, RequestTooLong
from server.engine.grammar import Grammars
from server.engine.host_adapters import HostAdapters
from server.engine.job import Job
from server.engine.linear import fast_linears
from server.engine.looks import Look
from server.engine.meanings import Meanings
from server.engine.outbox import Outbox
from server.engine.prefix_cache import Tokens
from server.engine.status import EngineStatus
from server.engine.ticket import Ticket, Writing
from server.engine.types import (
    AdapterRef,
    AdaptRequest,
    Candidate,
    Delta,
    EngineLimits,
    Finished,
    GenerateRequest,
)
from server.engine.worker import Worker


class Engine:
    """Decodes and adapts many sessions at once on one model."""

    def __init__(self, artifact: Artifact, limits: EngineLimits | None = None) -> None:
        """Take over the artifact's model; nobody else may run it from here on.

        Computes what the untaught model says to the rule's anchors, so it takes a moment.
        """
        self.limits = EngineLimits() if limits is None else limits
        self._artifact = artifact
        encoder = artifact.rule.encoder
        models = [artifact.model] if encoder is None else [artifact.model, encoder.model]
        self._linears = [fast_linears(model) for model in models]
        self._base = make_base(artifact)
        self._grammars = Grammars(self._base)
        self._meanings = Meanings(encoder, self.limits.queue)
        pinned = self._base.device.type == "cuda"
        self._host = HostAdapters(self.limits.host_adapter_bytes, pinned)
        self._course = make_course(self._base, artifact)
        self._worker = Worker(self._base, self._course, self.limits)
        self._started = False

    def start(self) -> None:
        """Start the engine thread.

        Raises:
            EngineStopped: it was started before; an engine runs once.
        """
        if self._started:
            raise EngineStopped("an engine runs once: make a new one")
        self._started = True
        self._worker.start()

    async def stop(self, drain_s: float) -> None:
        """Refuse new requests, give those inside ``drain_s`` seconds, and end the thread.

        What is not done by then ends: running answers with finish reason "cancelled" and their text
        so far, everything else with EngineStopped.
        """
        thread = self._worker.close(drain_s)
        self._meanings.close()
        await asyncio.to_thread(self._grammars.close)
        if thread is not None:
            await asyncio.to_thread(thread.join)
        self._worker.detach()
        self._base.hooks.remove()
        self._course.lower.remove()
        for linears in self._linears:
            linears.remove()

    def status(self) -> EngineStatus:
        """What the engine is doing now."""
        return self._worker.status(self._host)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta | Finished, None]:
        """Answer a prompt: pieces of text as they come, then ``Finished``.

        Closing the iterator cancels the request; use ``contextlib.aclosing`` where the loop may be
        left early. Errors come from the first ``__anext__`` on.

        Raises:
            InvalidRequest, RequestTooLong, AdapterMismatch: the request cannot be done.
            GrammarRefused: the schema cannot be enforced.
            adapters.chat.PromptError: a choice contains a control token.
            EngineBusy, EngineStopped: not now.
            EngineFailed: this request failed; the engine goes on.
            Exception: whatever the adapter's ``load`` raises.
        """
        options = self._check_generate(request)
        self._worker.check_open()  # before loading for nothing
        state = None if request.adapter is None else await self._state(request.adapter)
        house = None if request.house is None else await self._state(request.house)
        if any(s is not None and s.taught is not None for s in (state, house)):
            await self._meanings.of_question(request.prompt.prefix)
        schema = request.sampling.schema
        grammar = None if schema is None else await self._grammars.begin(schema)
        outbox: Outbox[Delta | Finished] = Outbox(self._worker.mail)
        ticket: Ticket
        if options:
            ticket = Choosing(self._base, request, state, outbox, options)
        else:
            ticket = Writing(self._base, request, state, outbox, grammar)
        ticket.house = house
        self._worker.submit(ticket)
        try:
            while True:
                item = await outbox.get()
                if isinstance(item, Finished):
                    ticket.finished_s = time.monotonic()
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            outbox.cancel()
            _trace(ticket)

    async def adapt(self, request: AdaptRequest) -> Candidate:
        """Derive an adapter over the request's examples.

        Raises:
            InvalidRequest, RequestTooLong: the request cannot be done.
            EngineBusy, EngineStopped: not now.
            EngineFailed: this job failed; the engine goes on.
        """
        for index, example in enumerate(request.examples):
            for _, completion in example.rows():
                tokens = example.prompt + example.header + completion
                self._check_tokens(tokens, f"examples[{index}]", len(tokens))
        self._worker.check_open()  # before encoding for nothing
        await self._meanings.of_lesson([example.prompt for example in request.examples])
        steps = self._artifact.rule.steps if request.steps is None else request.steps
        outbox: Outbox[Candidate] = Outbox(self._worker.mail)
        examples = len(request.examples)
        with spans.span("adapt", **{"innerloop.examples": examples, "innerloop.steps": steps}):
            self._worker.submit(Job(request, steps, outbox, self._base.gate is not None))
            try:
                return await outbox.get()
            finally:
                outbox.cancel()

    async def look(self, prompts: Sequence[Tokens], tenant: str) -> Tensor:
        """Vectors (N, E) by which the gate compares these prompts: what comes before the header.

        Raises:
            InvalidRequest: there is no gate, no prompt, or one that is empty or not of this model.
            RequestTooLong: a prompt is longer than the context.
            EngineBusy, EngineStopped, EngineFailed.
        """
        if self._base.gate is None:
            raise InvalidRequest("this model has no gate, so nothing to compare prompts by")
        if not prompts:
            raise InvalidRequest("there are no prompts to look at")
        for index, tokens in enumerate(prompts):
            if not tokens:
                raise InvalidRequest(f"prompts[{index}] is empty: there is nothing to compare")
            self._check_tokens(tokens, f"prompts[{index}]", len(tokens))
        self._worker.check_open()
        await self._meanings.of_lesson(prompts)
        outbox: Outbox[Tensor] = Outbox(self._worker.mail)
        self._worker.submit(Look(prompts, tenant, outbox))
        try:
            return await outbox.get()
        finally:
            outbox.cancel()

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens can be answered: by the context, and in memory."""
        return tokens <= self._base.context_tokens and self._worker.fits(tokens)

    def kv_bytes_of(self, tokens: int) -> int:
        """KV memory that a sequence of so many tokens takes alone."""
        return self._worker.kv_bytes_of(tokens)

    def _check_generate(self, request: GenerateRequest) -> list[Tokens]:
        """Check what can be checked without the model; returns the tokens of the choices."""
        prompt, sampling = request.prompt.ids, request.sampling
        if not request.prompt.header:
            raise InvalidRequest("the prompt needs at least one token that the adapter acts on")
        options = [self._base.encoder.completion(choice) for choice in sampling.choices]
        if not all(options):
            raise InvalidRequest("choices must not contain an empty text: this model has no end")
        longest = max(map(len, options)) if options else sampling.max_tokens
        self._check_tokens(prompt, "the prompt", len(prompt) + longest)
        if not self._worker.fits(len(prompt) + longest):
            raise RequestTooLong(
                f"{len(prompt) + longest} tokens need more than the engine's KV memory of "
                f"{self.limits.kv_bytes} bytes: shorten the prompt or lower max_tokens"
            )
        return options

    def _check_tokens(self, tokens: Sequence[int], what: str, needed: int) -> None:
        context = self._base.context_tokens
        if needed > context:
            raise RequestTooLong(
                f"{what} has {len(tokens)} tokens and needs room for {needed}, but the model's "
                f"context is {context}: shorten it or ask for fewer tokens"
            )
        if not 0 <= min(tokens) <= max(tokens) < self._base.vocabulary:
            raise InvalidRequest(
                f"{what} has a token outside the model's vocabulary of {self._base.vocabulary}"
            )

    async def _state(self, adapter: AdapterRef) -> AdapterState:
        state = self._host.get(adapter.key)
        if state is not None:
            self._host.found += 1
            return state
        state = self._worker.slots.state(adapter.key)
        if state is not None:
            self._host.found += 1
        else:
            self._host.missed += 1
            state = await adapter.load()
            self._check_adapter(adapter.key, state)
        if self._host.pinned:  # asks the driver for memory, which may take its time
            return await asyncio.to_thread(self._host.put, adapter.key, state)
        return self._host.put(adapter.key, state)

    def _check_adapter(self, key: str, state: AdapterState) -> None:
        if state.base_fingerprint != self._base.fingerprint:
            raise AdapterMismatch(
                f"adapter {key} belongs to another base: derive it again from its log"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
        if shapes != self._artifact.shapes:
            raise AdapterMismatch(
                f"adapter {key} has another form than this engine's adapters (rank "
                f"{self._base.spec.rank}, targets {', '.join(self._base.spec.targets)})"
            )
        gate, taught = self._base.gate, state.taught
        if gate is None or taught is None:
            return
        if taught.view != gate.view or taught.keys.shape[1] != gate.width(self._base.width):
            raise AdapterMismatch(
                f"adapter {key} was taught under another gate than this engine's: derive it again "
                "from its log"
            )


def _trace(ticket: Ticket) -> None:
    """Record what an answer's time went into, as far as it came."""
    starts = (
        ("queue", ticket.arrived_s),
        ("prefill", ticket.admitted_s),
        ("decode", ticket.joined_s),
        ("", ticket.finished_s or time.monotonic()),
    )
    reached = [(name, at_s) for name, at_s in starts if at_s]
    for (name, begin_s), (_, end_s) in pairwise(reached):
        spans.record(name, begin_s, end_s, **{"innerloop.prompt_tokens": ticket.prompt_tokens})
