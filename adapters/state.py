"""Adapter tensors as values: one session's, or many sessions' stacked along a first axis.

A tensor's name is ``<module>.lora_A`` (R, in) or ``<module>.lora_B`` (out, R). Knows nothing about
models' insides beyond the shapes of the target modules, nor about versions or storage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor, nn

from adapters.config import LoraSpec, SpecError
from adapters.memory import fit_answers

Tensors = dict[str, Tensor]
LEFT_ALONE: Final = -1
"""In place of an answer's number where the base answers, and nobody asks what was disliked."""


@dataclass(frozen=True)
class Taught:
    """What was taught, as the gate knows it.

    ``keys``: (N, E) unit vectors of the prompts. ``answers``: (N,) integers that stand for the
    answers, equal where the answers are; below 0, the complement ``~`` of one that was disliked:
    the base answers such prompts, whatever else was taught. ``view`` names how the gate that made
    them sees prompts. ``completions``: (N, L) tokens of the answers, -1 behind their ends; None
    where only their numbers are known.
    """

    keys: Tensor
    answers: Tensor
    view: str
    completions: Tensor | None = None

    @cached_property
    def fitted(self) -> tuple[Tensor, Tensor]:
        """The numbers of the C answers, and the weights (E, C) that tell which one is wanted."""
        numbers, weights = fit_answers(self.keys, self.answers)
        said = numbers >= 0
        return numbers[said], weights[:, said]

    @cached_property
    def answered(self) -> Tensor:
        """Keys of the prompts that have an answer."""
        said = self.answers >= 0
        return self.keys if bool(said.all()) else self.keys[said]

    @cached_property
    def left_alone(self) -> Tensor:
        """Keys of the prompts that are the base's."""
        return self.keys[self.answers < 0]

    @property
    def nbytes(self) -> int:
        """Memory that it takes once a prompt was compared with it, which this does not wait for."""
        answers = int((self.answers.unique() >= 0).sum())
        fitted = answers * (self.keys[:1].nbytes + self.answers.element_size())
        kept = (self.keys, self.answers, self.completions)
        apart = (self.answered, self.left_alone) if len(self.left_alone) else ()
        held: int = sum(tensor.nbytes for tensor in (*kept, *apart) if tensor is not None)
        return held + fitted

    def rows(self, rows: Tensor) -> Taught:
        """What ``rows`` (N',) or a mask (N,) picks."""
        completions = None if self.completions is None else self.completions[rows]
        return Taught(self.keys[rows], self.answers[rows], self.view, completions)


@dataclass(frozen=True)
class AdapterState:
    """One adapter: its form, its tensors, the base it belongs to, and what its gate knows.

    ``taught`` is None where there is no gate.
    """

    spec: LoraSpec
    tensors: Tensors
    base_fingerprint: str
    taught: Taught | None = None

    @property
    def nbytes(self) -> int:
        """Memory that its tensors take, and what its gate works out of them."""
        known = 0 if self.taught is None else self.taught.nbytes
        return known + sum(tensor.nbytes for tensor in self.tensors.values())


def target_modules(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """Modules of ``model`` whose last name part is in ``targets``, by full name, in model order.

    Raises:
        SpecError: a target matches no module, or matches one that has no weight matrix.
    """
    found = {
        name: module for name, module in model.named_modules() if name.rpartition(".")[2] in targets
    }
    missing = set(targets) - {name.rpartition(".")[2] for name in found}
    if missing:
        raise SpecError(f"the model has no module named {', '.join(sorted(missing))}")
    for name, module in found.items():
        if not isinstance(getattr(module, "weight", None), Tensor) or module.weight.ndim != 2:
            raise SpecError(f"module {name} has no weight matrix to adapt")
    return found


def feature_sizes(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear module; transformers' Conv1D stores (in, out)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.Linear):
        return weight.shape[1], weight.shape[0]
    return weight.shape[0], weight.shape[1]


def tensor_shapes(model: nn.Module, spec: LoraSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of an adapter of form ``spec``, by name, in model order.

    Raises:
        SpecError: a target matches no usable module.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in target_modules(model, spec.targets).items():
        size_in, size_out = feature_sizes(module)
        shapes[f"{name}.lora_A"] = (spec.rank, size_in)
        shapes[f"{name}.lora_B"] = (size_out, spec.rank)
    return shapes


def initial_tensors(model: nn.Module, spec: LoraSpec, generator: torch.Generator) -> Tensors:
    """LoRA's usual start: A ~ N(0, 1/in), B = 0; the adapter changes nothing yet."""
    tensors: Tensors = {}
    for name, module in target_modules(model, spec.targets).items():
        size_in, size_out = feature_sizes(module)
        tensors[f"{name}.lora_A"] = (
            torch.randn(spec.rank, size_in, generator=generator) / size_in**0.5
        )
        tensors[f"{name}.lora_B"] = torch.zeros(size_out, spec.rank)
    return tensors


def stack(adapters: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Stack S adapters of one form: every tensor gets a first axis S."""
    return {name: torch.stack([adapter[name] for adapter in adapters]) for name in adapters[0]}


def repeat(adapter: Mapping[str, Tensor], sessions: int) -> Tensors:
    """The same adapter ``sessions`` times along a new first axis, without copying."""
    return {
        name: tensor.unsqueeze(0).expand(sessions, *tensor.shape)
        for name, tensor in adapter.items()
    }


def take(stacked: Mapping[str, Tensor], session: int) -> Tensors:
    """One session's tensors out of stacked ones, detached and contiguous."""
    return {name: tensor[session].detach().clone() for name, tensor in stacked.items()}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of all base weights, in hexadecimal.

    16-bit weights count as the float32 they equal, so that one artifact has one fingerprint on
    every device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu()
        if values.is_floating_point() and values.dtype.itemsize < 4:
            values = values.float()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
