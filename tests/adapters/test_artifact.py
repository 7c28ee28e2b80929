"""Artifacts go out and come back as what a server computes with; broken ones say what is wrong."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import (
    CPU,
    GPT2_TARGETS,
    LLAMA_TARGETS,
    llama_spec,
    make_gpt2,
    make_llama,
    make_rule,
    random_adapter,
)
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from adapters.artifact import Artifact, ArtifactError, load_artifact, save_artifact
from adapters.chat import ChatEncoder
from adapters.config import Anchor, InnerRule, LoraSpec, Scope
from adapters.layer import LoraHooks, Rows
from adapters.prefix import continue_from, prefill
from adapters.rule_io import read_rule
from adapters.state import fingerprint, repeat

ANCHORS = (Anchor("Tell me a joke", "No."), Anchor("What time do you open?", "At nine."))
REPORT = {"label": {"mean": 0.91, "interval": [0.9, 0.92]}, "note": None}

# PEFT 0.21 asks transformers 5.23 by a name that the latter deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def save_tiny(
    folder: Path, tokenizer: PreTrainedTokenizerFast, scope: Scope = "activated"
) -> Artifact:
    model = make_llama(vocab=len(tokenizer))
    spec = llama_spec(scope)
    init = random_adapter(model, spec)
    rule = make_rule(init)
    rule = InnerRule(rule.steps, rule.step_sizes, 2.5, torch.tensor(0.75), ANCHORS)
    header = ChatEncoder(tokenizer).assistant_header()
    return save_artifact(folder, model, tokenizer, spec, init, rule, REPORT, header)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A whole artifact, not to be changed."""
    folder = tmp_path_factory.mktemp("artifact") / "tiny"
    save_tiny(folder, tokenizer)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A whole artifact, to be broken."""
    return Path(shutil.copytree(good, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Hugging Face folder with none of the extras."""
    folder = tmp_path_factory.mktemp("plain") / "llama"
    make_llama(vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_round_trip(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, scope: Scope) -> None:
    saved = save_tiny(tmp_path / "tiny", tokenizer, scope)
    artifact = load_artifact(tmp_path / "tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]
    spec = llama_spec(scope)
    model = make_llama(vocab=len(tokenizer))
    init = random_adapter(model, spec)
    assert artifact.name == saved.name == "tiny"
    assert artifact.spec == spec
    assert artifact.report == REPORT
    assert artifact.context_tokens == 128
    assert artifact.header == ChatEncoder(tokenizer).assistant_header()
    assert list(artifact.session_init) == list(init)
    assert all(torch.equal(artifact.session_init[name], init[name].half().float()) for name in init)
    assert artifact.rule.steps == 3
    assert artifact.rule.clip == 2.5
    assert artifact.rule.anchor_weight == 0.75
    assert artifact.rule.anchors == ANCHORS
    sizes = make_rule(init).step_sizes
    assert all(torch.equal(artifact.rule.step_sizes[name], sizes[name]) for name in init)
    assert artifact.fingerprint == saved.fingerprint
    assert artifact.rule_hash == saved.rule_hash
    assert artifact.tokenizer.chat_template == tokenizer.chat_template
    assert artifact.shapes == {name: tuple(tensor.shape) for name, tensor in init.items()}
    assert not artifact.transposed


def test_the_base_is_stored_in_16_bits_and_named_by_what_is_loaded(
    good: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    artifact = load_artifact(good)
    stored = load_file(good / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in stored  # tied to the embedding and stored once
    original = make_llama(vocab=len(tokenizer))
    assert artifact.model.dtype == torch.float32
    assert not artifact.model.training
    assert not any(parameter.requires_grad for parameter in artifact.model.parameters())
    assert artifact.fingerprint == fingerprint(artifact.model)
    assert artifact.fingerprint != fingerprint(original)
    assert artifact.fingerprint == fingerprint(original.bfloat16())


def test_saving_leaves_the_model_alone_and_works_with_hooks_on_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, spec = make_llama(vocab=len(tokenizer)), llama_spec()
    init = {name: t.requires_grad_() for name, t in random_adapter(model, spec).items()}
    before = fingerprint(model)
    hooks = LoraHooks(model, spec)
    rule = make_rule(init)
    sizes = {name: size.requires_grad_() for name, size in rule.step_sizes.items()}
    rule = InnerRule(3, sizes, 1.0)
    header = ChatEncoder(tokenizer).assistant_header()
    save_artifact(tmp_path / "tiny", model, tokenizer, spec, init, rule, {}, header)
    hooks.remove()
    assert fingerprint(model) == before
    assert model.dtype == torch.float32


def test_the_server_peft_and_transformers_see_one_model(
    good: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    artifact = load_artifact(good)
    base = AutoModelForCausalLM.from_pretrained(good, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, good / "session_init").eval()
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    prompt = ChatEncoder(artifact.tokenizer).prompt(messages)
    hooks = LoraHooks(artifact.model, artifact.spec)
    rows = Rows(repeat(artifact.session_init, 1), torch.tensor([0]))
    with torch.no_grad(), hooks.use(rows):
        theirs = model(input_ids=torch.tensor([prompt.ids])).logits[0, -1]
        with hooks.use(None):
            prefix = prefill(artifact.model, [prompt.prefix], CPU)
        ours = continue_from(artifact.model, prefix, torch.tensor([prompt.header]))[0, -1]
    hooks.remove()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_an_artifact_is_replaced_and_nothing_else_is(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (folder / "left over").touch()
    save_tiny(folder, tokenizer, "full")
    assert load_artifact(folder).spec.scope == "full"
    assert not (folder / "left over").exists()
    other = tmp_path / "my documents"
    other.mkdir()
    (other / "letter.txt").touch()
    with pytest.raises(ArtifactError, match="holds something else"):
        save_tiny(other, tokenizer)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("failing", ["tiny", "tiny.partial"])
def test_an_artifact_that_cannot_be_replaced_stays(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    failing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rename = Path.rename

    def broken(path: Path, target: Path) -> Path:
        if path.name == failing:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="busy"):
        save_tiny(folder, tokenizer, "full")
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert load_artifact(folder).spec.scope == "activated"


def test_a_killed_save_leaves_the_old_artifact_for_the_next(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    replaced = folder.with_name("tiny.replaced")
    folder.rename(replaced)  # as after a kill before the new one was in its place
    with pytest.raises(ArtifactError, match=r"tiny\.replaced is what was there before"):
        load_artifact(folder)
    model, spec = make_llama(vocab=len(tokenizer)), llama_spec()
    init = random_adapter(model, spec)
    with pytest.raises(ArtifactError, match="nothing was written"):
        save_artifact(folder, model, tokenizer, spec, init, make_rule(init), {}, (7,))
    assert load_artifact(folder).spec.scope == "activated"
    shutil.copytree(folder, replaced)  # as after a kill before the old one was gone
    save_tiny(folder, tokenizer, "full")
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert load_artifact(folder).spec.scope == "full"


def test_a_link_to_an_artifact_stays_one(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    link = folder.with_name("current")
    link.symlink_to(folder)
    save_tiny(link, tokenizer, "full")
    assert link.is_symlink()
    assert load_artifact(folder).spec.scope == "full"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header_ids": (7,)}, "the chat template starts answers with"),
        ({"header_ids": None}, "chat template"),
        ({"report": {"x": float("nan")}}, "JSON compliant"),
        ({"report": {"x": object()}}, "not JSON serializable"),
        ({"rule": InnerRule(1, {"x": torch.ones(1)}, 1.0)}, "inner_rule.json has"),
        ({"spec": LoraSpec(8, LLAMA_TARGETS)}, "not of rank 8"),
        ({"spec": LoraSpec(4, LLAMA_TARGETS[:2])}, "not one of target_modules"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(
    folder: Path, tokenizer: PreTrainedTokenizerFast, change: dict[str, Any], message: str
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    model, spec = make_llama(vocab=len(tokenizer)), llama_spec()
    init = random_adapter(model, spec)
    parts: dict[str, Any] = {
        "spec": spec,
        "session_init": init,
        "rule": make_rule(init),
        "report": {},
        "header_ids": ChatEncoder(tokenizer).assistant_header(),
    }
    with pytest.raises(ArtifactError, match=message):
        save_artifact(folder, model, tokenizer, **{**parts, **change})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not folder.with_name("tiny.partial").exists()


def test_a_plain_folder_serves_with_a_default_rule(plain: Path) -> None:
    artifact, again = load_artifact(plain), load_artifact(plain)
    assert artifact.report is None
    assert artifact.spec == LoraSpec(8, LLAMA_TARGETS)
    assert artifact.rule.steps == 5
    assert artifact.rule.anchors == ()
    assert set(artifact.rule.step_sizes) == set(artifact.session_init)
    for name, tensor in artifact.session_init.items():
        assert bool((tensor == 0).all()) == name.endswith("lora_B")
        assert torch.equal(again.session_init[name], tensor)
    assert artifact.rule_hash == again.rule_hash
    assert artifact.model.config._attn_implementation == "sdpa"


def test_gpt2_serves_without_a_template(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    make_gpt2(vocab=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    artifact = load_artifact(tmp_path)
    assert artifact.tokenizer.chat_template is None
    assert set(artifact.spec.targets) == set(GPT2_TARGETS)
    assert artifact.header is None
    assert artifact.transposed
    assert artifact.context_tokens == 128


def test_rule_or_session_init_alone_are_used(folder: Path, good: Path) -> None:
    whole = load_artifact(good)
    (folder / "inner_rule.json").unlink()
    without_rule = load_artifact(folder)
    assert without_rule.spec.rank == 4
    assert without_rule.rule.steps == 5
    name = "model.layers.0.self_attn.q_proj.lora_B"
    assert torch.equal(without_rule.session_init[name], whole.session_init[name])
    assert without_rule.rule_hash != whole.rule_hash
    shutil.rmtree(folder / "session_init")
    shutil.copy(good / "inner_rule.json", folder)
    without_init = load_artifact(folder)
    assert without_init.spec == whole.spec
    assert bool((without_init.session_init[name] == 0).all())


def test_a_sliding_window_does_not_bound_the_context(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        sliding_window=48,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_artifact(tmp_path).context_tokens == 512


Change = Callable[[Path], object]


def edit(name: str, **fields: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def change_tensor(
    name: str, key: str, new: Callable[[torch.Tensor], torch.Tensor | None]
) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        tensor = new(tensors.pop(key))
        if tensor is not None:
            tensors[key] = tensor
        save_file(tensors, folder / name, {"format": "pt"})

    return change


RULE, WEIGHTS = "inner_rule.json", "model.safetensors"
INIT = "session_init/adapter_model.safetensors"
Q_PROJ = "model.layers.0.self_attn.q_proj"
Q_PROJ_A = f"base_model.model.{Q_PROJ}.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no folder"),
        (lambda f: (f / "config.json").unlink(), "is no model folder"),
        (write("config.json", "{"), "cannot be loaded as a causal LM"),
        (edit("config.json", model_type="unheard-of"), "cannot be loaded as a causal LM"),
        (lambda f: (f / WEIGHTS).unlink(), "cannot be loaded as a causal LM"),
        (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "safetensors weights"),
        (write(WEIGHTS, "garbage"), "cannot be loaded as a causal LM"),
        (lambda f: (f / "tokenizer.json").unlink(), "and a tokenizer"),
        (edit("config.json", num_hidden_layers=3), "weights are missing, model.layers.2"),
        (edit("config.json", num_hidden_layers=1), "weights are unexpected, model.layers.1"),
        (edit("config.json", intermediate_size=49), "6 weights are mismatched, model.layers.0.mlp"),
        (
            change_tensor(WEIGHTS, f"{Q_PROJ}.weight", lambda t: t * torch.nan),
            f"{Q_PROJ}.weight holds values that are not finite",
        ),
        (edit("config.json", max_position_embeddings=None), "max_position_embeddings"),
        (
            edit("config.json", layer_types=["full_attention", "linear_attention"]),
            "layers of kind linear_attention",
        ),
        (write(RULE, "{"), "inner_rule.json: is not JSON"),
        (write(RULE, "[" * 100_000), "inner_rule.json: is not JSON"),
        (write(RULE, "[]"), "inner_rule.json: is not a usable rule"),
        (edit(RULE, format_version=3), "format_version: Input should be 1 or 2"),
        (edit(RULE, still=[Q_PROJ_A]), "'still' and 'factors' need format_version 2"),
        (edit(RULE, learning_rate=1), "learning_rate: Extra inputs are not permitted"),
        (edit(RULE, clip=float("nan")), "clip: Input should be a finite number"),
        (edit(RULE, clip=0), "clip: Input should be greater than 0"),
        (edit(RULE, clip="1"), "clip: Input should be a valid number"),
        (edit(RULE, steps=2), "must have shape"),
        (edit(RULE, steps=True), "steps: Input should be a valid integer"),
        (edit(RULE, anchor_weight=-1.0), "anchor_weight"),
        (edit(RULE, anchors=[{"prompt": "x"}]), "anchors.0.completion: Field required"),
        (
            edit(RULE, anchors=[{"prompt": "<|end|>", "completion": "x"}]),
            "contains the control token",
        ),
        (edit(RULE, step_sizes={}), f"inner_rule.json has no step size for {Q_PROJ[:14]}"),
        (edit(RULE, step_sizes={"x": [1, 1, -1]}), "step_sizes.x.2"),
        (
            edit(RULE, spec={"rank": 2, "alpha": None, "targets": ["q_proj"], "scope": "full"}),
            "they must agree",
        ),
        (
            edit(RULE, spec={"rank": 2, "alpha": None, "targets": ["q_proj"], "scope": "all"}),
            "spec.scope",
        ),
        (write("report.json", "{"), "report.json: is not JSON"),
        (write("report.json", "[]"), "report.json: must hold a JSON object"),
        (write("report.json", '{"x": NaN}'), "report.json: is not JSON: NaN"),
        (write("session_init/adapter_config.json", "{"), "session_init: .*is not JSON"),
        (edit("session_init/adapter_config.json", use_dora=True), "session_init: 'use_dora'"),
        (edit("session_init/adapter_config.json", alora_invocation_tokens=[9]), "must agree"),
        (edit("session_init/adapter_config.json", alora_invocation_tokens=None), "must agree"),
        (change_tensor(INIT, Q_PROJ_A, lambda t: None), f"misses '{Q_PROJ}.lora_A'"),
        (change_tensor(INIT, Q_PROJ_A, lambda t: t[:, :-1].contiguous()), r"has shape \[4, 31\]"),
        (change_tensor(INIT, Q_PROJ_A, lambda t: t * torch.inf), "not finite"),
        (change_tensor(INIT, Q_PROJ_A, lambda t: t.float() * 0 + 3e38), "logits are not finite"),
    ],
)
def test_broken_folders_say_what_is_wrong(folder: Path, change: Change, message: str) -> None:
    change(folder)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="there is no folder"):
        load_artifact(tmp_path / "file")


def test_an_encoder_decoder_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError):
        load_artifact(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    make_llama(vocab=len(tokenizer) - 1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="do not belong together"):
        load_artifact(tmp_path)


def test_a_model_whose_prompts_cannot_be_kept_is_refused(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that ignores where a row stands gives other logits after a kept prompt."""
    forward = LlamaForCausalLM.forward

    @wraps(forward)
    def without_positions(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **{**kwargs, "position_ids": None})

    monkeypatch.setattr(LlamaForCausalLM, "forward", without_positions)
    with pytest.raises(ArtifactError, match="going on from a kept prompt changes its logits"):
        load_artifact(plain)


def test_rule_files_are_read_exactly(good: Path) -> None:
    spec, rule = read_rule(good / "inner_rule.json")
    assert spec == llama_spec()
    assert rule.step_sizes[f"{Q_PROJ}.lora_A"].dtype == torch.float32
