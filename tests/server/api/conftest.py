"""One live server for all tests of the HTTP face; tests use sessions of their own."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from server_harness import HANG_S, LiveServer, make_settings
from server_model import make_model_folder

from server.engine import trial_process
from server.settings import MODELS

KEYED = {
    "api_keys": "acme:acme-key,acme:acme-second,globex:globex-key",
    "operator_keys": "operator-key",
}
SMALL = {"max_body_bytes": 20_000, "max_import_bytes": 25_000}


@pytest.fixture(scope="session", autouse=True)
def no_settings_of_the_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().startswith("INNERLOOP_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def patience_with_schemas() -> Iterator[None]:
    """A process that tries one may get no turn for a while: what bounds it here is its CPU time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_process, "_TRIAL_S", HANG_S)
        patch.setattr(trial_process, "_START_S", HANG_S)
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-test"
    make_model_folder(folder)
    return folder


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[LiveServer]:
    settings = make_settings(model_folder, tmp_path_factory.mktemp("data"))
    with LiveServer(settings, [{}, KEYED, SMALL]) as server:
        yield server


GUARDED, LIMITED, SHARED = range(3)
FACES = [
    KEYED,
    {**KEYED, "session_requests": "1/h:3", "tenant_requests": "1/h:5", "tenant_feedback": "1/h:2"},
    {**KEYED, "cors_origins": "https://shop.example", "operator_keys": ""},
]


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[LiveServer]:
    """Another server, on a Redis where keys are stored: no face of it is ever open."""
    with LiveServer(make_settings(model_folder, tmp_path_factory.mktemp("data")), FACES) as server:
        yield server


@pytest.fixture
def enter(guarded: LiveServer) -> Iterator[Callable[..., httpx.Client]]:
    """Clients of the guarded server, by key or token and by face."""
    with ExitStack() as stack:

        def client(key: str | None, face: int = GUARDED, **headers: str) -> httpx.Client:
            shown = {} if key is None else {"Authorization": f"Bearer {key}"}
            made = guarded.client(face, headers={**shown, **headers})
            return stack.enter_context(made)

        yield client


@pytest.fixture(scope="session")
def http(live: LiveServer) -> Iterator[httpx.Client]:
    """A client of the server without keys."""
    with live.client() as client:
        yield client


@pytest.fixture(scope="session")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of it."""
    with openai.OpenAI(base_url=live.urls[0] + "/v1", api_key="unused", max_retries=0) as made:
        yield made


_numbers = itertools.count(1)


@pytest.fixture
def new_session() -> Callable[[], str]:
    """Draws session ids that no other test uses."""
    return lambda: f"test:{next(_numbers)}"


@pytest.fixture
def session(new_session: Callable[[], str]) -> str:
    return new_session()


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The embedded model, which has a gate; a server for each file that asks it."""
    settings = make_settings(MODELS / "innerloop-tiny", tmp_path_factory.mktemp("data"))
    with LiveServer(settings) as server, server.client() as client:
        yield client
