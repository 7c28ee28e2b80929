"""docker/Dockerfile as a value: tests read it, and `tests/clean_root.py` runs it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

PATH = Path(__file__).parents[1] / "docker" / "Dockerfile"


@dataclass
class Stage:
    """One FROM: what it starts from and its own instructions in order."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def read_dockerfile() -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments before the first FROM with their defaults, and the stages by name."""
    text = re.sub(r"^\s*#.*\n", "", PATH.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, name = rest.split(" AS ")
            stage = stages[name] = Stage(base)
        elif stage is None:
            assert word == "ARG", line
            key, _, value = rest.partition("=")
            arguments[key] = value
        else:
            stage.instructions.append((word, rest))
    return arguments, stages
