"""What a folder was made with: parts of a recipe or a plan, noted beside what came of them.

Knows recipes and JSON files; knows nothing about stages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meta_training.recipe import Recipe, RecipeError

CHOSEN_KEYS = ("outer.families.", "data.held_out.")  # names below these are the recipe's own
RECORD = "recipe.json"


def keep_record(recipe: Recipe, folder: Path, parts: set[str]) -> None:
    """Note in ``folder`` which ``parts`` of the recipe make what is in it.

    Raises:
        RecipeError: what is there was made with other values; the message names the first.
    """
    now = dict(_leaves(recipe.model_dump(mode="json", include=parts)))
    keep(folder / RECORD, now, "recipe", RecipeError, repr, _older(now))


def keep(
    path: Path,
    now: Mapping[str, Any],
    whose: str,
    wrong: type[Exception],
    shown: Callable[[Any], str],
    assumed: Mapping[str, Any] | None = None,
) -> None:
    """Write ``now`` to ``path``, or make sure that it is what was written there.

    Args:
        whose: what messages call it, such as ``recipe``.
        wrong: raised where what is there is something else or cannot be read.
        shown: a value as messages show it.
        assumed: what a file means that does not say it.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return
    try:
        before = {**(assumed or {}), **json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:
        raise wrong(f"{path} cannot be read: {error}; take another --out") from error
    for key in sorted(now.keys() | before.keys()):
        if now.get(key) != before.get(key):
            raise wrong(
                f"{path.parent} was made with {key} {shown(before.get(key))}, the {whose} has "
                f"{shown(now.get(key))}: take another --out, or the {whose} as it was"
            )


def _older(now: dict[str, Any]) -> dict[str, Any]:
    """What a record says by not saying it: fields younger than it meant what they do by default."""
    defaults = dict(_leaves(Recipe(name="").model_dump(mode="json")))
    return {
        key: value
        for key, value in defaults.items()
        if key in now and not key.startswith(CHOSEN_KEYS)
    }


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
