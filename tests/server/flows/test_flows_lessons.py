"""Lessons on their way into the log and out of it: nothing of what teaches is lost or added."""

import pytest
from server_model import make_model_folder

from adapters.artifact import Artifact
from adapters.chat import ChatEncoder, PromptError, user_turn
from server.flows.encoding import Encoding
from server.flows.outcome import Lesson
from server.sessions import Item

pytestmark = pytest.mark.anyio

TURNS = user_turn("Where is it?")
LESSONS = [
    Lesson(TURNS, "Here."),
    Lesson(TURNS, "Here.", "correction", "There.", extra={"rating": -1, "completion_id": "c"}),
    Lesson(TURNS, "Here.", "preference", "There."),
    Lesson(TURNS, "Here.", "rating", rating=1),
    Lesson(TURNS, "Here.", "rating", rating=-1, cut=True),
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def encoding(artifact: Artifact) -> Encoding:
    return Encoding(ChatEncoder(artifact.tokenizer))


@pytest.mark.parametrize("lesson", LESSONS)
async def test_what_is_kept_teaches_the_same(encoding: Encoding, lesson: Lesson) -> None:
    new = lesson.item(3)
    kept = Item(1, new.kind, "pending", new.payload, new.prompt_key, 0.0)
    assert await encoding.example(Lesson.of(kept)) == await encoding.example(lesson)


async def test_kinds_become_examples(artifact: Artifact, encoding: Encoding) -> None:
    encoder = ChatEncoder(artifact.tokenizer)
    here, there = encoder.completion("Here."), encoder.completion("There.")
    told, corrected, preferred, liked, cut = [await encoding.example(one) for one in LESSONS]
    assert told == encoder.example(TURNS, "Here.")
    assert corrected == preferred, "a correction says what was wrong, too"
    assert (preferred.completion, preferred.rejected, preferred.rating) == (here, there, 0)
    assert (liked.completion, liked.rejected, liked.rating) == (here, (), 1)
    assert (cut.completion, cut.rating) == (here[:-1], -1), "its end was not the model's"
    assert (liked.wanted, cut.wanted) == (here, ())


async def test_what_is_corrected_may_have_been_cut(artifact: Artifact, encoding: Encoding) -> None:
    encoder = ChatEncoder(artifact.tokenizer)
    cut = await encoding.example(Lesson(TURNS, "Here.", "correction", "There.", cut=True))
    assert cut.completion == encoder.completion("Here.")
    assert cut.rejected == encoder.completion("There.")[:-1]
    nothing = await encoding.example(Lesson(TURNS, "Here.", "correction", "", cut=True))
    assert nothing == encoder.example(TURNS, "Here.")


async def test_an_answer_without_any_token_cannot_be_rated(encoding: Encoding) -> None:
    with pytest.raises(PromptError, match="nothing to rate"):
        await encoding.example(Lesson(TURNS, "", "rating", rating=1, cut=True))
