"""`python -m benchmarks.margins`: what a gate's margin (`--gate-margin`) is worth to shops.

The shops of `benchmarks.service_bot` whose questions are asked in other words, by the gate and the
memory of what was taught alone: no lesson, no server. Per margin, how many questions the gate opens
for with the right answer the nearest, and for how many that nothing was taught for it opens. Needs
what `innerloop data` prepared; prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from adapters.artifact import load_served
from adapters.chat import user_turn
from adapters.gate import answer_number, answer_scores, gate_opens, prompt_vectors, remember
from benchmarks.service_bot import FAQ, RECIPE, Shop, other_words
from benchmarks.trial import percent, table
from meta_training.corpus import load_corpus
from meta_training.learner import Learner
from meta_training.recipe import load_recipe
from meta_training.tasks.sources import DataError
from server.settings import MODELS

MARGINS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2)


def shares(learner: Learner, shop: Shop) -> dict[float, tuple[float, float]]:
    """By margin, the shares of ``MARGINS``: asked and right, and not taught and yet answered."""
    gate, encoder = learner.gate, learner.encoder
    assert gate is not None

    def seen(questions: Sequence[str]) -> tuple[Tensor, list[tuple[int, ...]]]:
        prompts = [encoder.prompt(user_turn(question)).prefix for question in questions]
        return learner.summaries(prompts), prompts

    completions = [encoder.completion(answer) for _, answer in shop.taught]
    taught = remember(gate, *seen([question for question, _ in shop.taught]), completions)
    asked = shop.asked["other words"]
    own = prompt_vectors(gate, *seen([question for question, _ in asked]))
    others = prompt_vectors(gate, *seen(list(shop.others)))
    nearest = taught.fitted[0][answer_scores(taught, own).argmax(1)]
    wanted = [answer_number(encoder.completion(answer)) for _, answer in asked]
    right = nearest == torch.tensor(wanted)
    found = {}
    for margin in MARGINS:
        stricter = replace(gate, margin=margin)
        opened = gate_opens(stricter, taught, own)
        strayed = gate_opens(stricter, taught, others)
        found[margin] = float((right & opened).float().mean()), float(strayed.float().mean())
    return found


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Run all shops and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.margins", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODELS / "innerloop-tiny")
    parser.add_argument("--encoder", default="auto", help="as of innerloop serve (default: auto)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument("--shops", type=int, default=30, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args(argv)
    artifact = load_served(parsed.model, "cpu", parsed.encoder)
    learner = Learner.from_artifact(artifact)
    if learner.gate is None:
        print(f"benchmarks.margins: {parsed.model} has no gate", file=sys.stderr)
        return 2
    try:
        recipe = load_recipe(RECIPE)
        corpus = load_corpus(parsed.data, recipe.data, recipe.seed)
        shops = list(other_words(corpus, parsed.data / FAQ, parsed.shops, parsed.seed))
    except DataError as error:
        print(f"benchmarks.margins: {error}", file=sys.stderr)
        return 2
    found = [shares(learner, shop) for shop in tqdm(shops, desc="shops")]
    rows = [
        [margin, *(percent([one[margin][place] for one in found]) for place in (0, 1))]
        for margin in MARGINS
    ]
    print(f"{len(shops)} shops, encoder {artifact.encoder}.\n")
    print(table(["gate_margin", "other words, right %", "not taught, yet answered %"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
