"""One tiny artifact for all tests of the engine."""

from pathlib import Path

import pytest
from engine_harness import World, make_artifact

from adapters.artifact import Artifact
from server.engine import trial_process


@pytest.fixture(autouse=True)
def patience_with_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless one is ended by the CPU's clock; by the wall's, a busy machine ends good ones."""
    monkeypatch.setattr(trial_process, "_START_S", 600.0)
    monkeypatch.setattr(trial_process, "_TRIAL_S", 600.0)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(Path(tmp_path_factory.mktemp("model")) / "tiny")


@pytest.fixture(scope="session")
def full_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(Path(tmp_path_factory.mktemp("model")) / "tiny-full", scope="full")


@pytest.fixture
def world(artifact: Artifact) -> World:
    return World(artifact)


@pytest.fixture
def full_world(full_artifact: Artifact) -> World:
    return World(full_artifact)
