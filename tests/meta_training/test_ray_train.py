"""docs/examples/ray_train.py on a real Ray cluster of this machine: two workers, one model."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mini_run import meta_train
from test_team import ROOT, TWO, by_one, learned, take_up, write_recipe
from test_training_run import checkpoint, interrupt_at
from torch.testing import assert_close

from adapters.artifact import load_artifact

pytest.importorskip(
    "ray.train.torch",
    reason="Ray Train is not installed: pip install 'innerloop[ray]' 'ray[train]'",
    exc_type=ImportError,
)

from benchmarks.rollout import ray_cluster

__all__ = ["by_one"]  # a fixture
EXAMPLE = ROOT / "docs" / "examples" / "ray_train.py"


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Its folder has a short path, for the sockets in it."""
    short = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
    with short as name, ray_cluster(Path(name)) as environment:
        yield environment


def train(
    recipe: Path, data: Path, out: Path, cluster: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the example with two workers."""
    command = [sys.executable, EXAMPLE, recipe, "--data", data, "--out", out, "--workers", "2"]
    return subprocess.run(
        [str(part) for part in command],
        env=cluster | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_workers_learn_what_one_process_learns(
    data: Path, by_one: Path, tmp_path: Path, cluster: dict[str, str]
) -> None:
    take_up(by_one, tmp_path)
    done = train(write_recipe(tmp_path, **TWO), data, tmp_path, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_close(learned(tmp_path), learned(by_one), rtol=1e-5, atol=1e-6)
    alone, together = (load_artifact(run / "maml" / "artifact") for run in (by_one, tmp_path))
    assert together.shapes == alone.shapes


def test_two_workers_go_on_where_one_process_stopped(
    data: Path,
    by_one: Path,
    tmp_path: Path,
    cluster: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_up(by_one, tmp_path)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert meta_train(data, tmp_path, outer=TWO) == 130
    assert checkpoint(tmp_path / "maml" / "checkpoint.pt")["step"] == 2
    done = train(write_recipe(tmp_path, **TWO), data, tmp_path, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_close(learned(tmp_path), learned(by_one), rtol=1e-5, atol=1e-6)
