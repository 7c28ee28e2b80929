"""The peers: transformers' ``generate`` and ``generate_batch``, PEFT's
``generate(adapter_names=...)``, PEFT and AdamW.

Each at the best settings we know: logits only where they are needed, no padding, fused AdamW, the
adapters loaded before the clock starts. Knows PEFT and transformers; knows nothing about engines.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from adapters.artifact import Artifact
from adapters.peft_io import save_peft
from adapters.state import AdapterState, Tensors
from adapters.support import Example
from benchmarks.contest import Outcome
from benchmarks.workload import Sizes, Work

LEARNER = "learner"
PAGE_TOKENS = 16
LEARNING_RATE = 5e-3


class Clock(BaseStreamer):
    """Notes when tokens come; the prompt comes first."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self.times_s: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


class Transformers:
    """The base alone."""

    def __init__(self, model: PreTrainedModel, work: Work, sizes: Sizes) -> None:
        """Use ``model``."""
        self.model = model
        self._work = work
        self._sizes = sizes

    async def decode(self, sessions: int) -> Outcome:
        """Answer so many prompts in one batch."""
        return _generate(self.model, self._work, self._sizes, sessions)


class Batching:
    """The base alone under transformers' continuous batching, kept running between the rounds.

    Its cache is only as large as the work: attention reads all of it on a CPU. Pages of 16 tokens
    were the fastest of 16, 32 and 128 there.
    """

    def __init__(self, model: PreTrainedModel, work: Work, sizes: Sizes) -> None:
        """Use ``model``, whose attention it replaces."""
        self.model = model
        self._work = work
        self._sizes = sizes
        self._made_for = 0

    async def decode(self, sessions: int) -> Outcome:
        """Answer so many prompts."""
        sizes = self._sizes
        if self._made_for != sessions:
            self.close()
            self._made_for = sessions
        pages = -(-(sizes.prompt_tokens + sizes.new_tokens) // PAGE_TOKENS) + 1
        outputs = self.model.generate_batch(
            inputs=[list(prompt.ids) for prompt in self._work.prompts[:sessions]],
            generation_config=GenerationConfig(max_new_tokens=sizes.new_tokens, do_sample=False),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=sessions * pages,
                max_batch_tokens=max(512, sessions * sizes.prompt_tokens),
            ),
            record_timestamps=True,
            persistent_manager=True,
            warmup=False,
        )
        answers = tuple(tuple(output.generated_tokens) for output in outputs.values())
        begun_s = max(output.timestamps[0] for output in outputs.values())
        times_s = [at for output in outputs.values() for at in output.timestamps if at > begun_s]
        return Outcome(answers, len(times_s), max(times_s) - begun_s)

    def close(self) -> None:
        """End its thread."""
        if self._made_for:
            self.model.destroy_cached_continuous_batching_manager()
            self._made_for = 0


class Peft:
    """One PEFT model that holds every session's adapter, and one more that learns."""

    def __init__(
        self, artifact: Artifact, model: PreTrainedModel, work: Work, sizes: Sizes
    ) -> None:
        """Wrap ``model``, and load the adapters from folders as a user would."""
        self._work = work
        self._sizes = sizes
        # aLoRA is what scope `activated` means in PEFT; it needs a header to look for.
        self.activates = artifact.spec.scope == "activated" and artifact.header is not None
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_lora(artifact, folder, artifact.session_init, activated=False)
            self.model = PeftModel.from_pretrained(model, folder, LEARNER, is_trainable=True)
            for session, tensors in enumerate(work.adapters):
                self._load(artifact, folder, f"lora-{session}", tensors, activated=False)
                if self.activates:
                    self._load(artifact, folder, f"alora-{session}", tensors, activated=True)
        self.model.eval()
        self._trained = [p for n, p in self.model.named_parameters() if f".{LEARNER}." in n]
        self._start = [parameter.detach().clone() for parameter in self._trained]

    async def decode_named(self, sessions: int, kind: str) -> Outcome:
        """Answer so many prompts in one batch, each row naming its ``kind`` of adapter."""
        names = [f"{kind}-{session}" for session in range(sessions)]
        return _generate(self.model, self._work, self._sizes, sessions, adapter_names=names)

    async def decode_set(self) -> Outcome:
        """Answer the first prompt under the first adapter, made the active one."""
        self.model.set_adapter("lora-0", inference_mode=True)
        return _generate(self.model, self._work, self._sizes, 1)

    async def adapt(self, sessions: int) -> Outcome:
        """Let so many sessions learn, one after the other."""
        self.model.set_adapter(LEARNER)
        losses = [self._learn(examples) for examples in self._work.examples[:sessions]]
        return Outcome(losses=losses[0])

    def _learn(self, examples: Sequence[Example]) -> tuple[float, ...]:
        with torch.no_grad():
            for parameter, start in zip(self._trained, self._start, strict=True):
                parameter.copy_(start)
        optimizer = torch.optim.AdamW(self._trained, LEARNING_RATE, fused=True)
        rows = [e.prompt + e.header + e.completion for e in examples]
        ids = torch.tensor(rows, device=self.model.device)  # (N, T)
        taught = len(examples[0].completion)
        losses = []
        for _ in range(self._sizes.steps):
            # One position more, because the answer's first token is predicted before it.
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=taught + 1).logits[
                :, :-1
            ]
            loss = cross_entropy(logits.flatten(0, 1), ids[:, -taught:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return tuple(losses)

    def _load(
        self, artifact: Artifact, folder: Path, name: str, tensors: Tensors, *, activated: bool
    ) -> None:
        save_lora(artifact, folder, tensors, activated=activated)
        self.model.load_adapter(folder, name)


def save_lora(artifact: Artifact, folder: Path, tensors: Tensors, *, activated: bool) -> None:
    spec = replace(artifact.spec, scope="activated" if activated else "full")
    state = AdapterState(spec, tensors, artifact.fingerprint)
    save_peft(folder, state, artifact.header, transposed=artifact.transposed)


def _generate(model: Any, work: Work, sizes: Sizes, sessions: int, **arguments: object) -> Outcome:
    """Greedy, ``new_tokens`` for every row."""
    ids = torch.tensor([prompt.ids for prompt in work.prompts[:sessions]], device=model.device)
    clock = Clock()
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sizes.new_tokens,
            do_sample=False,
            streamer=clock,
            **arguments,
        )
    first_s, last_s = clock.times_s[1], clock.times_s[-1]
    answers = tuple(tuple(row) for row in output[:, ids.shape[1] :].tolist())
    return Outcome(answers, sessions * (len(clock.times_s) - 2), last_s - first_s)
