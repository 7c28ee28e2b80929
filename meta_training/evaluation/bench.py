"""The methods of a report, by the names they are asked for, and the tasks and models they share.

Knows methods, artifacts and the command's arguments; knows nothing about results or reports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from adapters.artifact import Artifact, load_artifact
from adapters.base_model import LoadedBase, load_base
from adapters.chat import ChatEncoder
from adapters.state import fingerprint
from meta_training.algorithms.metric import Matching, Prototypical, Siamese
from meta_training.corpus import Corpus
from meta_training.evaluate_command import CONTROLS, NEEDED, OF_ITSELF, lacking
from meta_training.evaluation.cells import Cell
from meta_training.evaluation.choosing import chosen_cells
from meta_training.evaluation.cost import adaptation_costs
from meta_training.evaluation.explain import explained
from meta_training.evaluation.material import EvaluationError, identity
from meta_training.evaluation.methods import (
    InContext,
    MetaLearned,
    Method,
    NearestTaught,
    Shown,
    TfidfCentroid,
    tuned_lora,
)
from meta_training.evaluation.perplexity import Perplexity, over, row_nats, rows_for
from meta_training.evaluation.report import ADAPTER, SERVED
from meta_training.learner import Learner
from meta_training.pipeline import held_out_drawer, validation_drawer
from meta_training.recipe import told_recipe
from meta_training.recipe_parts import InnerPart, OuterPart

WEIGHTS: Final = torch.float32  # on a GPU too, where a server has 16 bits: figures compare
TUNED: Final = {"lora", "multitask-lora"}  # on validation tasks
LABELS_ONLY: Final = (
    "tfidf",
    "encoder",
    "prototypical",
    "matching",
    "siamese",
    "frozen",
    "prototypical-network",
)


class Bench:
    """The methods of a report, made when they are asked for, and the tasks they share."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        artifact: Artifact,
        corpus: Corpus,
        device: torch.device,
    ) -> None:
        self._arguments = arguments
        self._artifact = artifact
        self._corpus = corpus
        trained_for_it = self._outer().algorithm == OF_ITSELF
        if OF_ITSELF in arguments.methods and not (arguments.pretrained or trained_for_it):
            raise EvaluationError(lacking(OF_ITSELF))
        self.drawer = held_out_drawer(corpus, artifact.tokenizer, arguments.seed)
        # Loaded before hours of work, so that a wrong folder shows at once.
        base = arguments.pretrained
        self._base = load_base(base, device, WEIGHTS) if base else None
        controls = {option: getattr(arguments, option) for option in CONTROLS}
        self._controls = {
            option: load_artifact(folder, device, WEIGHTS)
            for option, folder in controls.items()
            if folder is not None
        }

    def cells(self) -> list[Cell]:
        """The cells that are asked for. Raises EvaluationError where there are none."""
        asked = self._arguments
        try:
            return chosen_cells(self.drawer, asked.cells, asked.queries, asked.wrong)
        except ValueError as error:
            raise EvaluationError(str(error)) from error

    def method(self, name: str) -> Method:
        """The method called ``name``; some are tuned first, which takes minutes."""
        makers: dict[str, Callable[[], Method]] = {
            "ours": lambda: MetaLearned(ADAPTER, self._ours()),
            "ours-recall": lambda: MetaLearned(SERVED, self._ours(), recall=True),
            "ours-prompt": lambda: MetaLearned(
                f"{SERVED} and the examples in the prompt", self._ours(), True, self._shown()
            ),
            "tfidf": TfidfCentroid,
            "encoder": self._encoder,
            "prototypical": lambda: NearestTaught(
                "nearest prototype, this base", self._ours(), Prototypical()
            ),
            "matching": lambda: NearestTaught(
                "matching network, this base", self._ours(), Matching(self._outer().sharpness)
            ),
            "siamese": lambda: NearestTaught(
                "siamese network, this base", self._ours(), Siamese(self._outer().margin)
            ),
            "frozen": lambda: NearestTaught(
                "nearest prototype, pre-trained base", self._plain(), Prototypical()
            ),
            "in-context": self._prompted,
            "lora": lambda: self._tuned("LoRA, pre-trained base", self._plain()),
            "multitask-lora": lambda: self._tuned("LoRA, multi-task base", self._multitask()),
            "prototypical-network": lambda: NearestTaught(
                "Prototypical Network",
                Learner.from_artifact(self._controls["prototypes"]),
                Prototypical(),
            ),
        }
        return makers[name]()

    def cells_for(self, name: str, cells: Sequence[Cell]) -> list[Cell]:
        """Cells a method can be judged on: some only pick labels."""
        return [cell for cell in cells if name not in LABELS_ONLY or self.drawer.picks(cell.family)]

    def control(self, name: str) -> str:
        """What a method's results depend on beside artifact and tasks, to go on with."""
        needed = NEEDED.get(name, "")
        if needed == "pretrained" and self._base is not None:
            control = fingerprint(self._base.model)[:16]
        elif needed in self._controls:
            control = identity(self._controls[needed])
        else:
            return ""
        tuned = f"/{self._corpus.validation_digest}" if name in TUNED else ""
        return f"/{needed}={control}{tuned}"

    def costs(self, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
        """What adapting to a task of each cell costs; see ``adaptation_costs``."""
        return adaptation_costs(self._ours(), self.drawer, cells)

    def explained(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """What moved the adapter on some tasks of the first cell, where that is asked for."""
        count = self._arguments.explain
        return explained(self._ours(), self.drawer, cells[0], count) if count else {}

    def perplexities(self) -> dict[str, Any]:
        """``perplexity`` by model on held-out dialogues, adapters off, and ``perplexity_ratio``.

        The latter is the artifact's over the pre-trained base's, on the same rows. Both are empty
        where there are no such dialogues, the ratio also without that base. One with tokens of its
        own reads rows of its own: per token the two cannot be compared.
        """
        dialogues = self._corpus.test_dialogues
        if not dialogues:
            return {"perplexity": {}, "perplexity_ratio": {}}
        rows = rows_for(self._artifact.model, dialogues, self._artifact.tokenizer)
        nats = {ADAPTER: row_nats(self._artifact.model, rows)}
        ratio = {}
        if self._base:
            alike = self._base.tokenizer.get_vocab() == self._artifact.tokenizer.get_vocab()
            its = rows if alike else rows_for(self._base.model, dialogues, self._base.tokenizer)
            name = "pre-trained" if alike else "pre-trained, in tokens of its own"
            nats[name] = row_nats(self._base.model, its)
            ratio = over(nats[ADAPTER], nats[name]).told() if alike else {}
        told = {name: Perplexity.of(some).told() for name, some in nats.items()}
        return {"perplexity": told, "perplexity_ratio": ratio}

    def _encoder(self) -> Method:
        encoder = self._artifact.rule.encoder
        assert encoder is not None
        name = f"nearest prototype, {encoder.name}"
        return NearestTaught(name, self._ours(), Prototypical(), encoder)

    def _ours(self) -> Learner:
        return Learner.from_artifact(self._artifact)

    def _outer(self) -> OuterPart:
        """What the artifact was made by; the defaults where that is not told."""
        told = told_recipe(self._artifact.report, self._artifact.name)
        return OuterPart() if told is None else told.outer

    def _shown(self) -> Shown:
        return Shown(self._artifact.tokenizer, self._artifact.context_tokens)

    def _prompted(self) -> Method:
        if self._base is None:
            name = "examples in the prompt, this base"
            return InContext(name, self._without_adapter(self._artifact), self._shown())
        return InContext("examples in the prompt", self._plain(), self._shown())

    def _plain(self) -> Learner:
        assert self._base is not None
        return self._without_adapter(self._base)

    def _without_adapter(self, base: LoadedBase | Artifact) -> Learner:
        spec = self._artifact.spec
        part = InnerPart(rank=spec.rank, targets=list(spec.targets), scope=spec.scope, anchors=0)
        return Learner(base.model, ChatEncoder(base.tokenizer), part, [], seed=0)

    def _multitask(self) -> Learner:
        learner = Learner.from_artifact(self._controls["multitask"])
        learner.anchor_examples = []
        return learner

    def _tuned(self, name: str, learner: Learner) -> Method:
        """Plain LoRA at the learning rate that is best on validation tasks after most steps."""
        drawer = validation_drawer(self._corpus, self._artifact.tokenizer, seed=77)
        method = tuned_lora(name, learner, drawer)
        print(f"{name}: learning rate {method.learning_rate:g}", file=sys.stderr)
        return method
