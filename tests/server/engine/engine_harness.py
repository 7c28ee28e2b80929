"""A tiny random artifact, and the same answers computed the slow way by the model alone.

The model is random with wide weights, so that greedy answers vary and best logits lie far apart.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.artifact import Artifact, save_artifact
from adapters.chat import ChatEncoder, EncodedPrompt, user_turn
from adapters.config import Anchor, InnerRule, LoraSpec, Scope
from adapters.layer import LoraHooks, Rows
from adapters.state import AdapterState, Tensors, repeat, tensor_shapes
from adapters.support import Example
from meta_training.tokenizer import train_tokenizer
from server.engine import (
    AdapterRef,
    Delta,
    Engine,
    EngineLimits,
    Finished,
    GenerateRequest,
    Sampling,
)

T = TypeVar("T")
SHOP = Path(__file__).parents[2] / "data" / "shop.jsonl"
CONTEXT_TOKENS = 192
TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")


def shop_texts() -> list[str]:
    rows = [json.loads(line) for line in SHOP.read_text().splitlines()]
    return [text for row in rows for text in row.values() if isinstance(text, str)]


def make_artifact(folder: Path, scope: Scope = "activated", anchors: bool = True) -> Artifact:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(
        [*shop_texts(), "naïve café, 日本語 🙂 Привет"], 400, CONTEXT_TOKENS
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    spec = LoraSpec(2, TARGETS, alpha=4.0, scope=scope)
    init = random_tensors(model, spec, seed=100, size=0.05)
    sizes = {name: torch.linspace(0.3, 0.1, 3) for name in init}
    texts = (Anchor("What time is it?", "No idea."), Anchor("Hello", "Hello, how are you?"))
    rule = InnerRule(3, sizes, 5.0, 0.5 if anchors else 0.0, texts if anchors else ())
    header = ChatEncoder(tokenizer).assistant_header()
    return save_artifact(folder, model, tokenizer, spec, init, rule, {}, header)


def random_tensors(model: torch.nn.Module, spec: LoraSpec, seed: int, size: float) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * size
        for name, shape in tensor_shapes(model, spec).items()
    }


class World:
    """An artifact with adapters of sessions, and what the model alone answers for them."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        # A model of our own: the engine's belongs to the engine while it runs.
        self.model = copy.deepcopy(artifact.model)
        self.encoder = ChatEncoder(artifact.tokenizer)
        self.states = {
            name: AdapterState(
                artifact.spec,
                random_tensors(artifact.model, artifact.spec, seed, 0.2),
                artifact.fingerprint,
            )
            for seed, name in enumerate(("ann", "bob", "cem", "dan", "eve"))
        }
        self.loads: list[str] = []

    def prompt(self, text: str) -> EncodedPrompt:
        return self.encoder.prompt(user_turn(text))

    def example(self, text: str, answer: str) -> Example:
        return self.encoder.example(user_turn(text), answer)

    def ref(self, session: str) -> AdapterRef:
        async def load() -> AdapterState:
            self.loads.append(session)
            await asyncio.sleep(0)
            return self.states[session]

        return AdapterRef(f"tenant/{session}/1", load)

    def request(self, text: str, session: str | None = None, **sampling: object) -> GenerateRequest:
        settings = {"max_tokens": 12, **sampling}
        adapter = None if session is None else self.ref(session)
        return GenerateRequest(self.prompt(text), Sampling(**settings), adapter)  # type: ignore[arg-type]

    @torch.no_grad()
    def logits(self, prompt: EncodedPrompt, tokens: Sequence[int], session: str | None) -> Tensor:
        """(len(tokens) + 1, V): from the header's last token on, in one go, without our caches."""
        state = None if session is None else self.states[session]
        return self.logits_under(prompt, tokens, state)

    @torch.no_grad()
    def logits_under(
        self, prompt: EncodedPrompt, tokens: Sequence[int], state: AdapterState | None
    ) -> Tensor:
        """As ``logits``, for any adapter."""
        ids = torch.tensor([[*prompt.ids, *tokens]])
        hooks = LoraHooks(self.model, self.artifact.spec)
        rows = None
        if state is not None:
            active = torch.ones_like(ids, dtype=torch.bool)
            if self.artifact.spec.scope == "activated":
                active[:, : len(prompt.prefix)] = False
            rows = Rows(repeat(state.tensors, 1), torch.zeros(1, dtype=torch.long), active)
        with hooks.use(rows):
            logits = self.model(input_ids=ids).logits[0]
        hooks.remove()
        return logits[len(prompt.ids) - 1 :]

    def greedy(self, text: str, session: str | None = None, max_tokens: int = 12) -> list[int]:
        """Token by token, the whole sequence computed anew each time."""
        prompt, tokens = self.prompt(text), []
        while len(tokens) < max_tokens:
            tokens.append(int(self.logits(prompt, tokens, session)[-1].argmax()))
            if tokens[-1] == self.encoder.end_id:
                break
        return tokens

    def check_greedy(self, request: GenerateRequest, tokens: Sequence[int]) -> None:
        """Every token is the model's best, or as good as the best within float error."""
        session = None if request.adapter is None else request.adapter.key.split("/")[1]
        logits = self.logits(request.prompt, tokens[:-1], session)
        chosen = logits[range(len(tokens)), list(tokens)]
        torch.testing.assert_close(chosen, logits.max(-1).values, atol=1e-3, rtol=0)
        ends = [token == self.encoder.end_id for token in tokens]
        assert not any(ends[:-1])
        assert ends[-1] or len(tokens) == request.sampling.max_tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return self.artifact.tokenizer.decode(list(tokens), skip_special_tokens=True)


@asynccontextmanager
async def running(artifact: Artifact, **limits: int) -> AsyncIterator[Engine]:
    """An engine whose decode steps are recorded only where a test says so: it takes a second."""
    patient = EngineLimits(threads=1, recorded=False, patience_s=600.0)
    engine = Engine(artifact, replace(patient, **limits))
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop(600.0)


@contextmanager
def holding(engine: Engine, **steps: int) -> Iterator[None]:
    """Let decoding, learning or prompts take so many steps and then none; the rest goes on.

    Nothing of it is over before the test has seen it, however long the test's thread is held up.
    An answer has its first token without any step. At the end all go on at the same moment.
    """
    worker, released = engine._worker, False
    batch, learner, prompts = worker._traffic.batch, worker._learner, worker._prefills
    parts = {"decoding": batch, "learning": learner, "prompts": prompts}

    def held(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: object) -> None:
            if released or steps[name] > 0:
                steps[name] -= name != "decoding" or len(batch) > 0
                real(*arguments)
            else:
                time.sleep(0.001)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in steps:
            patch.setattr(parts[name], "step", held(name, parts[name].step))
        try:
            yield
        finally:
            released = True


class Answer:
    """A whole answer: its pieces put together, and the last item."""

    def __init__(self, deltas: list[Delta], finished: Finished) -> None:
        self.tokens = [token for delta in deltas for token in delta.token_ids]
        self.text = "".join(delta.text for delta in deltas)
        self.logprobs = [value for delta in deltas for value in delta.logprobs or ()]
        self.finished = finished
        assert self.text == finished.text
        assert len(self.tokens) == finished.completion_tokens


async def collect(engine: Engine, request: GenerateRequest) -> Answer:
    deltas: list[Delta] = []
    async with aclosing(engine.generate(request)) as items:
        async for item in items:
            if isinstance(item, Finished):
                return Answer(deltas, item)
            deltas.append(item)
    raise AssertionError("the iterator ended without Finished")


async def gather(engine: Engine, requests: Sequence[GenerateRequest]) -> list[Answer]:
    return await asyncio.gather(*(collect(engine, request) for request in requests))


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that the engine thread does."""
    while not holds():
        await asyncio.sleep(0.002)


def quiet(engine: Engine) -> bool:
    """Whether nothing is left of any request, neither a row nor a slot nor a prompt."""
    status = engine.status()
    inside = status.waiting + status.prefilling + status.decoding + status.choosing
    learning = status.adapts_waiting + status.adapts_learning
    return inside + learning + status.slots_pinned + status.kv_bytes == 0


def run(main: Awaitable[T], limit_s: float = 600) -> T:
    async def guarded() -> T:
        return await asyncio.wait_for(main, limit_s)

    return asyncio.run(guarded())
