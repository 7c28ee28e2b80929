"""The plan of a search: one YAML file says which settings are tried, and how. Unknown keys stop it.

Knows the form of plans and recipes; knows nothing about how values are drawn or trials are run.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from meta_training.evaluation.cells import COMPARED, Cell
from meta_training.recipe import BASE_ONLY, Recipe, RecipeError, load_recipe, problems, read_yaml
from meta_training.recipe_parts import InnerPart, OuterPart
from meta_training.record import keep

PARTS: Final[Mapping[str, type[BaseModel]]] = {"inner": InnerPart, "outer": OuterPart}
RECORD: Final = "search.json"  # beside what a search made
NO_DIFFERENCE: Final = {
    "inner.gate": "the gate is chosen after the outer loop, and trials are judged without it",
}

Settings = dict[str, Any]  # dotted field of a recipe -> its value


class SearchError(ValueError):
    """A search cannot be done; the message names the file and field, and what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Part):
    """Numbers between two ends, which belong to it."""

    low: float
    high: float
    log: bool = Field(False, description="evenly in the logarithm")
    step: float | None = Field(None, gt=0, description="only low, low + step, ...")

    @model_validator(mode="after")
    def _goes_together(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, it is {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together: leave one out")
        if self.step is not None and not self.reaches(self.high):
            raise ValueError(
                f"no number of steps of {self.step:g} leads from {self.low:g} to {self.high:g}"
            )
        return self

    def reaches(self, value: float) -> bool:
        """Whether it has the value."""
        if not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)


def _form(value: Any) -> str:
    return "range" if isinstance(value, dict | Range) else "choices"


Dimension = Annotated[
    Annotated[list[Any], Tag("choices")] | Annotated[Range, Tag("range")], Discriminator(_form)
]


class Plan(_Part):
    """Everything that says how a search goes."""

    recipe: Path = Field(description="whose settings are changed; relative to the plan's own file")
    space: dict[str, Dimension] = Field(
        min_length=1,
        description="field of the recipe, as outer.clip -> its values: a list, or low and high",
    )
    sampler: Literal["random", "tpe", "gp", "qmc"] = Field(
        "tpe", description="where values come from: Optuna's sampler of that name"
    )
    trials: int = Field(20, ge=1, description="beside the recipe's own settings")
    seed: int = Field(0, ge=0, lt=2**31, description="of values and validation tasks drawn")
    tasks: int = Field(20, ge=2, description="validation tasks a cell in every judgement")
    cells: list[str] = Field(
        [cell.shape for cell in COMPARED], min_length=1, description="as evaluate has them"
    )
    stop: Literal["none", "median", "halving"] = Field(
        "none", description="rule that ends a trial early: Optuna's pruner of that name"
    )
    judge_every: int | None = Field(
        None, ge=1, description="outer steps between judgements; only at the end without a word"
    )
    startup: int = Field(
        5, ge=1, description="trials before tpe and gp learn from them and median stops any"
    )

    @field_validator("cells")
    @classmethod
    def _known(cls, cells: list[str]) -> list[str]:
        for cell in cells:
            Cell.of(cell)
        if len(set(cells)) < len(cells):
            raise ValueError("a cell is named twice")
        return cells

    @model_validator(mode="after")
    def _goes_together(self) -> Plan:
        if self.stop != "none" and self.judge_every is None:
            raise ValueError(f"stop: {self.stop} needs judge_every: a number of outer steps")
        return self

    @property
    def judged(self) -> tuple[Cell, ...]:
        """The cells of every judgement."""
        return tuple(map(Cell.of, self.cells))


@dataclass(frozen=True)
class Search:
    """A plan, checked against the recipe that it names.

    ``space``: with values as the recipe has them.
    """

    plan: Plan
    recipe: Recipe
    space: Mapping[str, Sequence[Any] | Range]

    def with_trials(self, trials: int) -> Search:
        """The same with another number of trials."""
        return replace(self, plan=self.plan.model_copy(update={"trials": trials}))


def load_search(path: Path) -> Search:
    """Read and check a plan and its recipe.

    Raises:
        SearchError: a missing file, broken YAML, an unknown key or field, a value that the recipe
            does not take; the message names it.
        RecipeError: the recipe cannot be used.
    """
    content = read_yaml(path, "search", SearchError)
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        raise SearchError(f"{path} is not a usable search:\n" + problems(error)) from error
    recipe = load_recipe(path.parent / plan.recipe)
    try:
        return _checked(plan, recipe)
    except SearchError as error:
        raise SearchError(f"{path}: {error}") from error


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of some fields.

    Raises:
        RecipeError: the values are none of these fields, or do not go together.
    """
    content = recipe.model_dump(mode="json")
    for name, value in settings.items():
        *above, last = name.split(".")
        part = content
        for key in above:
            part = part[key]
        part[last] = value
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(problems(error).strip()) from error


def value_of(recipe: Recipe, name: str) -> Any:
    """The value of a field, by its dotted name."""
    value: Any = recipe.model_dump(mode="json")
    for key in name.split("."):
        value = value[key]
    return value


def keep_plan(search: Search, folder: Path) -> None:
    """Note in ``folder`` which plan makes what is in it; how many trials is free to change.

    Raises:
        SearchError: what is there was made by another plan; the message names the first field.
    """
    content = search.plan.model_dump(mode="json", exclude={"recipe", "trials", "space"})
    space = {
        name: found.model_dump() if isinstance(found, Range) else list(found)
        for name, found in search.space.items()
    }
    now = content | {f"space.{name}": value for name, value in space.items()}
    keep(folder / RECORD, now, "search", SearchError, json.dumps)


def _checked(plan: Plan, recipe: Recipe) -> Search:
    known = set(_fields(recipe))
    space: dict[str, Sequence[Any] | Range] = {}
    for name, found in plan.space.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SearchError(
                f"space: {name} is no inner.* or outer.* field of a recipe, which are what can be "
                f"searched: all trials share the stages before{hint}"
            )
        if name in NO_DIFFERENCE:
            raise SearchError(f"space: {name} changes nothing: {NO_DIFFERENCE[name]}")
        if isinstance(found, Range):
            space[name] = _range(recipe, name, found)
        else:
            space[name] = _choices(recipe, name, found)
    algorithms = [recipe.outer.algorithm, *_listed(space.get("outer.algorithm"))]
    for algorithm in algorithms:
        if algorithm in BASE_ONLY:
            raise SearchError(f"{algorithm} learns no adapter, which is what trials are judged by")
    steps = [recipe.outer.steps, *_listed(space.get("outer.steps"))]
    if plan.stop != "none" and plan.judge_every is not None and plan.judge_every >= max(steps):
        raise SearchError(
            f"judge_every {plan.judge_every} leaves nothing to stop: trials have "
            f"{max(steps)} outer steps"
        )
    return Search(plan, recipe, space)


def _range(recipe: Recipe, name: str, found: Range) -> Range:
    if kind_of(name) is None:
        raise SearchError(f"space: {name} is no number: list its choices")
    if kind_of(name) is int:
        for end in ("low", "high", "step"):
            value = getattr(found, end)
            if value is not None and not float(value).is_integer():
                raise SearchError(f"space: {name}.{end}: {value:g} is no whole number")
    for value in (found.low, found.high):
        _valid(recipe, name, int(value) if kind_of(name) is int else value)
    return found


def _choices(recipe: Recipe, name: str, found: Sequence[Any]) -> list[Any]:
    values = [_valid(recipe, name, value) for value in found]
    distinct = [value for i, value in enumerate(values) if value not in values[:i]]
    if len(distinct) < 2:
        raise SearchError(
            f"space: {name} needs two choices or more: put a single one in the recipe"
        )
    return distinct


def _valid(recipe: Recipe, name: str, value: Any) -> Any:
    """The value as the recipe has it."""
    try:
        return value_of(changed(recipe, {name: value}), name)
    except RecipeError as error:
        raise SearchError(f"space: {name}: {value!r} is no value for it: {error}") from error


def _fields(recipe: Recipe) -> Iterator[str]:
    for part, form in PARTS.items():
        yield from (f"{part}.{name}" for name in form.model_fields)
    yield from (f"outer.families.{family}" for family in recipe.outer.families)


def kind_of(name: str) -> type | None:
    """The kind of number a field holds; None where it is another thing."""
    part, field, *below = name.split(".")
    annotation = float if below else PARTS[part].model_fields[field].annotation
    kinds = {annotation, *get_args(annotation)}
    return int if int in kinds else float if float in kinds else None


def _listed(found: Sequence[Any] | Range | None) -> list[Any]:
    if found is None:
        return []
    return [int(found.high)] if isinstance(found, Range) else list(found)
