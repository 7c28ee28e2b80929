"""Shape of a session adapter (`LoraSpec`) and the rule by which feedback changes it (`InnerRule`).

Frozen values, checked when made. Knows nothing about models, files or sessions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from torch import Tensor

if TYPE_CHECKING:
    from adapters.encoder import Encoder
    from adapters.words import Words

Scope = Literal["activated", "full"]


class AdapterError(Exception):
    """Root of everything that can go wrong in this package."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an error of other people's code says, as one line of at most ``limit`` characters."""
    return " ".join(str(error).split())[:limit]


class SpecError(AdapterError, ValueError):
    """An adapter or rule has a form that cannot work; the message names the field."""


@dataclass(frozen=True)
class LoraSpec:
    """Form of a LoRA adapter (Hu et al. 2021, arXiv 2106.09685).

    Scope ``activated`` acts from the assistant header on (Activated LoRA, Greenewald et al. 2025,
    arXiv 2504.12397); ``full`` acts on every token.
    """

    rank: int
    targets: tuple[str, ...]  # last parts of the module names the adapter acts on
    alpha: float | None = None  # numerator of the scale alpha / R; None means R
    scope: Scope = "activated"

    def __post_init__(self) -> None:
        """Refuse forms that cannot work.

        Raises:
            SpecError: rank below 1, no targets, or an unknown scope.
        """
        if self.rank < 1:
            raise SpecError(f"rank must be at least 1, got {self.rank}")
        if not self.targets:
            raise SpecError("targets must name at least one module")
        if self.scope not in ("activated", "full"):
            raise SpecError(f"scope must be 'activated' or 'full', got {self.scope!r}")

    @property
    def scale(self) -> float:
        """Factor on the low-rank product, alpha / R."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True)
class Anchor:
    """An unrelated turn replayed inside the inner loss, to keep its answer as it was."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Mix:
    """Weights of the two that pick one of given choices: the model, and the taught prompts.

    ``model`` multiplies log-probabilities, ``memory`` cosines.
    """

    model: float
    memory: float


LIKEST: Final = 0.99  # that a gate may ask for: less than what was taught itself has


@dataclass(frozen=True)
class Gate:
    """When an adapter answers: the prompt is like enough to what was taught.

    ``layer``: index into the model's hidden states (0 is the embedding) that gives the summary.
    ``threshold``: least likeness (``gate.gate_similarity``) where one prompt an answer was taught.
    ``growth``: what is added to it times ln n with n prompts an answer, in the mean: the more ways
    of asking are known, the likelier one of them is to be like any prompt at all.
    ``mix``: how one of given choices is picked; None: by the model alone.
    ``words`` and ``encoder``: what prompts are compared by beside their summaries.
    ``margin``: how much liker still a prompt has to be for the adapter to answer, as whoever serves
    it wants; nothing of the artifact. Choices, dislikes and items in a prompt are as without it.
    """

    layer: int
    threshold: float
    growth: float = 0.0
    mix: Mix | None = None
    words: Words | None = None
    encoder: Encoder | None = None
    margin: float = 0.0

    @property
    def view(self) -> str:
        """Names how prompts are seen: vectors of two views cannot be compared."""
        own = f"layer {self.layer}, words {None if self.words is None else self.words.digest}"
        return own if self.encoder is None else f"{own}, encoder {self.encoder.digest}"

    def width(self, summary: int) -> int:
        """Numbers of a prompt's vector, with ``summary`` of them in what the base saw."""
        others = (self.words, self.encoder)
        return summary + sum(other.width for other in others if other is not None)

    def threshold_for(self, prompts: float) -> float:
        """Least likeness with so many prompts an answer; never so high that none is enough."""
        return min(self.threshold + self.growth * math.log(prompts), LIKEST)


@dataclass(frozen=True)
class InnerRule:
    """How an adapter takes its inner steps; meta-learned, frozen when served.

    ``step_sizes`` holds per tensor the sizes of steps 0..K-1, each (K,); later steps reuse the
    last one (per-tensor per-step sizes: MAML++, Antoniou et al. 2019, arXiv 1810.09502).
    ``factors``, where the rule has them, multiply a tensor's sizes element by element, each of the
    tensor's own shape (Meta-SGD, Li et al. 2017, arXiv 1707.09835). Tensors named by ``still`` stay
    as session_init has them and have no sizes (as in ANIL, Raghu et al. 2020, arXiv 1909.09157).
    """

    steps: int
    step_sizes: Mapping[str, Tensor]
    clip: float  # bound on a session's gradient norm in one step
    anchor_weight: Tensor | float = 0.0  # weight of the anchors' mean KL in a session's loss
    anchors: tuple[Anchor, ...] = field(default=())
    gate: Gate | None = None  # None: an adapter answers every prompt
    factors: Mapping[str, Tensor] | None = None
    still: frozenset[str] = frozenset()

    @property
    def encoder(self) -> Encoder | None:
        """The sentence encoder at its gate, if any."""
        return None if self.gate is None else self.gate.encoder

    def __post_init__(self) -> None:
        """Refuse rules that cannot work.

        Raises:
            SpecError: no steps, a tensor without a size for every step, or factors and still
                tensors that do not go with the sizes.
        """
        if self.steps < 1:
            raise SpecError(f"steps must be at least 1, got {self.steps}")
        for name, sizes in self.step_sizes.items():
            if sizes.shape != (self.steps,):
                raise SpecError(
                    f"step sizes of {name} must have shape ({self.steps},), "
                    f"got {tuple(sizes.shape)}"
                )
        both = sorted(self.still & self.step_sizes.keys())
        if both:
            raise SpecError(f"{both[0]} stays still, so it can have no step sizes")
        if self.factors is not None and self.factors.keys() != self.step_sizes.keys():
            name = sorted(self.factors.keys() ^ self.step_sizes.keys())[0]
            raise SpecError(f"factors and step sizes must be of the same tensors: see {name}")

    def sizes_at(self, step: int) -> dict[str, Tensor]:
        """Step size of every tensor that moves at inner step ``step``, counted from 0.

        A scalar each, or of the tensor's shape where the rule has factors.
        """
        index = min(step, self.steps - 1)
        if self.factors is None:
            return {name: sizes[index] for name, sizes in self.step_sizes.items()}
        return {name: sizes[index] * self.factors[name] for name, sizes in self.step_sizes.items()}
