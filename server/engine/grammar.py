"""Answers held to a JSON schema: which tokens may come next.

The grammar is llguidance's (https://github.com/guidance-ai/llguidance), an Earley parser over the
tokens' bytes. A new schema is first tried in a process that can be killed. Knows tokens and
schemas; knows nothing about logits, rows or requests.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from server.engine.base import Base
from server.engine.errors import EngineBusy, EngineFailed, EngineStopped, GrammarRefused
from server.engine.schema_trial import compile_schema, reason
from server.engine.trial_process import TrialProcess

MAX_SCHEMA_CHARS: Final = 64_000
_KEPT: Final = 64  # schemas that stay compiled, and as many that stay refused
_WAITING: Final = 16  # new schemas at once
_T = TypeVar("_T")


class Grammar:
    """One answer's place in its schema. Engine thread only."""

    def __init__(self, matcher: LLMatcher, base: Base) -> None:
        """Stand at the beginning."""
        self._matcher = matcher
        self._end_ids = list(base.end_ids)
        self._end_id = base.encoder.end_id
        self._vocabulary = base.vocabulary

    def allowed(self) -> Tensor:
        """(V,) whether each token may come next; on the CPU.

        Raises:
            EngineFailed: going on takes more than the limits, or there is no token to go on with.
        """
        raw = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        bits = np.unpackbits(raw, bitorder="little")[: self._vocabulary].astype(bool)
        bits[self._end_ids] = bits[self._end_id]  # a model may have more than one end
        if not bits.any():
            raise EngineFailed("the schema cannot be followed any more: no token goes on with it")
        return torch.from_numpy(bits)

    def accept(self, token: int) -> None:
        """Take the next token.

        Raises:
            EngineFailed: it was not allowed.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineFailed(f"the schema cannot be followed any more: {reason(self._matcher)}")


class Grammars:
    """Schemas compiled for one model; safe from every thread."""

    def __init__(self, base: Base) -> None:
        """Compile nothing yet, and start nothing."""
        self._base = base
        # A thread of its own: new schemas must not hold up what else the server does in threads.
        self._thread = ThreadPoolExecutor(1, "innerloop-schema")
        self._tokenizer: LLTokenizer | None = None  # of the thread
        self._trials: TrialProcess | None = None
        self._lock = threading.Lock()  # over what follows
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._refused: OrderedDict[str, str] = OrderedDict()
        self._coming: dict[str, Future[LLMatcher | str]] = {}
        self._unfit = ""  # why this model can follow no schema at all
        self._closed = False

    async def begin(self, schema: str) -> Grammar:
        """A new answer's grammar. Takes its time where the schema is new.

        Raises:
            GrammarRefused: no schema, a keyword that cannot be enforced, one that is too large or
                takes too long; or this model's tokenizer does not serve.
            EngineBusy: too many new schemas at once.
            EngineFailed: new schemas cannot be tried now.
            EngineStopped: closed.
        """
        if len(schema) > MAX_SCHEMA_CHARS:
            raise GrammarRefused(
                f"the schema has {len(schema)} characters and may have {MAX_SCHEMA_CHARS}"
            )
        found = self._find(schema)
        if isinstance(found, Future):
            # Shielded, because others may wait for the same schema.
            found = await asyncio.shield(asyncio.wrap_future(found))
        if isinstance(found, str):
            raise GrammarRefused(found)
        return Grammar(found.deep_copy(), self._base)

    def close(self) -> None:
        """End what is being compiled, and the process that tries schemas. Grammars go on."""
        with self._lock:
            self._closed = True
            trials = self._trials
        if trials is not None:
            trials.kill()
        self._thread.shutdown()
        if trials is not None:
            trials.reap()

    def _find(self, schema: str) -> LLMatcher | str | Future[LLMatcher | str]:
        """The compiled schema, or why it is refused, or where either will come."""
        with self._lock:
            if self._unfit:
                return self._unfit
            for known in (self._kept, self._refused):
                if schema in known:
                    known.move_to_end(schema)
                    return known[schema]
            if schema in self._coming:
                return self._coming[schema]
            if self._closed:
                raise EngineStopped("the engine is stopping: try again later")
            if len(self._coming) >= _WAITING:
                raise EngineBusy(f"{_WAITING} new JSON schemas are waiting already: try again")
            self._coming[schema] = future = self._thread.submit(self._settle, schema)
            return future

    def _settle(self, schema: str) -> LLMatcher | str:
        """Compile a new schema, or say why not, and remember either."""
        found: LLMatcher | str
        try:
            found = self._compile(schema)
            with self._lock:
                _remember(self._kept, schema, found)
        except GrammarRefused as error:
            found = str(error)
            with self._lock:
                _remember(self._refused, schema, found)
        finally:
            with self._lock:
                del self._coming[schema]
        return found

    def _compile(self, schema: str) -> LLMatcher:
        tokenizer, trials = self._ready()
        refusal = trials.refusal(schema)
        if refusal is not None:
            raise GrammarRefused(refusal)
        try:
            return compile_schema(tokenizer, schema)
        except ValueError as error:
            raise GrammarRefused(str(error)) from error

    def _ready(self) -> tuple[LLTokenizer, TrialProcess]:
        """What every schema needs, made at the first one."""
        if self._tokenizer is None or self._trials is None:
            try:
                text, end_id = _plain_tokenizer(self._base.tokenizer), self._end_id()
                self._tokenizer = _byte_tokenizer(text, self._base.vocabulary, end_id)
            except GrammarRefused as error:
                with self._lock:
                    self._unfit = str(error)
                raise
            with self._lock:
                if self._closed:
                    raise EngineStopped("the engine is stopping: try again later")
                self._trials = TrialProcess(text, self._base.vocabulary, end_id)
        return self._tokenizer, self._trials

    def _end_id(self) -> int:
        end_id = self._base.encoder.end_id
        if end_id is None:
            raise GrammarRefused("this model has no end token, so an answer in JSON could not end")
        return end_id


def _remember(known: OrderedDict[str, _T], schema: str, found: _T) -> None:
    known[schema] = found
    if len(known) > _KEPT:
        known.popitem(last=False)


def _byte_tokenizer(text: str, vocabulary: int, end_id: int) -> LLTokenizer:
    try:
        return LLTokenizer(text, n_vocab=vocabulary, eos_token=end_id)
    except ValueError as error:
        raise GrammarRefused(
            f"answers in JSON cannot be enforced with this model's tokenizer: {error}"
        ) from error


def _plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own JSON, without the space that some put before every text.

    llguidance tokenizes what a schema forces, in the midst of a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise GrammarRefused("this model's tokenizer is not one of Hugging Face's fast tokenizers")
    document = json.loads(backend.to_str())
    document["truncation"] = document["padding"] = None
    parts = [document.get("pre_tokenizer") or {}]
    parts += parts[0].get("pretokenizers", [])
    for part in parts:
        if "add_prefix_space" in part:
            part["add_prefix_space"] = False
        if "prepend_scheme" in part:
            part["prepend_scheme"] = "never"
    return json.dumps(document)
