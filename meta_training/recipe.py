"""The recipe: one YAML file says everything that makes an artifact. Unknown keys stop the start.

Knows the form of a recipe; knows nothing about models or data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from meta_training.tasks.part import FAMILIES, PUBLIC_FAMILIES, TaskPart
from meta_training.tasks.split import SplitPart

LINEAR_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
EXACT = ("maml", "maml++", "meta-sgd", "anil")  # algorithms that can differentiate the inner loop
BASE_ONLY = ("prototypical", "matching", "siamese", "in-context")  # learn no adapter
Algorithm = Literal[
    "maml",
    "fomaml",
    "maml++",
    "meta-sgd",
    "anil",
    "reptile",
    "prototypical",
    "matching",
    "siamese",
    "multitask",
    "in-context",
]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the file, the key and what was expected."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(_Part):
    """The base: a Llama of these sizes trained from scratch, or one that is there."""

    base: str | None = Field(
        None,
        description="a Hugging Face causal LM (folder, or name on the hub) instead; the sizes "
        "below are its own then, and pretrain.steps goes on with it (0 if not said)",
    )
    artifact: str | None = Field(
        None,
        description="an artifact folder to go on from instead: its base, session_init and inner "
        "rule; pretrain.steps and embed.steps are 0 if not said",
    )
    vocab_size: int = Field(4096, description="tokens in the byte-level BPE vocabulary")
    hidden_size: int = Field(192, description="width D")
    layers: int = Field(4, description="decoder layers")
    heads: int = Field(6, description="attention heads")
    intermediate_size: int = Field(512, description="width of the MLP")
    context_tokens: int = Field(512, description="longest sequence served")

    @property
    def given(self) -> str | None:
        """Where the base comes from that is there already; None: it is trained from scratch."""
        return self.artifact or self.base


class DataPart(_Part):
    """What is read and what stays out of every training stage."""

    tasks: list[TaskPart] = Field(
        default_factory=list, description="one's own tasks, instead of the public data"
    )
    public: bool | None = Field(
        None, description="read the public data too; without a word, where there are no tasks"
    )

    held_out: dict[str, list[str] | Literal["all"]] = Field(
        default_factory=dict, description="intent source -> domains kept for the report, or 'all'"
    )
    validation: list[str] = Field(
        default_factory=list, description="intent sources used only to watch training"
    )
    split: SplitPart | None = Field(
        None,
        description="instead of both: the classes of one intent source, split in three, and no "
        "other labelled intents; for means over splits, as papers report them",
    )
    held_out_persona_share: float = Field(0.2, ge=0, lt=1, description="share of persona groups")
    neighbours: int = Field(
        8000, ge=0, description="intents made from dialogue turns and their nearest neighbours"
    )

    @property
    def reads_public(self) -> bool:
        """Whether the public data is read."""
        return not self.tasks if self.public is None else self.public

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> DataPart:
        if self.split is not None and (self.held_out or self.validation):
            raise ValueError(
                "split says what is held out and validated on: leave held_out and validation out"
            )
        if self.split is not None and not self.reads_public:
            raise ValueError("split is of a public source: set public to true, or leave it out")
        return self


class PretrainPart(_Part):
    """Language modelling on dialogue text, with AdamW and a cosine schedule."""

    steps: int = Field(3000, description="optimizer steps")
    rows: int = Field(24, description="sequences a step")
    row_tokens: int = Field(128, description="tokens a sequence")
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05


class EmbedPart(_Part):
    """Contrastive pass over intents and loose turns, with language modelling beside it."""

    steps: int = Field(
        500,
        description="optimizer steps; 0, and no word where all tasks are one's own, leaves it out",
    )
    kinds: int = Field(48, description="kinds of question a step")
    questions_per_kind: int = 3
    views: int = Field(40, description="turns seen twice a step, each time with words left out")
    left_out: float = Field(0.4, ge=0, lt=1, description="share of a view's words left out")
    language_rows: int = Field(8, description="sequences of dialogue text a step")
    learning_rate: float = 1e-3
    warmup_steps: int = 30


class WordsPart(_Part):
    """The gate's table of words: contrastive loss on bags of them, after the outer loop."""

    steps: int = Field(1200, description="optimizer steps; 0 leaves words out of the gate")
    width: int = Field(96, ge=1, description="numbers of a word's vector")
    learning_rate: float = 5e-3


class InnerPart(_Part):
    """Shape of the session adapter and of its inner loop."""

    rank: int = Field(8, description="LoRA rank R")
    targets: list[str] = Field(
        default_factory=lambda: list(LINEAR_TARGETS),
        description="names of modules with an adapter; empty: every linear layer of a model.base",
    )
    scope: Literal["activated", "full"] = "activated"
    steps: int = Field(5, description="inner steps K with a learned size each")
    first_step_size: float = Field(0.2, description="step size every tensor starts from")
    clip: float = Field(10.0, description="bound on a session's gradient norm in one inner step")
    anchors: int = Field(4, description="unrelated turns replayed inside the inner loss")
    anchor_tokens: int = Field(9, description="completion tokens of an anchor, at most")
    gate: bool = Field(True, description="adapters answer only prompts near to what was taught")
    anchor_weight: float = Field(0.3, description="weight of the anchors' KL at the start; learned")
    sizes: Literal["tensor", "element"] | None = Field(
        None,
        description="a learned step size for each tensor, or also a factor for each of its "
        "elements; without a word what the algorithm needs: elements for meta-sgd",
    )
    top_layers: int | None = Field(
        None,
        ge=1,
        description="only the adapters of this many last layers move; without a word all do, and "
        "for anil those of one layer",
    )


class OuterPart(_Part):
    """The outer loop."""

    algorithm: Algorithm = "maml"
    gradient: Literal["unrolled", "adjoint"] = Field(
        "unrolled",
        description="how exact gradients are had: with the graph of all inner steps, or of one at "
        "a time, in less memory",
    )
    first_order_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the outer steps, from the first on, that are of first order",
    )
    multi_step_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="maml++: share of the outer steps over which earlier inner steps lose weight",
    )
    margin: float = Field(1.0, gt=0, le=2, description="siamese: least distance of other kinds")
    sharpness: float = Field(10.0, gt=0, description="matching: factor on cosines")
    base: Literal["full", "lora", "frozen"] = Field(
        "full", description="what the outer loop learns of the base; lora is merged in the end"
    )
    base_rank: int = Field(16, ge=1, description="rank of the base's own LoRA")
    steps: int = Field(3000, description="outer steps")
    tasks: int = Field(4, description="episodes a batch")
    batches: int = Field(
        1, ge=1, description="batches an outer step, over whose gradients it takes the mean"
    )
    base_learning_rate: float = 5e-4
    adapter_learning_rate: float = 2e-3
    step_size_learning_rate: float = 2e-2
    warmup_steps: int = 50
    clip: float = 1.0
    locality_weight: float = Field(1.0, description="weight of the KL on unrelated queries")
    language_weight: float = Field(0.3, description="weight of language modelling on dialogue text")
    language_rows: int = Field(4, description="sequences of dialogue text an outer step")
    prototype_weight: float = Field(0.3, description="weight of the prototypical auxiliary loss")
    selection: Literal["uniform", "difficulty", "agreement"] = Field(
        "uniform",
        description="difficulty: classes that cost more lately are drawn more often; agreement: a "
        "step's batches count by how far their gradients agree with the mean's",
    )
    wrong_share: float = Field(
        0.0, ge=0, lt=1, description="share of the examples that are taught another class's answer"
    )
    families: dict[str, float] = Field(
        default_factory=lambda: dict(PUBLIC_FAMILIES),
        description="how often each task family is drawn; with data.tasks and without a word, all "
        "that these are material for alike",
    )


class Recipe(_Part):
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
        if wrong:
            raise ValueError(wrong)
        return self

    def _wrong_families(self) -> str:
        known = FAMILIES | {part.family_name for part in self.data.tasks}
        families = self.outer.families
        unknown = sorted(families.keys() - known)
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
