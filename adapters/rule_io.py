"""`inner_rule.json`: form of the adapter and the rule it learns by, versioned and checked.

Knows the file's form; knows nothing about models or about who learned the rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from adapters.config import AdapterError, Anchor, Gate, InnerRule, LoraSpec, Mix, Scope, SpecError
from adapters.encoder import Encoder
from adapters.factors import digest
from adapters.words import Words

# Rules that need nothing of a later version are written in the first one: the text of a rule is
# part of what versions of sessions are known by.
FIRST_VERSION: Final = 1
FORMAT_VERSION: Final = 2  # adds factors and still tensors


class RuleError(AdapterError, ValueError):
    """An inner rule cannot be read or written; the message names the field."""


class FilePart(BaseModel):
    """Of a file: nothing unknown, nothing of another type, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Spec(FilePart):
    rank: int = Field(ge=1)
    alpha: float | None
    targets: list[str] = Field(min_length=1)
    scope: Scope


class _Anchor(FilePart):
    prompt: str
    completion: str


class MixNumbers(FilePart):
    """How one of given choices is picked."""

    model: float = Field(ge=0)
    memory: float = Field(ge=0)


class GateNumbers(FilePart):
    """A gate without what it compares prompts by."""

    layer: int = Field(ge=0)
    threshold: float = Field(ge=-1, le=1)
    growth: float = Field(0.0, ge=0, le=1)
    mix: MixNumbers | None = None
    words: str | None = None  # digest of the table that the other numbers were chosen with

    def gate(self, words: Words | None, encoder: Encoder | None = None) -> Gate:
        """The gate with these numbers."""
        mix = None if self.mix is None else Mix(self.mix.model, self.mix.memory)
        return Gate(self.layer, self.threshold, self.growth, mix, words, encoder)


class _Rule(FilePart):
    format_version: Literal[1, 2]
    spec: _Spec
    steps: int = Field(ge=1)
    clip: float = Field(gt=0)
    anchor_weight: float = Field(ge=0)
    anchors: list[_Anchor]
    gate: GateNumbers | None = None
    step_sizes: dict[str, list[Annotated[float, Field(ge=0)]]]
    still: list[str] = Field(default_factory=list)
    factors: str | None = None  # digest of the tensors beside the rule

    @model_validator(mode="after")
    def _of_its_version(self) -> _Rule:
        if self.format_version == FIRST_VERSION and (self.still or self.factors is not None):
            raise ValueError("'still' and 'factors' need format_version 2")
        return self


def rule_text(spec: LoraSpec, rule: InnerRule) -> str:
    """The file's content; equal rules give equal text.

    Raises:
        RuleError: a number is not finite, negative, or of the wrong shape.
    """
    sizes = {name: sizes.detach().tolist() for name, sizes in rule.step_sizes.items()}
    newer = bool(rule.still) or rule.factors is not None
    content = {
        "format_version": FORMAT_VERSION if newer else FIRST_VERSION,
        "spec": {
            "rank": spec.rank,
            "alpha": spec.alpha,
            "targets": list(spec.targets),
            "scope": spec.scope,
        },
        "steps": rule.steps,
        "clip": float(rule.clip),
        "anchor_weight": float(rule.anchor_weight),
        "anchors": [{"prompt": a.prompt, "completion": a.completion} for a in rule.anchors],
        "gate": None if rule.gate is None else gate_numbers(rule.gate),
        "step_sizes": sizes,
        "still": sorted(rule.still),
        "factors": rule.factors and digest(rule.factors),
    }
    later = None if newer else {"still", "factors"}
    return _check(content).model_dump_json(indent=1, exclude=later) + "\n"


def read_rule(
    path: Path, words: Words | None = None, factors: Mapping[str, Tensor] | None = None
) -> tuple[LoraSpec, InnerRule]:
    """Read and check a rule. ``words`` and ``factors`` are what lies beside it.

    Raises:
        RuleError: unreadable, broken JSON, unknown or missing keys, wrong types, values that are
            not finite, step sizes that do not fit the number of steps, or another table or other
            factors than those it was written with.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise RuleError(f"cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RuleError(f"is not JSON: {error}") from error
    part = _check(content)
    spec = part.spec
    found = factors and digest(factors)
    if found != part.factors:
        raise RuleError(
            f"wants step factors of digest {part.factors}, found {found}: the rule and the factors "
            "beside it must be of one export"
        )
    try:
        return (
            LoraSpec(spec.rank, tuple(spec.targets), spec.alpha, spec.scope),
            InnerRule(
                part.steps,
                {name: torch.tensor(sizes) for name, sizes in part.step_sizes.items()},
                part.clip,
                part.anchor_weight,
                tuple(Anchor(anchor.prompt, anchor.completion) for anchor in part.anchors),
                _read_gate(part.gate, words),
                factors,
                frozenset(part.still),
            ),
        )
    except SpecError as error:
        raise RuleError(str(error)) from error


def gate_numbers(gate: Gate) -> dict[str, Any]:
    """As ``GateNumbers`` takes them; words are a file of their own, an encoder is not ours."""
    return {
        "layer": gate.layer,
        "threshold": gate.threshold,
        "growth": gate.growth,
        "mix": None if gate.mix is None else asdict(gate.mix),
        "words": None if gate.words is None else gate.words.digest,
    }


def _read_gate(part: GateNumbers | None, words: Words | None) -> Gate | None:
    found, wanted = words and words.digest, part and part.words
    if found != wanted:
        raise RuleError(
            f"wants a gate's table of words of digest {wanted}, found {found}: the rule and the "
            "table beside it must be of one export"
        )
    return None if part is None else part.gate(words)


def _check(content: Any) -> _Rule:
    try:
        return _Rule.model_validate(content)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}" for e in error.errors()[:8]
        ]
        raise RuleError("is not a usable rule: " + "; ".join(lines)) from error
