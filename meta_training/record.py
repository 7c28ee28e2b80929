"""What a folder was made with: parts of a recipe, noted beside what came of them.

Knows recipes and one JSON file; knows nothing about stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    path = folder / RECORD
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}; take another --out") from error
    before = _older(now) | before
    for key in sorted(now.keys() | before.keys()):
        if now.get(key) != before.get(key):
            raise RecipeError(
                f"{folder} was made with {key} {before.get(key)!r}, the recipe has "
                f"{now.get(key)!r}: take another --out, or the recipe as it was"
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
