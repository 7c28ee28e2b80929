"""Learners that classify: an encoder through its adapters, or any module through its own weights.

Knows torch modules and batches of inputs; nothing about texts, algorithms or optimizers. Modules
run in eval mode: an inner step that is taken again must be the same step (no dropout).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from adapters.config import InnerRule, LoraSpec, SpecError
from adapters.layer import LoraHooks, rows_of
from adapters.state import Tensors, initial_tensors, repeat
from meta_training.algorithms.episodes import Cut, Embedded, Judged
from meta_training.device import without_cudnn
from meta_training.recipe_parts import InnerPart
from meta_training.starting import Starting

Inputs = Mapping[str, Tensor]  # what the module takes, by name; first axis B
Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Labelled:
    """B inputs, their classes (B,), and the episode each belongs to, (B,) of 0..S-1."""

    inputs: Inputs
    classes: Tensor
    sessions: Tensor

    def of(self, session: int) -> Labelled:
        """The rows of one episode."""
        rows = self.sessions == session
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        return Labelled(inputs, self.classes[rows], self.sessions[rows])

    def to(self, device: torch.device) -> Labelled:
        """The same rows on ``device``."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Labelled(inputs, self.classes.to(device), self.sessions.to(device))


class Classifier(Starting):
    """A module whose start and base are learned by episodes; see its two kinds below."""

    def __init__(self, model: nn.Module, features: Call | None) -> None:
        super().__init__()
        self.model = model.eval()
        self._features = features

    def logits(self, tensors: Mapping[str, Tensor] | None, rows: Labelled) -> Tensor:
        """(B, C) with each row's own tensors, stacked over S; None is the base alone."""
        raise NotImplementedError

    def features(self, rows: Labelled) -> Tensor:
        """(B, D) by which metrics compare inputs.

        Raises:
            SpecError: nobody said what they are.
        """
        if self._features is None:
            raise SpecError("metric heads need `features`: what makes (B, D) of the model's inputs")
        with without_cudnn():
            return self._features(self.model, **rows.inputs)

    @property
    def stays_in_part(self) -> bool:
        """Whether inner steps leave something as it is that they could move."""
        return len(self.moving) < len(self.names)

    def base_parameters(self) -> list[nn.Parameter]:
        """What the outer loop learns beside the start and the step sizes."""
        return list(self.model.parameters())


class LoraClassifier(Classifier):
    """An encoder with LoRA adapters on its linear layers, as a server's sessions have them."""

    def __init__(
        self, model: nn.Module, part: InnerPart, seed: int = 0, features: Call | None = None
    ) -> None:
        """``model`` returns logits or, as transformers' models do, an output with ``logits``.

        Raises:
            SpecError: a target of ``part`` matches no usable module.
        """
        super().__init__(model, features)
        self.spec = LoraSpec(part.rank, tuple(part.targets), scope="full")
        self.hooks = LoraHooks(model, self.spec)
        self.begin(initial_tensors(model, self.spec, torch.Generator().manual_seed(seed)), part)

    def logits(self, tensors: Mapping[str, Tensor] | None, rows: Labelled) -> Tensor:
        """One forward pass for all episodes."""
        with self.hooks.use(None if tensors is None else rows_of(tensors, rows.sessions)):
            output = self.model(**rows.inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        assert isinstance(logits, Tensor)
        return logits


class WeightClassifier(Classifier):
    """Any module whose own parameters move in the inner loop, as in the original MAML."""

    def __init__(
        self,
        model: nn.Module,
        part: InnerPart,
        moving: Sequence[str] | None = None,
        features: Call | None = None,
    ) -> None:
        """``moving``: names, or beginnings of names, of parameters that move; None is all of them.

        ``part``'s rank, targets and scope say nothing here.

        Raises:
            SpecError: ``moving`` names no parameter.
        """
        super().__init__(model, features)
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        for wanted in moving or ():
            if not any(name.startswith(wanted) for name in own):
                raise SpecError(f"no parameter begins with {wanted!r}; there are {', '.join(own)}")
        if moving is not None:
            own = {name: p for name, p in own.items() if name.startswith(tuple(moving))}
        self.begin(own, part)

    def logits(self, tensors: Mapping[str, Tensor] | None, rows: Labelled) -> Tensor:
        """An episode at a time: not every module's forward pass can be vectorised over weights."""
        if tensors is None:
            return self._call(self.tensors(), rows)
        places, found = [], []
        for session in rows.sessions.unique().tolist():
            own = {name: tensor[session] for name, tensor in tensors.items()}
            found.append(self._call(own, rows.of(session)))
            places.append((rows.sessions == session).nonzero().flatten())
        return torch.cat(found)[torch.cat(places).argsort()]

    def _call(self, own: Tensors, rows: Labelled) -> Tensor:
        with without_cudnn():
            logits: Tensor = functional_call(self.model, own, (), dict(rows.inputs))
        return logits

    @property
    def stays_in_part(self) -> bool:
        """Whether there are parameters that do not move."""
        return len(self.moving) < sum(1 for _ in self.model.parameters())

    def base_parameters(self) -> list[nn.Parameter]:
        """The parameters that do not move."""
        return [p for name, p in self.model.named_parameters() if name not in self.names]


@dataclass(frozen=True)
class ClassifierEpisodes:
    """S episodes of classification, laid out for a learner."""

    learner: Classifier
    start: Tensors
    rule: InnerRule
    support: Labelled
    query: Labelled

    def support_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy of each episode's support, (S,)."""
        return self._losses(tensors, self.support)

    def query_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The same of its queries."""
        return self._losses(tensors, self.query)

    def judge(self, tensors: Mapping[str, Tensor] | None, support_too: bool = False) -> Judged:
        """Mean cross-entropy of all queries; ``exact`` is the share that is classified right."""
        logits = self.learner.logits(tensors, self.query)
        loss = cross_entropy(logits, self.query.classes)
        if support_too:
            seen = self.learner.logits(tensors, self.support)
            loss = (loss + cross_entropy(seen, self.support.classes)) / 2
        right = (logits.argmax(-1) == self.query.classes).float().mean()
        return Judged(loss, {"query": loss.item(), "exact": float(right)})

    def embedded(self) -> list[Embedded]:
        """Each episode's features, by the learner's ``features``."""
        found = []
        for session in range(self._count):
            support, query = self.support.of(session), self.query.of(session)
            classes, labels = support.classes.unique(return_inverse=True)
            answers = torch.searchsorted(classes, query.classes)
            features = self.learner.features
            found.append(Embedded(features(support), labels, features(query), answers))
        return found

    def cut(self, cut: Cut) -> Self:
        """The same with leaves for the rule: nothing else is computed before the inner loop."""
        return replace(self, rule=cut.rule(self.rule))

    @property
    def _count(self) -> int:
        return next(iter(self.start.values())).shape[0]

    def _losses(self, tensors: Mapping[str, Tensor], rows: Labelled) -> Tensor:
        costs = cross_entropy(self.learner.logits(tensors, rows), rows.classes, reduction="none")
        counts = torch.bincount(rows.sessions, minlength=self._count).clamp(min=1)
        return costs.new_zeros(self._count).index_add(0, rows.sessions, costs) / counts


def lay_out_classes(learner: Classifier, support: Labelled, query: Labelled) -> ClassifierEpisodes:
    """A batch of episodes from any device, on the learner's.

    Every class of a query must be in its support for metric heads.
    """
    support, query = support.to(learner.device), query.to(learner.device)
    count = int(support.sessions.max()) + 1
    start = repeat(learner.tensors(), count)
    return ClassifierEpisodes(learner, start, learner.inner_rule(), support, query)
