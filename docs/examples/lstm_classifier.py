"""Meta-trains an LSTM to tell new intents apart after three examples each.

    python docs/examples/lstm_classifier.py questions.jsonl [algorithm]

Every line is {"text": …, "intent": …, "domain": …}. A third of the intents is kept for the end.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor, nn

from meta_training.classifier import Inputs, WeightClassifier
from meta_training.classify import adapt_classifier, train_classifier
from meta_training.recipe_parts import InnerPart, OuterPart
from meta_training.tasks.classes import ClassEpisodes, Text
from meta_training.tasks.episodes import Shape
from meta_training.tasks.sources import load_intents

WAYS, STEPS, WORDS = 3, 3, 4096


class Lstm(nn.Module):
    """Words in, one of ``WAYS`` classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 48)
        self.lstm = nn.LSTM(48, 48, batch_first=True)
        self.head = nn.Linear(48, WAYS)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) words -> (B, C) logits."""
        return self.head(self.features(ids))

    def features(self, ids: Tensor) -> Tensor:
        """(B, T) words -> (B, D), which algorithms without an inner loop compare."""
        states, _ = self.lstm(self.words(ids))  # (B, T, D)
        return (states * (ids > 0).unsqueeze(-1)).sum(1)


def encode(texts: Sequence[Text]) -> Inputs:
    """The first eight words of each text, in buckets; 0 is no word."""
    ids = torch.zeros(len(texts), 8, dtype=torch.long)
    for row, (text,) in enumerate(texts):
        words = [1 + crc32(word.encode()) % (WORDS - 1) for word in text.lower().split()[:8]]
        ids[row, : len(words)] = torch.tensor(words)
    return {"ids": ids}


def main() -> None:
    """Train, and say how many answers about new intents are right before and after adapting."""
    torch.manual_seed(0)
    intents = load_intents(Path(sys.argv[1]))
    algorithm = sys.argv[2] if len(sys.argv) > 2 else "maml"
    random.Random(0).shuffle(intents)
    groups = (intents[len(intents) // 3 :], intents[: len(intents) // 3])
    training, new = (
        ClassEpisodes(
            {"all": {i.name: [(q,) for q in i.questions] for i in group}},
            encode,
            Shape(WAYS, 3, 3),
            2,
        )
        for group in groups
    )
    # What the two algorithms need that are MAML over another form of inner rule.
    sizes = "element" if algorithm == "meta-sgd" else "tensor"
    moving = ["head"] if algorithm == "anil" else ["lstm", "head"]
    inner = InnerPart(steps=STEPS, first_step_size=0.2, sizes=sizes)
    learner = WeightClassifier(Lstm(), inner, moving, features=Lstm.features)
    outer = {"algorithm": algorithm, "steps": 30, "base_learning_rate": 5e-3}
    train_classifier(learner, training.draw, OuterPart.model_validate(outer))
    for steps in (0, STEPS):
        rng = random.Random(1)
        right = [adapt_classifier(learner, *new.draw(rng), steps)[1] for _ in range(5)]
        share = sum(judged.figures["exact"] for judged in right) / len(right)
        print(f"after {steps} inner steps {share:.0%} of the answers are right")


if __name__ == "__main__":
    main()
