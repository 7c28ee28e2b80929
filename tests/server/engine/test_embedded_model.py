"""The model that comes with the package, on the fictional shop that it never saw in training."""

import json
import random
from collections import defaultdict

import pytest
from engine_harness import SHOP, collect, run, running

from adapters.artifact import Artifact, load_artifact
from adapters.chat import ChatEncoder, user_turn
from adapters.state import AdapterState
from server.engine import AdapterRef, AdaptRequest, Engine, GenerateRequest, Sampling
from server.settings import MODELS

FOLDER = MODELS / "innerloop-tiny"
TAUGHT, ASKED, OTHERS = 5, 3, 3


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load_artifact(FOLDER)


def test_it_is_as_small_as_it_says_and_brings_its_report(artifact: Artifact) -> None:
    assert sum(parameter.numel() for parameter in artifact.model.parameters()) <= 4e6
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 8e6
    assert artifact.report is not None
    assert artifact.report["recipe"]["name"] == artifact.name
    assert artifact.report["cells"]
    assert artifact.rule.gate is not None
    assert artifact.rule.gate.words is not None
    assert artifact.rule.gate.mix is not None


def test_five_examples_of_a_shops_answer_are_followed_and_other_answers_stay(
    artifact: Artifact,
) -> None:
    """Looser than the published figures, which are over many tasks: it guards the weights."""
    right, kept = run(_teach_the_shop(artifact))
    share_right, share_kept = sum(right) / len(right), sum(kept) / len(kept)
    print(f"{share_right:.1%} of {len(right)} right, {1 - share_kept:.1%} of {len(kept)} changed")
    assert share_right >= 0.6
    assert share_kept >= 0.6


async def _teach_the_shop(artifact: Artifact) -> tuple[list[bool], list[bool]]:
    questions, answers = defaultdict(list), {}
    for row in map(json.loads, SHOP.read_text().splitlines()):
        questions[row["intent"]].append(row["text"])
        answers[row["intent"]] = row["answer"]
    rng, right, kept = random.Random(0), [], []
    async with running(artifact) as engine:
        for intent, answer in answers.items():
            texts = rng.sample(questions[intent], TAUGHT + ASKED)
            state = await _teach(engine, artifact, texts[:TAUGHT], answer)
            for text in texts[TAUGHT:]:
                right.append(await _ask(engine, artifact, text, intent, state) == answer)
            for other in rng.sample([name for name in answers if name != intent], OTHERS):
                text = rng.choice(questions[other])
                taught = await _ask(engine, artifact, text, intent, state)
                kept.append(taught == await _ask(engine, artifact, text, intent, None))
    return right, kept


async def _teach(engine: Engine, artifact: Artifact, texts: list[str], answer: str) -> AdapterState:
    encoder = ChatEncoder(artifact.tokenizer)
    examples = tuple(encoder.example(user_turn(text), answer) for text in texts)
    return (await engine.adapt(AdaptRequest(examples))).state


async def _ask(
    engine: Engine, artifact: Artifact, text: str, session: str, state: AdapterState | None
) -> str:
    async def load() -> AdapterState:
        assert state is not None
        return state

    ref = None if state is None else AdapterRef(session, load)
    prompt = ChatEncoder(artifact.tokenizer).prompt(user_turn(text))
    return (await collect(engine, GenerateRequest(prompt, Sampling(40), ref))).text.strip()
