"""Adapters as PEFT folders and back: aLoRA for scope ``activated``, plain LoRA for ``full``.

The only file that knows PEFT, and it loads it only to write: PEFT takes seconds to import. Knows
nothing about where a folder comes from, nor about a model's own form; every PEFT feature we do not
have is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file

from adapters.config import AdapterError, LoraSpec, Scope, SpecError
from adapters.state import AdapterState, Tensors
from adapters.tensor_file import TensorFile, TensorFileError, read_tensor_file, shorten

CONFIG_FILE: Final = "adapter_config.json"
TENSOR_FILE: Final = "adapter_model.safetensors"
NAME_PREFIX: Final = "base_model.model."  # how PEFT wraps a model
NAME_SUFFIX: Final = ".weight"

# Fields that change nothing about a finished adapter, or that are read below.
HARMLESS_FIELDS: Final = frozenset(
    {
        *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path"),
        *("revision", "inference_mode", "runtime_config", "r", "lora_alpha", "target_modules"),
        *("alora_invocation_tokens", "lora_dropout", "fan_in_fan_out", "megatron_core"),
        *("init_lora_weights", "eva_config", "loftq_config", "corda_config", "lora_ga_config"),
        *("velora_config", "qalora_group_size", "ensure_weight_tying"),
    }
)
# Starts that also rewrite the base's weights; an adapter made from them fits no other base.
BASE_REWRITING_STARTS: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
FLOATS: Final = ("F32", "F16", "BF16")
EMPTY_VALUES: Final[tuple[object, ...]] = (None, False, "none", [], {})


class PeftFormatError(AdapterError, ValueError):
    """A PEFT folder cannot be read or written; the message names the field or file."""


@dataclass(frozen=True)
class PeftForm:
    """What a PEFT configuration says about its adapter; targets in alphabetical order."""

    spec: LoraSpec
    header: tuple[int, ...] | None  # tokens that activate it; None for scope `full`


@dataclass(frozen=True)
class PeftAdapter:
    """What a PEFT folder holds, tensors in float32."""

    form: PeftForm
    tensors: Tensors

    @property
    def spec(self) -> LoraSpec:
        """Its form as an adapter."""
        return self.form.spec

    @property
    def header(self) -> tuple[int, ...] | None:
        """Tokens that activate it; None for scope `full`."""
        return self.form.header


def save_peft(
    folder: Path, state: AdapterState, header: Sequence[int] | None, *, transposed: bool = False
) -> None:
    """Write ``state`` as a folder that ``PeftModel.from_pretrained`` loads.

    Args:
        header: tokens every answer starts with; scope ``activated`` needs them.
        transposed: the base's target weights are stored (in, out), as in GPT-2.

    Raises:
        PeftFormatError: scope ``activated`` without a header, which PEFT cannot express.
    """
    from peft import LoraConfig

    spec, activated = state.spec, state.spec.scope == "activated"
    if activated and not header:
        raise PeftFormatError(
            "an activated adapter can be written for PEFT only where the chat template gives the "
            "assistant's turn a header: add one, or use scope 'full'"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        target_modules=list(spec.targets),
        fan_in_fan_out=transposed,
        alora_invocation_tokens=list(header or ()) if activated else None,
        inference_mode=True,
    ).to_dict()  # type: ignore[no-untyped-call]
    config["lora_alpha"] = _whole(spec.scale * spec.rank)
    config["target_modules"] = sorted(spec.targets)  # PEFT keeps a set: another order every run
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    tensors = {
        f"{NAME_PREFIX}{name}{NAME_SUFFIX}": tensor.detach().cpu().clone().contiguous()
        for name, tensor in state.tensors.items()
    }
    save_file(tensors, folder / TENSOR_FILE, {"format": "pt"})


def load_peft(folder: Path) -> PeftAdapter:
    """Read a PEFT folder.

    Raises:
        PeftFormatError: a missing file, a broken one, a feature we do not have, or tensors that do
            not fit the configuration.
    """
    config, tensors = (_read_bytes(folder / name) for name in (CONFIG_FILE, TENSOR_FILE))
    try:
        return read_adapter(read_form(config), tensors)
    except PeftFormatError as error:
        raise PeftFormatError(f"{folder}: {error}") from error


def read_form(config: bytes) -> PeftForm:
    """Read the content of an ``adapter_config.json``.

    Raises:
        PeftFormatError: it is broken, or wants a feature we do not have.
    """
    fields = _read_config(config)
    _refuse_features(fields)
    header = _header(fields)
    try:
        return PeftForm(_spec(fields, "full" if header is None else "activated"), header)
    except SpecError as error:
        raise PeftFormatError(str(error)) from error


def read_adapter(form: PeftForm, tensors: bytes) -> PeftAdapter:
    """Read the content of an ``adapter_model.safetensors``.

    Raises:
        PeftFormatError: it is broken, or does not fit its configuration.
    """
    try:
        named = _checked(read_tensor_file(tensors), form.spec)
    except TensorFileError as error:
        raise PeftFormatError(f"{TENSOR_FILE}: {error}") from error
    return PeftAdapter(form, {_own_name(name): tensor for name, tensor in named.items()})


def check_shapes(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are not exactly those of ``shapes``.

    Raises:
        PeftFormatError: missing or extra tensors, or a wrong shape.
    """
    for name in sorted(shapes.keys() ^ tensors.keys()):
        problem = "misses" if name in shapes else "has, and the model's adapters have not,"
        raise PeftFormatError(f"the adapter {problem} {shorten(name)}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise PeftFormatError(
                f"{name} has shape {list(tensors[name].shape)}, the model needs {list(shape)}"
            )


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        other = path.with_suffix(".bin").exists()
        hint = ": save it as safetensors, pickled files are never read" if other else ""
        raise PeftFormatError(f"{path.parent} has no {path.name}{hint}")
    return path.read_bytes()


def _read_config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PeftFormatError(f"{CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise PeftFormatError(f"{CONFIG_FILE} must hold a JSON object")
    return config


def _refuse_features(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise PeftFormatError(f"peft_type {shorten(config.get('peft_type'))}: only LORA is served")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise PeftFormatError(f"task_type {shorten(config['task_type'])}: only CAUSAL_LM is served")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(BASE_REWRITING_STARTS):
        raise PeftFormatError(f"init_lora_weights {shorten(start)} belongs to a rewritten base")
    for key, value in config.items():
        if key not in HARMLESS_FIELDS and value not in EMPTY_VALUES:
            raise PeftFormatError(f"{shorten(key)} = {shorten(value)} is not supported")


def _header(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    tokens = config.get("alora_invocation_tokens")
    if tokens is None:
        return None
    if not isinstance(tokens, list) or not tokens or not all(type(t) is int for t in tokens):
        raise PeftFormatError(f"alora_invocation_tokens {shorten(tokens)}: expected token ids")
    return tuple(tokens)


def _spec(config: Mapping[str, Any], scope: Scope) -> LoraSpec:
    rank, alpha, targets = (config.get(k) for k in ("r", "lora_alpha", "target_modules"))
    if type(rank) is not int:
        raise PeftFormatError(f"r {shorten(rank)}: expected a whole number")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise PeftFormatError(f"lora_alpha {shorten(alpha)}: expected a number")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise PeftFormatError(f"target_modules {shorten(targets)}: expected a list of module names")
    # PEFT may list whole names; which modules those are is checked with the tensors.
    last_parts = tuple(sorted({target.rpartition(".")[2] for target in targets}))
    return LoraSpec(rank, last_parts, None if alpha == rank else float(alpha), scope)


def _checked(file: TensorFile, spec: LoraSpec) -> Tensors:
    for name, entry in file.entries.items():
        module, kind = _own_name(name).rsplit(".", 1)
        if entry["dtype"] not in FLOATS:
            raise PeftFormatError(
                f"{shorten(name)} is stored as {entry['dtype']}, expected {' or '.join(FLOATS)}"
            )
        if module.rpartition(".")[2] not in spec.targets:
            raise PeftFormatError(f"{shorten(name)} is not one of target_modules")
        rank = entry["shape"][0 if kind == "lora_A" else 1] if len(entry["shape"]) == 2 else None
        if rank != spec.rank:
            raise PeftFormatError(
                f"{shorten(name)} has shape {entry['shape']}, which is not of rank {spec.rank}"
            )
    return file.tensors()


def _own_name(name: str) -> str:
    own = name.removeprefix(NAME_PREFIX).removesuffix(NAME_SUFFIX)
    whole = name == f"{NAME_PREFIX}{own}{NAME_SUFFIX}"
    if not whole or not own.endswith((".lora_A", ".lora_B")):
        raise PeftFormatError(f"tensor {shorten(name)} is not supported")
    return own


def _whole(value: float) -> int | float:
    # PEFT declares an integer and accepts any number; where it is whole, write it so.
    return int(value) if value == int(value) else value
