"""PEFT folders go out and come back; what we do not have is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import LLAMA_TARGETS, llama_spec, make_llama, random_adapter

from adapters.config import LoraSpec, Scope
from adapters.peft_fit import fit
from adapters.peft_io import (
    CONFIG_FILE,
    TENSOR_FILE,
    PeftFormatError,
    check_shapes,
    load_peft,
    save_peft,
)
from adapters.state import AdapterState, tensor_shapes

MODEL = make_llama()
SPEC = llama_spec()
SHAPES = tensor_shapes(MODEL, SPEC)
HEADER = (3, 4)
STATE = AdapterState(SPEC, random_adapter(MODEL, SPEC), "base")

# PEFT 0.21 asks transformers 5.23 by a name that the latter deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder."""
    save_peft(tmp_path / "adapter", STATE, HEADER)
    return tmp_path / "adapter"


def read(folder: Path, spec: LoraSpec = SPEC, header: tuple[int, ...] | None = HEADER) -> Any:
    adapter = load_peft(folder)
    return fit(adapter, spec=spec, base_fingerprint="base", shapes=SHAPES, header=header)


def edit(folder: Path, **fields: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("scope", ["activated", "full"])
@pytest.mark.parametrize("alpha", [None, 6.0, 2.5])
def test_round_trip(tmp_path: Path, scope: Scope, alpha: float | None) -> None:
    spec = llama_spec(scope, alpha=alpha)
    save_peft(tmp_path, AdapterState(spec, STATE.tensors, "base"), HEADER)
    again = read(tmp_path, spec)
    assert again.spec == spec
    assert again.base_fingerprint == "base"
    assert list(again.tensors) == list(SHAPES)
    assert all(torch.equal(again.tensors[name], STATE.tensors[name]) for name in SHAPES)
    stored = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert stored["alora_invocation_tokens"] == (list(HEADER) if scope == "activated" else None)


def test_writing_twice_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    save_peft(tmp_path / "again", STATE, HEADER)
    for name in (CONFIG_FILE, TENSOR_FILE):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_peft_writes_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=4,
        target_modules="all-linear",
        alora_invocation_tokens=list(HEADER),
        lora_dropout=0.1,
        init_lora_weights=False,
    )
    model = get_peft_model(make_llama(), config)
    model.save_pretrained(str(tmp_path))
    stored = load_file(tmp_path / TENSOR_FILE)
    save_file({name: t.to(dtype) for name, t in stored.items()}, tmp_path / TENSOR_FILE)
    state = read(tmp_path)
    for name, tensor in state.tensors.items():
        module, kind = name.rsplit(".", 1)
        theirs = model.get_submodule(f"base_model.model.{module}.{kind}.default").weight
        assert tensor.dtype == torch.float32
        assert isinstance(theirs, torch.Tensor)
        assert torch.equal(tensor, theirs.to(dtype).float())


def test_an_activated_adapter_without_a_header_cannot_be_written(tmp_path: Path) -> None:
    for header in (None, ()):
        with pytest.raises(PeftFormatError, match="chat template"):
            save_peft(tmp_path / "adapter", STATE, header)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "'use_dora' = True is not supported"),
        ({"bias": "lora_only"}, "'bias' = 'lora_only'"),
        ({"lora_bias": True}, "'lora_bias'"),
        ({"rank_pattern": {"q_proj": 8}}, "'rank_pattern' = {'q_proj': 8}"),
        ({"alpha_pattern": {"q_proj": 8}}, "'alpha_pattern'"),
        ({"use_rslora": True}, "'use_rslora'"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"layers_to_transform": [0]}, "'layers_to_transform'"),
        ({"exclude_modules": ["q_proj"]}, "'exclude_modules'"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication'"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices'"),
        ({"target_parameters": ["x"]}, "'target_parameters'"),
        ({"a_feature_of_tomorrow": 1}, "'a_feature_of_tomorrow' = 1"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"peft_type": None}, "peft_type None"),
        ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"r": 0}, "rank must be at least 1"),
        ({"r": "4"}, "r '4': expected a whole number"),
        ({"lora_alpha": None}, "lora_alpha None: expected a number"),
        ({"lora_alpha": True}, "lora_alpha True: expected a number"),
        ({"target_modules": "all-linear"}, "target_modules 'all-linear'"),
        ({"target_modules": [1]}, "expected a list of module names"),
        ({"target_modules": []}, "targets must name"),
        ({"target_modules": ["q_proj"]}, "is not one of target_modules"),
        ({"alora_invocation_tokens": []}, "alora_invocation_tokens"),
        ({"alora_invocation_tokens": "assistant"}, "expected token ids"),
        ({"r": 8}, "which is not of rank 8"),
    ],
)
def test_features_we_do_not_have_are_refused_by_name(
    folder: Path, fields: dict[str, object], message: str
) -> None:
    edit(folder, **fields)
    with pytest.raises(PeftFormatError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("spec", "header", "message"),
    [
        (llama_spec(rank=2), HEADER, "rank is 4, this model's adapters have 2"),
        (llama_spec("full"), HEADER, "scope is 'activated', this model's adapters have 'full'"),
        (LoraSpec(4, ("q_proj", "v_proj")), HEADER, "targets .*'down_proj'"),
        (SPEC, (3, 5), r"starts at the tokens \[3, 4\], this model's answers start with \[3, 5\]"),
        (SPEC, None, r"answers start with \[\]"),
    ],
)
def test_an_adapter_that_fits_no_form_is_refused(
    folder: Path, spec: LoraSpec, header: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(PeftFormatError, match=message):
        read(folder, spec, header)


PICKLE = b"\x80\x04}\x94\x8c\x01x\x94K\x01s."  # {"x": 1}
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (FIRST, None, "misses 'model.layers.0.self_attn.q_proj.lora_A'"),
        (FIRST, torch.ones(4, 31), r"has shape \[4, 31\], the model needs \[4, 32\]"),
        (FIRST, torch.ones(3, 32), "not of rank 4"),
        (FIRST, torch.ones(32), "not of rank 4"),
        (FIRST, torch.full((4, 32), torch.nan), "not finite"),
        (FIRST, torch.ones(4, 32, dtype=torch.float64), "stored as F64"),
        (FIRST, torch.ones(4, 32, dtype=torch.int64), "stored as I64"),
        ("lm_head.weight", torch.ones(4, 32), "tensor 'lm_head.weight' is not supported"),
        (FIRST.replace("lora_A.weight", "lora_magnitude_vector"), torch.ones(4), "not supported"),
        (FIRST.replace("layers.0", "layers.9"), torch.ones(4, 32), "has, and the model's"),
    ],
)
def test_other_tensors_are_refused(
    folder: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    tensors = load_file(folder / TENSOR_FILE)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / TENSOR_FILE)
    with pytest.raises(PeftFormatError, match=message):
        read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_configuration_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(PeftFormatError, match=r"is not JSON|must hold a JSON object"):
        read(folder)


def test_missing_and_broken_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PeftFormatError, match=f"has no {CONFIG_FILE}"):
        load_peft(tmp_path / "nowhere")
    (folder / TENSOR_FILE).write_bytes(b"garbage bytes")
    with pytest.raises(PeftFormatError, match="over the limit"):
        read(folder)
    (folder / TENSOR_FILE).unlink()
    with pytest.raises(PeftFormatError, match=f"has no {TENSOR_FILE}$"):
        read(folder)
    (folder / TENSOR_FILE).with_suffix(".bin").write_bytes(PICKLE)
    with pytest.raises(PeftFormatError, match="pickled files are never read"):
        read(folder)


def test_shapes_are_checked_by_name() -> None:
    check_shapes(STATE.tensors, SHAPES)
    with pytest.raises(PeftFormatError, match="misses 'x'"):
        check_shapes(STATE.tensors, {**SHAPES, "x": (1,)})


def test_all_targets_are_there(folder: Path) -> None:
    assert load_peft(folder).spec.targets == tuple(sorted(LLAMA_TARGETS))
    assert load_peft(folder).header == HEADER
