"""`python -m benchmarks.algorithms`: what meta-learning algorithms buy with the same CPU time.

Five-way intent classification by a small module (hashed words, two layers), which every algorithm
trains for the same CPU seconds, on CLINC150's training domains; judged on episodes of the held-out
domains, the same for all. Several seeds. Then ablations of exact MAML. Small and short: it compares
algorithms, not models. Prints Markdown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn
from tqdm import tqdm

from meta_training import recipe as recipes
from meta_training.algorithms.choice import choose
from meta_training.algorithms.metric_training import MetricTraining
from meta_training.classifier import Inputs, Labelled, WeightClassifier, lay_out_classes
from meta_training.classify import adapt_classifier, train_classifier
from meta_training.recipe_parts import InnerPart, OuterPart
from meta_training.tasks.classes import ClassEpisodes, Text
from meta_training.tasks.episodes import Shape
from meta_training.tasks.sources import DataError, Intent, load_intents

WAYS, SHOTS, QUERIES, STEPS = 5, 5, 5, 3
WORDS, WIDTH = 8192, 48  # buckets of words, width of the module
TRIED_STEPS = 12  # outer steps that are timed, to know how many the seconds allow
EXACT = "MAML, exact"
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # outer part, inner part
    EXACT: ({}, {}),
    "MAML, first order": ({"algorithm": "fomaml"}, {}),
    "first order for half, then exact": ({"first_order_share": 0.5}, {}),
    "MAML++": ({"algorithm": "maml++"}, {}),
    "Meta-SGD": ({"algorithm": "meta-sgd"}, {"sizes": "element"}),
    "ANIL": ({"algorithm": "anil"}, {"top_layers": 1}),
    "Reptile": ({"algorithm": "reptile"}, {}),
    "multi-task": ({"algorithm": "multitask"}, {}),
    "Prototypical": ({"algorithm": "prototypical"}, {}),
    "Matching": ({"algorithm": "matching"}, {}),
    "Siamese": ({"algorithm": "siamese"}, {}),
    "exact, by the adjoint loop": ({"gradient": "adjoint"}, {}),
    "exact, K = 1": ({}, {"steps": 1}),
    "exact, step sizes not learned": ({"step_size_learning_rate": 0.0}, {}),
    "exact, start not learned": ({"adapter_learning_rate": 0.0}, {}),
    "exact, base frozen": ({"base": "frozen"}, {}),
    "untrained": ({"steps": 0}, {}),
}


class Module(nn.Module):
    """The mean of learned word vectors, then two layers, the second of which classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS, WIDTH, mode="sum")
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WAYS)])

    def features(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.layers[0](self.words(ids, per_sample_weights=weights)).tanh()

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.layers[1](self.features(ids, weights))


def encode(texts: Sequence[Text]) -> Inputs:
    """Words and pairs of words as buckets, each text of length 1 in all."""
    rows = []
    for text in texts:
        words = " ".join(text).lower().split()
        found = words + [a + " " + b for a, b in pairwise(words)]
        rows.append([1 + _bucket(word) for word in found])
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    weights = (ids > 0).float()
    return {"ids": ids, "weights": weights / weights.sum(1, keepdim=True).sqrt()}


def _bucket(word: str) -> int:
    number = 0
    for letter in word:
        number = (number * 131 + ord(letter)) % (2**31 - 1)
    return number % (WORDS - 1)


@dataclass(frozen=True)
class Outcome:
    """What became of a training, in percent of held-out queries right."""

    steps: int
    cpu_s: float
    right: float


class Contest:
    """The episodes, and every variant trained on them."""

    def __init__(self, data: Path, seconds: float, tasks: int) -> None:
        self._seconds = seconds
        shipped = recipes.load_recipe(
            Path(recipes.__file__).parent / "recipes" / "innerloop-tiny.yaml"
        )
        held_out = shipped.data.held_out["clinc150"]
        intents = load_intents(data / "clinc150.jsonl")
        shape = Shape(WAYS, SHOTS, QUERIES)
        tasks_of = {
            held: {"clinc150": _classes([i for i in intents if (i.domain in held_out) == held])}
            for held in (False, True)
        }
        self._training = ClassEpisodes(tasks_of[False], encode, shape, 4)
        rng = random.Random(1000)
        judged = ClassEpisodes(tasks_of[True], encode, shape, 20)
        self._judged = [judged.draw(rng) for _ in range(tasks // 20)]
        self._cost_s: dict[str, float] = {}

    def run(self, name: str, seed: int) -> Outcome:
        """Train a variant and judge it; how many steps the seconds allow is timed once."""
        outer, _ = VARIANTS[name]
        if outer.get("steps") == 0:
            return Outcome(0, 0.0, self._right(name, self._learner(name, seed), seed))
        if name not in self._cost_s:
            self._cost_s[name] = self._train(name, seed, TRIED_STEPS)[1] / TRIED_STEPS
        steps = max(1, round(self._seconds / self._cost_s[name]))
        learner, spent_s = self._train(name, seed, steps)
        return Outcome(steps, spent_s, self._right(name, learner, seed))

    def _part(self, name: str, steps: int) -> OuterPart:
        rates = {"base_learning_rate": 1e-2, "adapter_learning_rate": 5e-3, "warmup_steps": 5}
        return OuterPart.model_validate(rates | VARIANTS[name][0] | {"steps": steps})

    def _learner(self, name: str, seed: int) -> WeightClassifier:
        torch.manual_seed(seed)
        inner = {"steps": STEPS, "first_step_size": 0.5, "clip": 10.0} | VARIANTS[name][1]
        return WeightClassifier(
            Module(),
            InnerPart.model_validate(inner),
            moving=["layers."],
            features=lambda module, **inputs: module.features(**inputs),
        )

    def _train(self, name: str, seed: int, steps: int) -> tuple[WeightClassifier, float]:
        learner = self._learner(name, seed)
        before = time.process_time()
        train_classifier(learner, self._training.draw, self._part(name, steps), seed)
        return learner, time.process_time() - before

    def _right(self, name: str, learner: WeightClassifier, seed: int) -> float:
        algorithm = choose(self._part(name, 1))
        shares = []
        for support, query in self._judged:
            if isinstance(algorithm, MetricTraining):
                shares.append(_right_by_metric(algorithm, learner, support, query))
            else:
                _, judged = adapt_classifier(learner, support, query, learner.part.steps)
                shares.append(judged.figures["exact"])
        return 100 * statistics.mean(shares)


@torch.no_grad()
def _right_by_metric(
    algorithm: MetricTraining, learner: WeightClassifier, support: Labelled, query: Labelled
) -> float:
    right = [
        (algorithm.metric.scores(one.support, one.labels, one.queries).argmax(-1) == one.answers)
        for one in lay_out_classes(learner, support, query).embedded()
    ]
    return float(torch.cat(right).float().mean())


def _classes(intents: Sequence[Intent]) -> dict[str, list[Text]]:
    return {intent.name: [(question,) for question in intent.questions] for intent in intents}


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Percent right, and minus exact MAML's with the same seed; 95% intervals over seeds."""
    heads = ["", "outer steps", "CPU s", "right %", "minus exact MAML"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    reference = [outcome.right for outcome in outcomes[EXACT]]
    for name, seeds in outcomes.items():
        right = [outcome.right for outcome in seeds]
        apart = [a - b for a, b in zip(right, reference, strict=True)]
        steps = statistics.mean(outcome.steps for outcome in seeds)
        spent = statistics.mean(outcome.cpu_s for outcome in seeds)
        cells = [name, f"{steps:.0f}", f"{spent:.1f}", with_interval(right)]
        cells.append("–" if name == EXACT else with_interval(apart))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_interval(values: Sequence[float]) -> str:
    """Mean and half width by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algorithms", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument("--seconds", type=float, default=8.0, help="CPU seconds a training")
    parser.add_argument("--seeds", type=int, default=5, help="trainings a variant")
    parser.add_argument("--tasks", type=int, default=200, help="held-out episodes, in twenties")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = list(dict.fromkeys([EXACT, *arguments.variants]))
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    try:
        contest = Contest(arguments.data, arguments.seconds, max(20, arguments.tasks))
    except DataError as error:
        print(f"benchmarks.algorithms: {error}", file=sys.stderr)
        return 2
    rounds = [(seed, name) for seed in range(arguments.seeds) for name in names]
    for done, (seed, name) in enumerate(tqdm(rounds, desc="trainings", file=sys.stderr), 1):
        outcomes[name].append(contest.run(name, seed))
        if done % len(names) == 0 and done < len(rounds):  # a seed is whole: who stops here has it
            print(table(outcomes), file=sys.stderr)
    print(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
