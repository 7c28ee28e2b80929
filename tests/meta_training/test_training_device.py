"""What a run keeps and takes where there are GPUs; PyTorch's own answers are stood in for."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapters.device import DeviceError
from meta_training.arguments import device_name
from meta_training.checkpoint import load_checkpoint, save_checkpoint
from meta_training.device import bfloat16_products, on_cpu, use_device, without_cudnn
from meta_training.team import backend, own_device


class Gpus:
    """Some GPUs as PyTorch tells of them: which is current, and where its generator stands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.current: torch.device | None = None
        self.random = torch.tensor([1, 2, 3], dtype=torch.uint8)
        self.used = True
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.used)
        monkeypatch.setattr(torch.cuda, "set_device", self.set_device)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: self.random)
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set_random)

    def set_device(self, device: torch.device) -> None:
        if device.index is None:
            raise ValueError(f"Expected a torch.device with a specified index, but got {device}")
        self.current = device

    def set_random(self, state: Tensor) -> None:
        self.random = state


def test_a_gpu_that_is_used_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(monkeypatch, 2)
    assert use_device("cpu").type == "cpu"
    assert use_device("cuda") == use_device("auto") == torch.device("cuda")
    assert gpus.current is None
    assert use_device("cuda:1") == gpus.current == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("name", "gpus", "own"),
    [
        ("auto", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("auto", 2, "cuda:1"),
        ("cuda", 2, "cuda:1"),
        ("cuda:0", 1, "cuda:0"),  # a launcher that shows each process one
    ],
)
def test_each_process_of_a_team_has_a_device(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, own: str
) -> None:
    Gpus(monkeypatch, gpus)
    assert own_device(name, local_rank=1) == torch.device(own)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Gpus(monkeypatch, 1)
    with pytest.raises(DeviceError, match=r"'cuda:1': PyTorch sees 1 .*start as many"):
        own_device(name, local_rank=1)


def test_gpus_talk_by_nccl_and_wait_by_gloo() -> None:
    assert backend(torch.device("cpu")) == "gloo"
    assert backend(torch.device("cuda:1")) == "cpu:gloo,cuda:nccl"


def test_a_gpus_generator_goes_on_where_one_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, gpus = tmp_path / "c.pt", Gpus(monkeypatch, 1)
    before = gpus.random
    save_checkpoint(path, {"layer": nn.Linear(1, 1)}, {}, 1)
    gpus.random = torch.zeros(3, dtype=torch.uint8)
    load_checkpoint(path, {"layer": nn.Linear(1, 1)}, {})
    assert torch.equal(gpus.random, before)
    gpus.used, gpus.random = False, torch.zeros(3, dtype=torch.uint8)
    assert load_checkpoint(path, {"layer": nn.Linear(1, 1)}, {}).step == 1
    assert not gpus.random.any()


def test_a_checkpoint_of_a_cpu_has_no_word_of_gpus(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"layer": nn.Linear(1, 1)}, {}, 1)
    assert "gpu_random" not in torch.load(tmp_path / "c.pt", weights_only=True)


def test_what_is_on_the_cpu_stays_the_same_tensor() -> None:
    shared = torch.ones(2)
    tree = {"a": [shared, (shared, 3)], "b": random.Random(0).getstate()}
    moved = on_cpu(tree)
    assert moved.keys() == tree.keys()
    assert moved["a"][0].data_ptr() == moved["a"][1][0].data_ptr() == shared.data_ptr()
    assert moved["b"] == tree["b"]


def test_cudnn_comes_back_after_an_error() -> None:
    assert torch.backends.cudnn.enabled
    with without_cudnn():
        assert not torch.backends.cudnn.enabled
    with pytest.raises(ZeroDivisionError), without_cudnn():
        raise ZeroDivisionError
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "auto "])
def test_names_of_no_device_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected auto, cpu, cuda or cuda:N"):
        device_name(text)


@pytest.mark.parametrize(
    ("has_instructions", "product"), [(True, torch.bfloat16), (False, torch.float32)]
)
def test_products_are_bfloat16_products_where_the_processor_has_instructions_for_them(
    has_instructions: bool, product: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = torch.ops.mkldnn
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(asked, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    with bfloat16_products(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is product
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with bfloat16_products(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
