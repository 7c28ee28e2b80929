"""`python -m benchmarks.steps`: what a decode step and a prompt take, by each way to compute them.

The model's own code, a recording of it, and one with operations of our own; with an adapter a row
and with none. In one process and in turn, on one thread, CPU time. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from adapters.artifact import Artifact
from adapters.prefix import prefill
from adapters.state import AdapterState
from benchmarks import models
from benchmarks.trial import table
from server.engine.base import Base, make_base
from server.engine.forward import Step, run
from server.engine.kernels import load_kernels
from server.engine.kv import BatchKV
from server.engine.linear import fast_linears
from server.engine.recorded_prefill import recorded_prefill
from server.engine.recorded_step import recorded_step
from server.engine.slots import UNTAUGHT, Slots

OWN_CODE, RECORDED, OPERATIONS = "model's own code", "recorded", "with our operations"
COLUMNS = 130  # tokens that a step's rows have already
AT_ONCE = 3  # steps timed together
PROMPTS = ((1, 20), (1, 88), (4, 88), (1, 400))  # rows and tokens
Spent = dict[str, list[float]]  # ms, by way


def in_turn(ways: dict[str, Callable[[], object]], rounds: int) -> Spent:
    """Milliseconds of CPU time of each way, round by round, the order reversed every time."""
    spent: Spent = defaultdict(list)
    for turn in range(rounds + 2):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            ways[name]()  # its data are in the processor's caches, and nobody else's
            begun_s = time.process_time()
            for _ in range(AT_ONCE):
                ways[name]()
            if turn > 1:
                spent[name].append((time.process_time() - begun_s) / AT_ONCE * 1e3)
    return spent


def times(spent: Spent, slower: str, faster: str) -> str:
    """How many times as fast one way is as another: the median over rounds."""
    ratios = [a / b for a, b in zip(spent[slower], spent[faster], strict=True)]
    return f"{median(ratios):.2f}"


def decode_rows(
    artifact: Artifact, base: Base, counts: Sequence[int], rounds: int
) -> list[list[str]]:
    """For every number of rows the median milliseconds of each way, and how they compare."""
    steps: dict[str, Step | None] = {
        OWN_CODE: None,
        RECORDED: recorded_step(base, own=False),
        OPERATIONS: recorded_step(base),
    }
    found = []
    for count in counts:
        kv = BatchKV(base.layers, count, base.context_tokens, 2**31, base.device)
        kv.hold(count, COLUMNS + 10)
        for pair in kv.layers:
            for tensor in pair:
                tensor.normal_()
        ways: dict[str, Callable[[], object]] = {}
        for name, step in steps.items():
            slots = _slots(artifact, step, count)
            for taught in (True, False):
                numbers = [row + 1 if taught else UNTAUGHT for row in range(count)]
                ways[f"{name}, {taught}"] = partial(_decode, base, kv, step, slots, numbers)
        spent = in_turn(ways, rounds)
        for taught in (True, False):
            names = [f"{name}, {taught}" for name in steps]
            line = [artifact.name, str(count), "one each" if taught else "none"]
            line += [f"{median(spent[name]):.2f}" for name in names]
            beside = times(spent, f"{OPERATIONS}, False", f"{OPERATIONS}, True") if taught else ""
            found.append([*line, times(spent, names[1], names[2]), beside])
    return found


def _slots(artifact: Artifact, step: Step | None, count: int) -> Slots:
    """A random adapter for every row, in slots 1 to ``count``."""
    add = None if step is None else step.add
    slots = Slots(artifact.session_init, count, torch.device("cpu"), add)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        tensors = {
            name: 0.02 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in artifact.session_init.items()
        }
        slots.acquire(str(number), AdapterState(artifact.spec, tensors, artifact.fingerprint))
    return slots


def _decode(
    base: Base, kv: BatchKV, step: Step | None, slots: Slots, numbers: Sequence[int]
) -> Tensor:
    tokens, starts = [5] * len(numbers), [COLUMNS] * len(numbers)
    if step is not None:
        return step(kv, tokens, starts, slots.rows(numbers))
    ids = torch.tensor(tokens).unsqueeze(1)
    return run(base, ids, kv.window(0, starts, 1), kv.layers, slots.rows(numbers))


def prompt_rows(artifact: Artifact, base: Base, rounds: int) -> list[list[str]]:
    """The same of passes over prompts, which no adapter acts on."""
    recording = recorded_prefill(base)
    found = []
    for rows, tokens in PROMPTS:
        prompts = [[3 + (row + place) % 50 for place in range(tokens)] for row in range(rows)]
        ways = {
            name: partial(
                prefill, base.model, prompts, base.device, base.summary_layer, None, compute
            )
            for name, compute in ((OWN_CODE, None), (RECORDED, recording))
        }
        spent = in_turn(ways, rounds)
        medians = [f"{median(spent[name]):.2f}" for name in ways]
        line = [artifact.name, str(rows), str(tokens), *medians]
        found.append([*line, times(spent, OWN_CODE, RECORDED)])
    return found


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    shapes = sorted(models.SHAPES)
    parser.add_argument("--shape", nargs="+", choices=shapes, default=["tiny", "30m"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=25, help="default: 25")
    parsed = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not load_kernels():
        print("benchmarks.steps: operations of our own cannot be compiled here", file=sys.stderr)
        return 2
    steps, prompts = list[list[str]](), list[list[str]]()
    for shape in parsed.shape:
        artifact = models.make(shape, "activated", 0)
        _kept = fast_linears(artifact.model)  # as the engine has them
        base = make_base(artifact)
        steps += decode_rows(artifact, base, parsed.rows, parsed.rounds)
        prompts += prompt_rows(artifact, base, parsed.rounds)
    ways = [f"{way}, ms" for way in (OWN_CODE, RECORDED, OPERATIONS)]
    heads = ["model", "rows", "adapters", *ways, "times the recorded one's speed"]
    print(table([*heads, "of the base's"], steps))
    heads = ["model", "rows", "tokens", *ways[:2], "times its own code's speed"]
    print(table(heads, prompts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
