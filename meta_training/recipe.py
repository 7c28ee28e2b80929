"""The recipe: one YAML file says everything that makes an artifact. Unknown keys stop the start.

Knows how the parts of a recipe go together; knows nothing about models or data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from meta_training.recipe_parts import (
    DataPart,
    EmbedPart,
    InnerPart,
    ModelPart,
    OuterPart,
    Part,
    PretrainPart,
    WordsPart,
)
from meta_training.tasks.part import FAMILIES, PUBLIC_FAMILIES, TaskPart

EXACT = ("maml", "maml++", "meta-sgd", "anil")  # algorithms that can differentiate the inner loop
METRICS = ("prototypical", "matching", "siamese")  # learn from examples of the same question
BASE_ONLY = (*METRICS, "in-context")  # learn no adapter


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the file, the key and what was expected."""


class Recipe(Part):
    """Everything that makes an artifact."""

    name: str
    seed: int = 0
    model: ModelPart = ModelPart()
    data: DataPart = DataPart()
    pretrain: PretrainPart = PretrainPart()
    embed: EmbedPart = EmbedPart()
    words: WordsPart = WordsPart()
    inner: InnerPart = InnerPart()
    outer: OuterPart = OuterPart()

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, content: Any) -> Any:
        """What a part means that says nothing, where another part decides."""
        try:
            model, data = content.get("model") or {}, content.get("data") or {}
            with_base, tasks = model.get("base") is not None, data.get("tasks") or []
            filled: dict[str, dict[str, Any]] = {}
            if with_base:
                filled |= {"pretrain": {"steps": 0}, "inner": {"targets": []}}
            if model.get("artifact") is not None:
                filled |= {"pretrain": {"steps": 0}, "embed": {"steps": 0}}
            if tasks:
                parts = [TaskPart.model_validate(part) for part in tasks]
                own = [part.family_name for part in parts if part.held_out != 1.0]
                public = PUBLIC_FAMILIES if data.get("public") else {}
                filled["outer"] = {"families": public | dict.fromkeys(own, 1.0)}
                filled |= {} if public else {"embed": {"steps": 0}}
            told = {name: values | (content.get(name) or {}) for name, values in filled.items()}
        except (AttributeError, TypeError, ValueError):
            return content  # refused by name, each at its place
        return content | told

    @model_validator(mode="after")
    def _goes_together(self) -> Recipe:
        algorithm, inner, outer = self.outer.algorithm, self.inner, self.outer
        wrong = self._wrong_families() or self._wrong_artifact()
        if self.model.tokenizer is not None and self.model.given is not None:
            wrong = "model.tokenizer: a base that is there brings its own: leave one of them out"
        if self.model.base is None and not inner.targets:
            wrong = "inner.targets: name at least one kind of module"
        if algorithm == "meta-sgd" and inner.sizes == "tensor":
            wrong = "inner.sizes: meta-sgd learns a size for each element: leave it out, or element"
        if outer.gradient == "adjoint" and algorithm not in EXACT:
            wrong = (
                f"outer.gradient: {algorithm} has no exact gradient through inner steps; adjoint "
                f"is for {', '.join(EXACT)}"
            )
        if outer.first_order_share and algorithm not in EXACT:
            wrong = f"outer.first_order_share: it is for {', '.join(EXACT)}, not for {algorithm}"
        if outer.selection == "agreement" and outer.batches < 2:
            wrong = "outer.selection: agreement weighs a step's batches; set outer.batches to 2 up"
        if outer.base == "frozen" and algorithm in BASE_ONLY:
            wrong = f"outer.base: {algorithm} learns nothing but the base, which is frozen"
        if outer.base_modules and outer.base != "full":
            wrong = f"outer.base_modules: the base is {outer.base}; they are of one that is full"
        if wrong:
            raise ValueError(wrong)
        return self

    def _wrong_families(self) -> str:
        known = FAMILIES | {part.family_name for part in self.data.tasks}
        families = self.outer.families
        unknown = sorted(families.keys() - known)
        pairs = {part.family_name for part in self.data.tasks if part.is_pairs}
        apart = sorted(name for name in pairs if families.get(name))
        if apart and self.outer.algorithm in METRICS:
            return (
                f"outer.families: {self.outer.algorithm} compares a question with examples of the "
                f"same question, which {apart[0]} does not have: set {apart[0]} to 0 there"
            )
        if not unknown and any(families.values()):
            return ""
        wrong = f"no family is called {unknown[0]!r}" if unknown else "no family has a weight"
        return f"outer.families: {wrong}; there are {', '.join(sorted(known))}"

    def _wrong_artifact(self) -> str:
        if self.model.artifact is None:
            return ""
        if self.model.base is not None:
            return "model.base: an artifact brings its own base: leave one of them out"
        told = sorted(self.inner.model_fields_set - {"gate"})
        if told and self.inner != InnerPart(gate=self.inner.gate):
            return f"inner.{told[0]}: an artifact brings its own inner rule: leave it out"
        return ""

    @property
    def session(self) -> InnerPart:
        """``inner`` in the form that the algorithm needs."""
        inner, algorithm = self.inner, self.outer.algorithm
        changes: dict[str, Any] = {
            "sizes": inner.sizes or ("element" if algorithm == "meta-sgd" else "tensor"),
            "top_layers": inner.top_layers or (1 if algorithm == "anil" else None),
        }
        return inner.model_copy(update=changes)

    def with_algorithm(self, algorithm: str) -> Recipe:
        """The same recipe with another algorithm.

        Raises:
            RecipeError: the recipe has options that do not go with it.
        """
        content = self.model_dump(mode="json")
        content["outer"]["algorithm"] = algorithm
        return _checked(content, f"{self.name} with algorithm {algorithm}")

    def with_split(self, number: int) -> Recipe:
        """The same recipe with another split of its source's classes, under a name of its own.

        Raises:
            RecipeError: the recipe splits no source.
        """
        split = self.data.split
        if split is None:
            raise RecipeError(f"{self.name} has no data.split, of which --split could be another")
        data = self.data.model_copy(update={"split": split.model_copy(update={"number": number})})
        return self.model_copy(update={"name": f"{self.name}-split-{number}", "data": data})


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: missing file, broken YAML, unknown key or wrong type; the message names it.
    """
    return _checked(read_yaml(path, "recipe"), str(path))


def told_recipe(report: Mapping[str, Any] | None, name: str) -> Recipe | None:
    """The recipe that the report of the artifact ``name`` says it was made by; None: it does not.

    Raises:
        RecipeError: what it says is no recipe.
    """
    told = (report or {}).get("recipe")
    return None if told is None else _checked(told, f"{name}: report.json: recipe")


def read_yaml(path: Path, what: str, wrong: type[Exception] = RecipeError) -> Any:
    """The content of a YAML file, which messages call ``what``.

    Raises:
        RecipeError: missing file or broken YAML, or ``wrong`` instead; the message names it.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(f"cannot read the {what} {path}: {error}") from error
    except yaml.YAMLError as error:
        raise wrong(f"{path} is not YAML: {error}") from error


def _checked(content: Any, name: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{name} is not a usable recipe:\n{problems(error)}") from error


def problems(error: ValidationError) -> str:
    """A line for each thing that is wrong, by its place."""
    lines = [f"  {'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}" for e in error.errors()]
    return "\n".join(lines)
