"""Two processes make the outer loop that one makes, and stop together."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml
from mini_run import RECIPE, meta_train
from torch import Tensor

from adapters.artifact import load_artifact
from meta_training import making
from meta_training.recipe import RecipeError, load_recipe
from meta_training.team import Team

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TWO = {"batches": 2}
# Stopped, the launcher kills after 30 s what has not ended; a busy machine may take longer.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
}


def write_recipe(folder: Path, **outer: int) -> Path:
    path = folder / "recipe.yaml"
    content = RECIPE | {"outer": RECIPE["outer"] | outer}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@contextmanager
def launched(
    data: Path, folder: Path, device: str = "cpu", **outer: int
) -> Iterator[subprocess.Popen[bytes]]:
    """`innerloop meta-train` in two processes on this machine, all ended at the end."""
    recipe = write_recipe(folder, **outer)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(recipe), "--data", str(data), "--out", str(folder), "--device", device]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *launcher, str(HERE / "mini_launch.py"), *arguments],
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said_by(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Wait for the end of what was launched; gives all of its output."""
    process.wait()
    return (folder / "log").read_text()


def learned(folder: Path) -> dict[str, Tensor]:
    content = torch.load(folder / "maml" / "checkpoint.pt", weights_only=True)
    parameters: dict[str, Tensor] = content["parts"]["learner"]
    return parameters


@pytest.fixture(scope="module")
def by_one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    assert meta_train(data, folder, outer=TWO) == 0
    return folder


def take_up(made: Path, folder: Path) -> None:
    """Begin a run where an earlier one began its outer loop."""
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("maml"), dirs_exist_ok=True)


def test_two_processes_learn_what_one_learns(data: Path, by_one: Path, tmp_path: Path) -> None:
    take_up(by_one, tmp_path)
    with launched(data, tmp_path, **TWO) as process:
        said = said_by(process, tmp_path)
    assert process.returncode == 0, said
    alone, together = learned(by_one), learned(tmp_path)
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert load_artifact(tmp_path / "maml" / "artifact").session_init
    assert said.count('"artifact"') == 1  # the leader alone writes


def test_both_batches_of_a_step_count(data: Path, by_one: Path, tmp_path: Path) -> None:
    take_up(by_one, tmp_path)
    assert meta_train(data, tmp_path) == 0
    one, two = learned(tmp_path), learned(by_one)
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_stopped_together_they_save_a_whole_step(data: Path, by_one: Path, tmp_path: Path) -> None:
    take_up(by_one, tmp_path)
    with launched(data, tmp_path, **TWO, steps=100_000) as process:
        while not re.search(r"\b[1-9][0-9]*/100000", (tmp_path / "log").read_text()):
            assert process.poll() is None, said_by(process, tmp_path)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = said_by(process, tmp_path)
    assert process.returncode != 0
    assert said.count("the same command goes on from here") == 2, said
    saved = torch.load(tmp_path / "maml" / "checkpoint.pt", weights_only=True)
    assert 1 <= saved["step"] < 100_000


def test_batches_that_cannot_be_shared_out_are_refused_first(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, batches=3)
    with pytest.raises(RecipeError, match=r"outer\.batches 3 cannot be shared out over 2"):
        making.meta_train(load_recipe(recipe), data, tmp_path, Team(rank=1, size=2))
    assert list(tmp_path.iterdir()) == [recipe]
