"""One tiny artifact for all tests of the engine."""

from pathlib import Path

import pytest
from engine_harness import World, make_artifact

from adapters.artifact import Artifact


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
