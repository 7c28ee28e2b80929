"""The outer loop on a Ray cluster: `python docs/examples/ray_train.py recipe.yaml --workers 2`.

Ray starts one process for each worker and joins them; each then does what `innerloop meta-train`
does in a process that torchrun started. `--data` and `--out` are folders that all machines see, and
`RAY_ADDRESS` names the cluster (without it, this machine is one). Needs `pip install 'ray[train]'`.
"""

import argparse
from pathlib import Path
from typing import Any

from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

from meta_training.making import meta_train
from meta_training.recipe import load_recipe
from meta_training.team import PATIENCE, Team


def work(config: dict[str, Any]) -> None:
    """Be one process of the team."""
    here = get_context()
    team = Team(here.get_world_rank(), here.get_world_size())
    meta_train(load_recipe(config["recipe"]), config["data"], config["out"], team)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    folders = {name: getattr(args, name).resolve() for name in ("recipe", "data", "out")}
    TorchTrainer(
        work,
        train_loop_config=folders,
        torch_config=TorchConfig(backend="gloo", timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=args.workers),
        run_config=RunConfig(name=args.out.name, storage_path=str(folders["out"] / "ray")),
    ).fit()


if __name__ == "__main__":
    main()
