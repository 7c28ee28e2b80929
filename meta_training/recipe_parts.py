"""The parts of a recipe, one for each thing that makes an artifact: what may be said, and what
holds where nothing is.

Knows the form of parts; knows nothing about how they go together, models or data.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meta_training.tasks.part import PUBLIC_FAMILIES, TaskPart
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


class Part(BaseModel):
    """Some keys of a recipe, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelPart(Part):
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
    tokenizer: str | None = Field(
        None,
        description="a folder whose tokenizer is taken instead of training one, so that models can "
        "be compared token by token; vocab_size has to hold it",
    )
    vocab_size: int = Field(4096, ge=1, description="tokens in the byte-level BPE vocabulary")
    hidden_size: int = Field(192, ge=1, description="width D")
    layers: int = Field(4, ge=1, description="decoder layers")
    heads: int = Field(6, ge=1, description="attention heads")
    intermediate_size: int = Field(512, ge=1, description="width of the MLP")
    context_tokens: int = Field(512, ge=1, description="longest sequence served")

    @property
    def given(self) -> str | None:
        """Where the base comes from that is there already; None: it is trained from scratch."""
        return self.artifact or self.base


class DataPart(Part):
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


class PretrainPart(Part):
    """Language modelling on dialogue text, with AdamW and a cosine schedule."""

    steps: int = Field(3000, ge=0, description="optimizer steps")
    rows: int = Field(24, ge=1, description="sequences a step")
    row_tokens: int = Field(128, ge=2, description="tokens a sequence")
    learning_rate: float = Field(3e-3, ge=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)


class EmbedPart(Part):
    """Contrastive pass over intents and loose turns, with language modelling beside it."""

    steps: int = Field(
        500,
        ge=0,
        description="optimizer steps; 0, and no word where all tasks are one's own, leaves it out",
    )
    kinds: int = Field(48, ge=1, description="kinds of question a step")
    questions_per_kind: int = Field(3, ge=1)
    views: int = Field(
        40, ge=0, description="turns seen twice a step, each time with words left out"
    )
    left_out: float = Field(0.4, ge=0, lt=1, description="share of a view's words left out")
    language_rows: int = Field(8, ge=1, description="sequences of dialogue text a step")
    learning_rate: float = Field(1e-3, ge=0)
    warmup_steps: int = Field(30, ge=0)


class WordsPart(Part):
    """The gate's table of words: contrastive loss on bags of them, after the outer loop."""

    steps: int = Field(1200, ge=0, description="optimizer steps; 0 leaves words out of the gate")
    width: int = Field(96, ge=1, description="numbers of a word's vector")
    learning_rate: float = Field(5e-3, ge=0)


class InnerPart(Part):
    """Shape of the session adapter and of its inner loop."""

    rank: int = Field(8, ge=1, description="LoRA rank R")
    targets: list[str] = Field(
        default_factory=lambda: list(LINEAR_TARGETS),
        description="names of modules with an adapter; empty: every linear layer of a model.base",
    )
    scope: Literal["activated", "full"] = "activated"
    steps: int = Field(
        5,
        ge=1,
        description="inner steps K with a learned size each; half of the outer steps train through "
        "K, 40% through K - 2 (one at least), 10% through K + 3, which take the last size again",
    )
    first_step_size: float = Field(0.2, gt=0, description="step size every tensor starts from")
    clip: float = Field(
        10.0, gt=0, description="bound on a session's gradient norm in one inner step"
    )
    anchors: int = Field(4, ge=0, description="unrelated turns replayed inside the inner loss")
    anchor_tokens: int = Field(9, ge=1, description="completion tokens of an anchor, at most")
    gate: bool = Field(True, description="adapters answer only prompts near to what was taught")
    anchor_weight: float = Field(
        0.3, gt=0, description="weight of the anchors' KL at the start; learned"
    )
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


class OuterPart(Part):
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
    base_modules: list[str] = Field(
        default_factory=list,
        description="where the base is full: names of the modules whose weights learn, as "
        "down_proj; none: all of its weights",
    )
    steps: int = Field(3000, ge=0, description="outer steps")
    tasks: int = Field(4, ge=1, description="episodes a batch")
    batches: int = Field(
        1, ge=1, description="batches an outer step, over whose gradients it takes the mean"
    )
    base_learning_rate: float = Field(5e-4, ge=0)
    adapter_learning_rate: float = Field(2e-3, ge=0)
    step_size_learning_rate: float = Field(2e-2, ge=0)
    warmup_steps: int = Field(50, ge=0)
    clip: float = Field(1.0, gt=0)
    locality_weight: float = Field(1.0, ge=0, description="weight of the KL on unrelated queries")
    language_weight: float = Field(
        0.3, ge=0, description="weight of language modelling on dialogue text"
    )
    language_rows: int = Field(4, ge=1, description="sequences of dialogue text an outer step")
    prototype_weight: float = Field(
        0.3, ge=0, description="weight of the prototypical auxiliary loss"
    )
    selection: Literal["uniform", "difficulty", "agreement"] = Field(
        "uniform",
        description="difficulty: classes that cost more lately are drawn more often; agreement: a "
        "step's batches count by how far their gradients agree with the mean's",
    )
    wrong_share: float = Field(
        0.0, ge=0, lt=1, description="share of the examples that are taught another class's answer"
    )
    families: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: dict(PUBLIC_FAMILIES),
        description="how often each task family is drawn; with data.tasks and without a word, all "
        "that these are material for alike",
    )
