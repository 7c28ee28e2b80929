"""Few-shot classification: GLUE-format files and other labelled texts, and episodes drawn of them.

A class's number is drawn anew for every episode, so that nothing is learned of a label but by its
examples. Knows texts and whatever turns them into a module's inputs; nothing about gradients.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from meta_training.classifier import Inputs, Labelled
from meta_training.tasks.episodes import Shape
from meta_training.tasks.sources import DataError
from meta_training.tasks.tables import LABELS, TEXTS, read_table, refuse_scores

Text = tuple[str, ...]  # one sentence, or the two of a pair
Classes = Mapping[str, Sequence[Text]]  # label -> texts
Encode = Callable[[Sequence[Text]], Inputs]


def read_classes(path: Path) -> dict[str, list[Text]]:
    """Texts by label of a file in GLUE's form: its tasks' own TSV, or JSON lines (.jsonl, .gz).

    Raises:
        DataError: a missing file, no column for text or label, a row without one, or scores (as
            STS-B's) in place of labels; the message names file, line and field.
    """
    found: dict[str, dict[Text, None]] = defaultdict(dict)
    for line, row in read_table(path):
        label = next((name for name in LABELS if name in row), None)
        refuse_scores(row, label or "score", path, line)
        texts = next((names for names in TEXTS if set(names) <= row.keys()), None)
        if label is None or texts is None:
            wanted = LABELS if label is None else [" and ".join(names) for names in TEXTS]
            raise DataError(
                f"{path}:{line}: no field is one of {', '.join(wanted)}; there are {', '.join(row)}"
            )
        for name in (*texts, label):
            if row[name] is None or str(row[name]).strip() == "":
                raise DataError(f"{path}:{line}: field '{name}' is empty")
        found[str(row[label])][tuple(str(row[name]) for name in texts)] = None
    return {label: list(texts) for label, texts in found.items()}


class ClassEpisodes:
    """Draws batches of episodes, each from one of several tasks."""

    def __init__(
        self, tasks: Mapping[str, Classes], encode: Encode, shape: Shape, episodes: int
    ) -> None:
        """Draw ``episodes`` a batch, each of ``shape``; ``encode`` makes inputs of texts.

        Raises:
            DataError: no task has enough classes with enough texts.
        """
        least = shape.shots + shape.queries
        pools = {
            name: [list(texts) for texts in classes.values() if len(texts) >= least]
            for name, classes in tasks.items()
        }
        self._pools = {name: pool for name, pool in pools.items() if len(pool) >= shape.ways}
        if not self._pools:
            raise DataError(
                f"no task has {shape.ways} classes of {least} texts: {', '.join(tasks) or 'none'}"
            )
        self._encode, self._shape, self._episodes = encode, shape, episodes

    def draw(self, rng: random.Random) -> tuple[Labelled, Labelled]:
        """Support and queries of a batch."""
        support: list[tuple[Text, int, int]] = []
        query: list[tuple[Text, int, int]] = []
        shots = self._shape.shots
        for session in range(self._episodes):
            pool = self._pools[rng.choice(sorted(self._pools))]
            for number, texts in enumerate(rng.sample(pool, self._shape.ways)):
                drawn = rng.sample(texts, shots + self._shape.queries)
                support += [(text, number, session) for text in drawn[:shots]]
                query += [(text, number, session) for text in drawn[shots:]]
        return self._labelled(support), self._labelled(query)

    def _labelled(self, rows: Sequence[tuple[Text, int, int]]) -> Labelled:
        texts, classes, sessions = zip(*rows, strict=True)
        inputs = self._encode(texts)
        device = next(iter(inputs.values())).device

        def numbers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, device=device)

        return Labelled(inputs, numbers(classes), numbers(sessions))
