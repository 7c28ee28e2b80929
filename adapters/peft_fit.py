"""A foreign adapter in the form that a model's own adapters have, where it fits into it exactly.

One of a lower rank, of fewer targets or of another scale is the same function once it is padded
with zeros and its factor is moved into B; whatever would have to be approximated is refused by
name. Knows forms and tensors; nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from adapters.config import LoraSpec
from adapters.norms import product_norm
from adapters.peft_io import PeftAdapter, PeftForm, PeftFormatError
from adapters.state import AdapterState, Tensors, target_modules
from adapters.tensor_file import shorten

ABSURD_ENTRY: Final = 1e4
ABSURD_RATIO: Final = 30.0
"""Longest change of a weight matrix, as a multiple of its own norm. Adapters of the embedded model,
which change much, have 0.6."""


def check_form(form: PeftForm, spec: LoraSpec, header: Sequence[int] | None) -> None:
    """Refuse what cannot be an adapter of form ``spec``.

    Args:
        header: tokens that the model's answers start with.

    Raises:
        PeftFormatError: another scope or header, a higher rank, or other targets.
    """
    found = form.spec
    if found.scope != spec.scope:
        raise PeftFormatError(
            f"the adapter's scope is '{found.scope}', this model's adapters have '{spec.scope}'"
        )
    if spec.scope == "activated" and form.header != tuple(header or ()):
        raise PeftFormatError(
            f"the adapter starts at the tokens {shorten(list(form.header or ()))}, this model's "
            f"answers start with {list(header or ())}"
        )
    if found.rank > spec.rank:
        raise PeftFormatError(
            f"the adapter's rank is {found.rank}, this model's adapters have {spec.rank} and no "
            "room for more"
        )
    if others := sorted(set(found.targets) - set(spec.targets)):
        raise PeftFormatError(
            f"the adapter's targets {shorten(others)} are none of this model's adapters, which "
            f"have {', '.join(sorted(spec.targets))}"
        )


def fit(
    adapter: PeftAdapter,
    *,
    spec: LoraSpec,
    base_fingerprint: str,
    shapes: Mapping[str, tuple[int, ...]],
    header: Sequence[int] | None,
) -> AdapterState:
    """The adapter as one of form ``spec``, which does the same.

    Args:
        shapes: shape of every tensor of that form by name.

    Raises:
        PeftFormatError: as `check_form`, or tensors that are not those of the model's targets.
    """
    check_form(adapter.form, spec, header)
    _check_names(adapter, shapes)
    factor, rank = adapter.spec.scale / spec.scale, adapter.spec.rank
    whole: Tensors = {}
    for name, shape in shapes.items():
        whole[name] = torch.zeros(shape)
        tensor = adapter.tensors.get(name)
        if tensor is None:
            continue
        a = name.endswith(".lora_A")
        wanted = (rank, shape[1]) if a else (shape[0], rank)
        if tuple(tensor.shape) != wanted:
            raise PeftFormatError(
                f"{name} has shape {list(tensor.shape)}, the model needs {list(wanted)}"
            )
        if a:
            whole[name][:rank] = tensor
        else:
            whole[name][:, :rank] = tensor * factor
    return AdapterState(spec, whole, base_fingerprint)


def check_size(state: AdapterState, base_norms: Mapping[str, float]) -> None:
    """Refuse an adapter that no training made.

    Args:
        base_norms: Frobenius norm of every target module's weight by its name.

    Raises:
        PeftFormatError: it changes a weight matrix by more than ``ABSURD_RATIO`` times its norm,
            or has entries on the way there that overflow.
    """
    for name, tensor in state.tensors.items():
        if not float(tensor.abs().max()) <= ABSURD_ENTRY:
            raise PeftFormatError(
                f"{name} has entries above {ABSURD_ENTRY:g}: no training makes such an adapter"
            )
    for name, base in base_norms.items():
        change = product_norm(state.tensors[f"{name}.lora_B"], state.tensors[f"{name}.lora_A"])
        bound = ABSURD_RATIO * base
        if not state.spec.scale * change <= bound:  # also refuses NaN
            raise PeftFormatError(
                f"the adapter changes {name} by a norm of {state.spec.scale * change:.3g}, over "
                f"the bound of {bound:.3g}: no training makes such an adapter"
            )


def base_norms(model: nn.Module, spec: LoraSpec) -> dict[str, float]:
    """What `check_size` measures by."""
    found = {}
    for name, module in target_modules(model, spec.targets).items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Of 16-bit weights on a GPU no copy in 32 is made.
        found[name] = float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32))
    return found


def _check_names(adapter: PeftAdapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(adapter.tensors.keys() - shapes.keys()):
        raise PeftFormatError(
            f"the adapter has, and the model's adapters have not, {shorten(name)}"
        )
    for name in shapes:
        target = name.split(".")[-2]
        if target in adapter.spec.targets and name not in adapter.tensors:
            raise PeftFormatError(f"the adapter misses {shorten(name)}")
