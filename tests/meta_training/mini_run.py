"""Runs the two commands as the command line does, on a recipe of seconds."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from meta_training import evaluate_command, train_command

RECIPE: dict[str, Any] = {
    "name": "mini",
    "seed": 3,
    "model": {
        "vocab_size": 700,
        "hidden_size": 16,
        "layers": 2,
        "heads": 2,
        "intermediate_size": 32,
        "context_tokens": 256,
    },
    "data": {
        "held_out": {"clinc150": ["cards"], "bitext-support": "all"},
        "validation": ["hint3"],
        "held_out_persona_share": 0.4,
    },
    "pretrain": {"steps": 6, "rows": 2, "row_tokens": 48, "warmup_steps": 2},
    "embed": {
        "steps": 4,
        "kinds": 6,
        "questions_per_kind": 2,
        "language_rows": 1,
        "warmup_steps": 1,
    },
    "words": {"steps": 3},
    "inner": {"rank": 2, "steps": 2, "anchors": 2, "anchor_tokens": 24, "gate": False},
    "outer": {"steps": 4, "tasks": 2, "language_rows": 1, "warmup_steps": 1},
}
STEPS = {stage: RECIPE[stage]["steps"] for stage in ("pretrain", "embed", "outer")}


def call(command: ModuleType, *arguments: object) -> int:
    """Parse ``arguments`` and run a command, as ``innerloop`` does, but on the CPU if not told."""
    parser = argparse.ArgumentParser(prog="innerloop")
    command.add_arguments(parser)
    parser.set_defaults(device="cpu")  # where runs are the same bit for bit, whatever there is
    code: int = command.run(parser.parse_args([str(argument) for argument in arguments]))
    return code


def meta_train(data: Path, folder: Path, /, *more: object, **parts: dict[str, Any]) -> int:
    """Run ``innerloop meta-train`` in ``folder``; ``parts`` change keys of the recipe."""
    content = RECIPE | {name: RECIPE[name] | part for name, part in parts.items()}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return call(train_command, path, "--data", data, "--out", folder, *more)


def evaluate(artifact: Path, data: Path, *more: object) -> int:
    """Run ``innerloop evaluate``."""
    return call(evaluate_command, artifact, "--data", data, *more)
