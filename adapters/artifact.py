"""The folder a server loads: base, tokenizer, `session_init/`, `inner_rule.json`, `report.json`,
`gate_words.safetensors` where the rule's gate has words, `gate_encoders.json` where it was
calibrated with encoders, and `step_factors.safetensors` where its step sizes are element-wise.

Knows which files there are and that they fit each other; what is in them, other files know.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from adapters.base_model import ArtifactError, load_base, probe, save_base
from adapters.calibrated import calibrated_gate, installed_encoder
from adapters.chat import ChatEncoder, tells_turns_apart, user_turn
from adapters.config import AdapterError, InnerRule, LoraSpec
from adapters.encoder_folder import load_encoder
from adapters.factors import load_factors, save_factors
from adapters.peft_io import PeftAdapter, check_shapes, load_peft, save_peft
from adapters.plain import plain_rule, plain_spec
from adapters.rule_io import read_rule, rule_text
from adapters.snapshot import Start, dumps, form_of
from adapters.state import (
    AdapterState,
    Tensors,
    fingerprint,
    initial_tensors,
    target_modules,
    tensor_shapes,
)
from adapters.words import load_words, save_words

__all__ = ["Artifact", "ArtifactError", "load_artifact", "save_artifact"]

SESSION_INIT: Final = "session_init"
RULE_FILE: Final = "inner_rule.json"
REPORT_FILE: Final = "report.json"
WORDS_FILE: Final = "gate_words.safetensors"
FACTORS_FILE: Final = "step_factors.safetensors"

NOT_APART: Final = (
    "words and encoders are of no use with this chat template, which ends a turn with text: all "
    "prompts look the same"
)

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Artifact:
    """Everything sessions share; tensors on ``model.device``, adapters in float32."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: LoraSpec
    session_init: Tensors
    rule: InnerRule
    fingerprint: str  # of the base as loaded
    start: Start  # session_init as compact snapshots know it
    rule_hash: str  # of session_init, rule and encoder: what derivations depend on besides items
    context_tokens: int
    report: Mapping[str, Any] | None
    header: tuple[int, ...] | None  # tokens that start every answer, where the template has some

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every adapter tensor by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.session_init.items()}

    @property
    def encoder(self) -> str | None:
        """The name of the sentence encoder at its gate, where it was loaded with one."""
        return None if self.rule.encoder is None else self.rule.encoder.name

    def with_margin(self, margin: float) -> Artifact:
        """The same with a gate of this ``margin``; itself where it has no gate."""
        if self.rule.gate is None:
            return self
        return replace(self, rule=replace(self.rule, gate=replace(self.rule.gate, margin=margin)))

    @property
    def transposed(self) -> bool:
        """Whether target weights are stored (in, out), which PEFT folders must say."""
        return _transposed(self.model, self.spec)


def save_artifact(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: LoraSpec,
    session_init: Tensors,
    rule: InnerRule,
    report: Mapping[str, Any],
    header_ids: Sequence[int] | None,
) -> Artifact:
    """Write an artifact with 16-bit weights, and load it again to be sure of it.

    An artifact that is already at ``folder`` is replaced; nothing else is. Either the whole folder
    is there afterwards or it is as it was. Whoever is killed while the one takes the other's place
    leaves the old one beside it, as ``<folder>.replaced``: the next save brings it back, and
    `load_artifact` says that it is there.

    Args:
        header_ids: tokens every answer starts with; scope ``activated`` needs them.

    Returns:
        The artifact as a server will see it, on the CPU: with the rounded weights.

    Raises:
        ArtifactError: parts that do not fit each other, a gate with an encoder, whose numbers are
            no rule's own, or a folder with something else in it.
        OSError: a file system that does not let itself be written.
    """
    if rule.encoder is not None:
        raise ArtifactError(f"nothing was written to {folder}: its gate has an encoder")
    folder = folder.resolve()  # of a link, what it points to is replaced
    if folder.exists() and any(folder.iterdir()) and not (folder / RULE_FILE).is_file():
        raise ArtifactError(f"{folder} holds something else: choose a new or empty folder")
    _settle(folder)
    partial = folder.with_name(folder.name + ".partial")
    _remove(partial)
    try:
        save_base(partial, model, tokenizer)
        halves = {name: tensor.detach().half() for name, tensor in session_init.items()}
        state = AdapterState(spec, halves, "")
        transposed = _transposed(model, spec)
        save_peft(partial / SESSION_INIT, state, header_ids, transposed=transposed)
        (partial / RULE_FILE).write_text(rule_text(spec, rule), encoding="utf-8")
        if rule.gate is not None and rule.gate.words is not None:
            save_words(partial / WORDS_FILE, rule.gate.words)
        if rule.factors is not None:
            save_factors(partial / FACTORS_FILE, rule.factors)
        text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False)
        (partial / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        artifact = load_artifact(partial)
        _replace(folder, partial)
    except (AdapterError, TypeError, ValueError) as error:
        raise ArtifactError(f"nothing was written to {folder}: {error}") from error
    finally:
        _remove(partial)
    return replace(artifact, name=folder.name)


def load_artifact(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    encoder: str | None = None,
) -> Artifact:
    """Load an artifact, or a plain Hugging Face causal LM with a zero-B start and a default rule.

    Args:
        dtype: of the base's weights, as of ``load_base``.
        encoder: name, as of ``load_encoder``, of what the gate compares prompts by as well.

    Raises:
        ArtifactError: a missing folder, no usable model, broken JSON, unknown keys, shapes that do
            not fit, values that are not finite; the message names the file. No such encoder, or one
            that the gate was not calibrated with.
    """
    path, device = Path(path), torch.device(device)
    if not path.is_dir():
        raise ArtifactError(f"there is no folder {path}: {_instead_of(path)}")
    base = load_base(path, device, dtype)
    chat = ChatEncoder(base.tokenizer)
    header = chat.assistant_header()
    words = _part(path / WORDS_FILE, lambda file: load_words(file, base.tokenizer))
    factors = _part(path / FACTORS_FILE, load_factors)
    stored_rule = _part(path / RULE_FILE, lambda file: read_rule(file, words, factors))
    stored_init = _part(path / SESSION_INIT, load_peft)
    try:
        spec = _spec(base.model, stored_rule, stored_init)
        session_init = _session_init(base.model, spec, stored_init, header)
        rule = stored_rule[1] if stored_rule else plain_rule(session_init)
        if encoder is not None:
            beside = load_encoder(encoder, base.tokenizer, device)
            rule = replace(rule, gate=calibrated_gate(path, beside, words))
        _check_rule(rule, session_init, chat)
        _check_gate(rule, spec, base.model, chat)
    except AdapterError as error:
        raise ArtifactError(f"{path}: {error}") from error
    whole = dumps(AdapterState(spec, session_init, ""))
    start = Start(session_init, hashlib.sha256(whole).hexdigest())
    session_init = {name: tensor.to(device) for name, tensor in session_init.items()}
    probe(path, base.model, spec, session_init)
    return Artifact(
        name=path.resolve().name,
        model=base.model,
        tokenizer=base.tokenizer,
        spec=spec,
        session_init=session_init,
        rule=rule,
        fingerprint=fingerprint(base.model),
        start=start,
        rule_hash=_rule_hash(whole, spec, rule),
        context_tokens=base.context_tokens,
        report=read_report(path),
        header=header,
    )


def load_served(path: Path, device: torch.device | str, encoder: str) -> Artifact:
    """Load an artifact as a server does, in a server's types.

    ``encoder``: its name; ``none``; or ``auto`` for a published one that is installed here and that
    the artifact's gate has numbers for. Where that one cannot be used, there is a warning and none.

    Raises:
        ArtifactError: as of ``load_artifact``.
    """
    if encoder != "auto":
        return load_artifact(path, device, encoder=None if encoder == "none" else encoder)
    try:
        name = installed_encoder(path)
        if name is not None:
            return load_artifact(path, device, encoder=name)
    except AdapterError as error:  # of the artifact alone, it is raised again below
        _log.warning("served without a sentence encoder: %s", error)
    return load_artifact(path, device)


def _rule_hash(start: bytes, spec: LoraSpec, rule: InnerRule) -> str:
    known_by = rule_text(spec, rule) + ("" if rule.encoder is None else rule.encoder.digest)
    return hashlib.sha256(start + known_by.encode()).hexdigest()


def read_report(path: Path) -> dict[str, Any] | None:
    """What ``report.json`` of the artifact at ``path`` says, without loading its model.

    None where there is none.

    Raises:
        ArtifactError: it is no JSON object.
    """
    return _part(path / REPORT_FILE, _read_report)


def _spec(
    model: PreTrainedModel,
    rule: tuple[LoraSpec, InnerRule] | None,
    session_init: PeftAdapter | None,
) -> LoraSpec:
    if rule is None:
        return plain_spec(model) if session_init is None else session_init.spec
    if session_init is not None and form_of(rule[0]) != form_of(session_init.spec):
        raise ArtifactError(
            f"{RULE_FILE} is for adapters of form {form_of(rule[0])}, {SESSION_INIT} has "
            f"{form_of(session_init.spec)}: they must agree"
        )
    return rule[0]


def _session_init(
    model: PreTrainedModel,
    spec: LoraSpec,
    stored: PeftAdapter | None,
    header: tuple[int, ...] | None,
) -> Tensors:
    shapes = tensor_shapes(model, spec)
    if stored is None:
        return initial_tensors(model, spec, torch.Generator().manual_seed(0))
    check_shapes(stored.tensors, shapes)
    if spec.scope == "activated" and stored.header != header:
        raise ArtifactError(
            f"{SESSION_INIT} starts at the tokens {stored.header}, but the chat template starts "
            f"answers with {header}: they must agree"
        )
    return {name: stored.tensors[name] for name in shapes}


def _check_rule(rule: InnerRule, session_init: Tensors, chat: ChatEncoder) -> None:
    different = sorted((rule.step_sizes.keys() | rule.still) ^ session_init.keys())
    if different:
        where = "no" if different[0] in session_init else "a useless"
        raise ArtifactError(f"{RULE_FILE} has {where} step size for {different[0]}")
    if not rule.step_sizes:
        raise ArtifactError(f"{RULE_FILE} lets no tensor move")
    for name, factors in (rule.factors or {}).items():
        if factors.shape != session_init[name].shape:
            raise ArtifactError(
                f"{FACTORS_FILE}: {name} has shape {list(factors.shape)}, the adapter "
                f"{list(session_init[name].shape)}"
            )
    for anchor in rule.anchors:
        chat.example(user_turn(anchor.prompt), anchor.completion)


def _check_gate(rule: InnerRule, spec: LoraSpec, model: PreTrainedModel, chat: ChatEncoder) -> None:
    if rule.gate is None:
        return
    if spec.scope == "full":
        raise ArtifactError(f"{RULE_FILE} has a gate, which needs scope 'activated', not 'full'")
    layers = int(model.config.num_hidden_layers)
    if rule.gate.layer > layers:
        raise ArtifactError(
            f"{RULE_FILE} has a gate at layer {rule.gate.layer} of a model with {layers}"
        )
    compares_turns = rule.gate.words is not None or rule.gate.encoder is not None
    if compares_turns and not tells_turns_apart(chat):
        raise ArtifactError(NOT_APART)


def _transposed(model: PreTrainedModel, spec: LoraSpec) -> bool:
    modules = target_modules(model, spec.targets).values()
    return any(isinstance(module, Conv1D) for module in modules)


def _read_report(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value, write a number or null")

    try:
        report = json.loads(path.read_bytes(), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"is not JSON: {error}") from error
    if not isinstance(report, dict):
        raise ArtifactError("must hold a JSON object")
    return report


def _part(path: Path, read: Callable[[Path], T]) -> T | None:
    if not path.exists():
        return None
    try:
        return read(path)
    except AdapterError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _replaced(folder: Path) -> Path:
    """Where what is replaced waits until the new one is in its place."""
    return folder.with_name(folder.name + ".replaced")


def _replace(folder: Path, new: Path) -> None:
    try:
        if folder.exists():
            folder.rename(_replaced(folder))
        new.rename(folder)
    finally:
        _settle(folder)


def _settle(folder: Path) -> None:
    """End a replacement wherever it stopped: with the new one, or else with the old one back."""
    if folder.exists():
        _remove(_replaced(folder))
    elif _replaced(folder).exists():
        _replaced(folder).rename(folder)


def _instead_of(path: Path) -> str:
    if (replaced := _replaced(path)).is_dir():
        return f"{replaced} is what was there before a save that was interrupted, rename it"
    return "give the path of a model folder"


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
