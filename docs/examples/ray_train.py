"""The outer loop on a Ray cluster: `python docs/examples/ray_train.py recipe.yaml --workers 2`.

Ray starts one process for each worker and joins them; each then does what `innerloop meta-train`
does in a process that torchrun started, on a GPU of its own with `--gpus`. `--data` and `--out` are
folders that all machines see, and `RAY_ADDRESS` names the cluster (without it, this machine is
one). Needs `pip install 'ray[train]'`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from adapters.device import CPU
from meta_training.making import meta_train
from meta_training.recipe import load_recipe
from meta_training.team import PATIENCE, Team, backend


def work(config: dict[str, Any]) -> None:
    """Be one process of the team."""
    here = get_context()
    device = get_device() if config["gpus"] else CPU
    team = Team(here.get_world_rank(), here.get_world_size(), device)
    meta_train(load_recipe(config["recipe"]), config["data"], config["out"], team)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", action="store_true", help="a GPU for each worker")
    args = parser.parse_args()
    folders = {name: getattr(args, name).resolve() for name in ("recipe", "data", "out")}
    talk = backend(torch.device("cuda") if args.gpus else CPU)
    TorchTrainer(
        work,
        train_loop_config=folders | {"gpus": args.gpus},
        torch_config=TorchConfig(backend=talk, timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=args.gpus),
        run_config=RunConfig(name=args.out.name, storage_path=str(folders["out"] / "ray")),
    ).fit()


if __name__ == "__main__":
    main()
