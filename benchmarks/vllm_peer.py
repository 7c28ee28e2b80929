"""vLLM's CPU build as a peer: a process under the interpreter that has it (``--vllm PYTHON``).

vLLM pins a torch and a transformers of its own, so it never shares an environment with us. Knows
how to start the worker and talk to it; what vLLM is told, `vllm_worker` knows.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from adapters.artifact import Artifact
from benchmarks.contest import Outcome
from benchmarks.peers import save_lora
from benchmarks.workload import BenchmarkError, Sizes, Work

WORKER = Path(__file__).with_name("vllm_worker.py")


class Vllm:
    """One vLLM engine, with an adapter for every session or with none."""

    def __init__(self, process: subprocess.Popen[str], answers: int) -> None:
        """Talk to a started worker."""
        self._process = process
        self._answers = os.fdopen(answers)

    async def decode(self, sessions: int) -> Outcome:
        """Answer so many prompts in one batch, each under its own adapter where it has some."""
        assert self._process.stdin is not None
        print(json.dumps({"sessions": sessions}), file=self._process.stdin, flush=True)
        found = self.read()
        return Outcome(tuple(map(tuple, found["tokens"])), cpu_elsewhere_s=found["cpu_s"])

    def read(self) -> dict[str, list[list[int]] | float]:
        """The worker's next answer.

        Raises:
            BenchmarkError: it ended instead.
        """
        line = self._answers.readline()
        if not line:
            raise BenchmarkError(
                f"vLLM ended with exit code {self._process.wait()}; its own words are above"
            )
        return dict(json.loads(line))


@contextmanager
def vllm(
    python: Path, artifact: Artifact, work: Work, sizes: Sizes, *, taught: bool
) -> Iterator[Vllm]:
    """A running vLLM engine on the artifact's model; its log goes to standard error.

    Raises:
        BenchmarkError: it does not start.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        artifact.model.save_pretrained(folder / "model")
        artifact.tokenizer.save_pretrained(folder / "model")
        adapters = []
        for session, tensors in enumerate(work.adapters if taught else ()):
            adapters.append(str(folder / f"lora-{session}"))
            save_lora(artifact, Path(adapters[-1]), tensors, activated=False)
        settings = {
            "model": str(folder / "model"),
            "adapters": adapters,
            "rank": max(8, artifact.spec.rank),
            "context_tokens": artifact.context_tokens,
            "rows": sizes.sessions,
            "threads": sizes.threads,
            "new_tokens": sizes.new_tokens,
            "prompts": [list(prompt.ids) for prompt in work.prompts],
        }
        yield from _running(python, settings)


def _running(python: Path, settings: dict[str, object]) -> Iterator[Vllm]:
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [python, "-P", WORKER],
            stdin=subprocess.PIPE,
            stdout=2,
            text=True,
            pass_fds=[write_end],
        )
    except OSError as error:
        raise BenchmarkError(f"{python} cannot be run: {error}") from error
    finally:
        os.close(write_end)
    with process:
        assert process.stdin is not None
        print(json.dumps(settings | {"answers_fd": write_end}), file=process.stdin, flush=True)
        peer = Vllm(process, read_end)
        peer.read()  # ready
        try:
            yield peer
        finally:
            process.stdin.close()
