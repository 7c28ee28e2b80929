"""How fast the machine could do our work at best: what it has to compute and to read, at its rates.

Operations are those of matrix products, counted while the work runs once; bytes are what every pass
must read; the rates are the best that this machine shows in the same run. Knows the inner step and
models; knows nothing about contenders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adapters.artifact import Artifact
from adapters.inner_loop import support_gradients, support_losses
from adapters.layer import LoraHooks, Rows
from adapters.prefix import Prefix, continue_from, prefill
from adapters.state import repeat, stack
from adapters.support import make_support
from benchmarks.workload import Sizes, Work
from server.engine.kernels import load_kernels
from server.engine.slots import compact

TRIES = 50  # of which the fastest counts
WIDTH = 1024  # of the square matrices


@dataclass(frozen=True)
class Rates:
    """What the machine shows at best, with the threads of the run."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Amount:
    """What a piece of work cannot do without."""

    flops: float  # a multiplication and an addition are two
    nbytes: float  # read: weights once in every pass, adapters, keys and values of prompts

    def floor_s(self, rates: Rates) -> float:
        """Seconds in which nothing can be faster, reading while it computes."""
        return max(self.flops / rates.flops_per_s, self.nbytes / rates.bytes_per_s)


def measure_rates(artifact: Artifact) -> Rates:
    """Products of matrices that stay in cache; reading as many bytes as the model's weights."""
    device = artifact.model.device
    square = torch.randn(WIDTH, WIDTH, device=device)
    weights = torch.randn(_weight_bytes(artifact.model) // 4, device=device)
    products = [lambda: square @ square]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._linear_pointwise
        products.append(lambda: onednn(square, square, None, "none", [], ""))
    least_s = min(_fastest_s(product, device) for product in products)
    return Rates(2 * WIDTH**3 / least_s, weights.nbytes / _fastest_s(weights.sum, device))


def adapt_amount(artifact: Artifact, work: Work, sizes: Sizes, sessions: int, cold: bool) -> Amount:
    """So many sessions that learn together: the losses before and after, and the inner steps."""
    model, device = artifact.model, artifact.model.device
    examples = work.examples[:sessions]
    prompts = [example.prompt for own in examples for example in own]
    begins = Amount(0, 0)
    prefix: Prefix | None = None
    if artifact.spec.scope == "activated":
        with torch.no_grad(), _counting() as counted:
            prefix = prefill(model, prompts, device)
        if cold:
            begins = Amount(counted.get_total_flops(), _weight_bytes(model))
    support = make_support(examples, prefix, artifact.spec.scope, device)
    tensors = repeat({n: t.to(device) for n, t in artifact.session_init.items()}, sessions)
    with _hooked(artifact) as hooks:
        with torch.no_grad(), _counting() as before:
            support_losses(model, hooks, None, support, 0.0)
        with torch.no_grad(), _counting() as after:
            support_losses(model, hooks, tensors, support, 0.0)
        with _counting() as step:
            support_gradients(model, hooks, tensors, support, moving=artifact.rule.step_sizes)
    flops = sum(c.get_total_flops() for c in (before, after))
    flops += sizes.steps * step.get_total_flops()
    a_pass = _weight_bytes(model) + _prefix_bytes(prefix)
    adapters = sum(tensor.nbytes for tensor in artifact.session_init.values()) * sessions
    passes, moving = 2 + 2 * sizes.steps, 1 + 2 * sizes.steps
    return Amount(begins.flops + flops, begins.nbytes + passes * a_pass + moving * adapters)


def decode_amount(
    artifact: Artifact, work: Work, sizes: Sizes, sessions: int, taught: bool
) -> Amount:
    """One token for so many sessions, their prompts and half of their answers behind them.

    Adapters are read in 16 bits where the engine's own operations read them.
    """
    model, device = artifact.model, artifact.model.device
    behind = [(*p.ids, *p.ids[: sizes.new_tokens // 2]) for p in work.prompts[:sessions]]
    adapters = stack(work.adapters[:sessions])
    with torch.no_grad(), _hooked(artifact) as hooks:
        prefix = prefill(model, behind, device)
        ids = torch.zeros(sessions, 1, dtype=torch.long, device=device)
        rows = Rows({n: t.to(device) for n, t in adapters.items()}, None) if taught else None
        with hooks.use(rows), _counting() as counted:
            continue_from(model, prefix, ids)
    nbytes = _weight_bytes(model) + _prefix_bytes(prefix)
    kept = compact(adapters) if device.type == "cpu" and load_kernels() else adapters
    nbytes += sum(tensor.nbytes for tensor in kept.values()) if taught else 0
    return Amount(counted.get_total_flops(), nbytes)


@contextmanager
def _hooked(artifact: Artifact) -> Iterator[LoraHooks]:
    hooks = LoraHooks(artifact.model, artifact.spec)
    try:
        yield hooks
    finally:
        hooks.remove()


def _counting() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def _weight_bytes(model: nn.Module) -> int:
    """Of all matrices that a pass multiplies with; an embedding is one where it is the head too."""
    found = {
        id(module.weight): module.weight
        for module in model.modules()
        if not isinstance(module, nn.Embedding) and getattr(module, "weight", None) is not None
    }
    return sum(weight.nbytes for weight in found.values() if weight.ndim == 2)


def _prefix_bytes(prefix: Prefix | None) -> int:
    return 0 if prefix is None else sum(k.nbytes + v.nbytes for k, v in prefix.layers)


def _fastest_s(run: Callable[[], Tensor], device: torch.device) -> float:
    times_s = []
    for _ in range(TRIES):
        began_s = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times_s.append(time.perf_counter() - began_s)
    return min(times_s)
