"""Where a sentence encoder is found, and which ones are refused."""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_encoder import save_encoder, spoil
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adapters import encoder_folder as module
from adapters.encoder import Encoder
from adapters.encoder_folder import EncoderError, load_encoder

TEXT = "Where is my parcel?"


def test_pooling_is_read_where_the_modules_say(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_encoder(tmp_path / "moved", pooling="cls_token")
    plain = load_encoder(str(folder), tokenizer)
    (folder / "1_Pooling").rename(folder / "pool")
    with pytest.raises(EncoderError, match="pooled by nothing that it says"):
        load_encoder(str(folder), tokenizer)
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    modules[1]["path"] = "pool"
    assert (
        load_encoder(str(spoil(folder, "modules.json", modules)), tokenizer).digest == plain.digest
    )


def test_an_encoder_needs_its_own_tokenizer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_encoder(tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match="has no tokenizer"):
        load_encoder(str(folder), tokenizer)
    larger = save_encoder(tmp_path / "larger")
    added = AutoTokenizer.from_pretrained(larger)
    added.add_tokens([f"word{number}" for number in range(9)])
    added.save_pretrained(larger)
    with pytest.raises(EncoderError, match="they do not belong together"):
        load_encoder(str(larger), tokenizer)


def test_an_encoder_that_tells_nothing_apart_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_encoder(tmp_path / "alike")
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if "LayerNorm.weight" in name:
            tensor.zero_()
        elif "LayerNorm.bias" in name:
            tensor.fill_(1.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="all sentences alike"):
        load_encoder(str(folder), tokenizer)


def test_a_pooler_that_is_not_stored_is_not_missed(
    encoder_folder: Path, tmp_path: Path, encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = save_encoder(tmp_path / "bare")
    weights = load_file(other / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, other / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(other), tokenizer).digest == encoder.digest


def test_a_published_name_is_looked_for_in_the_package(
    encoder_folder: Path, tmp_path: Path, encoder: Encoder, tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "model").symlink_to(encoder_folder)
    spec = ModuleSpec("carrier", None)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    found = load_encoder("all-MiniLM-L6-v2", tokenizer)
    assert (found.name, found.digest) == ("all-MiniLM-L6-v2", encoder.digest)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "somebody/something"])
def test_where_the_hub_is_not_reached_the_error_says_what_to_do(
    name: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(repository: str, allow_patterns: object) -> str:
        raise ConnectionError(f"no route to {repository}")

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "snapshot_download", away)
    with pytest.raises(EncoderError, match="give the folder's path") as caught:
        load_encoder(name, tokenizer)
    assert ("innerloop[encoder]" in str(caught.value)) == ("/" not in name)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/tmp/nowhere", "~/nowhere"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(
    name: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "snapshot_download", pytest.fail)
    with pytest.raises(EncoderError, match=r"there is no folder .*all-MiniLM-L6-v2"):
        load_encoder(name, tokenizer)


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("modules.json", "{", "is not JSON"),
        ("modules.json", {}, "must hold a JSON list"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "a layer Dense on top"),
        ("modules.json", [3], "must hold a JSON list of objects"),
        ("1_Pooling/config.json", [], "must hold a JSON dict"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooled by max_tokens"),
        ("1_Pooling/config.json", {}, "pooled by nothing that it says"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pooled by lasttoken"),
        ("config.json", "{}", "cannot be loaded as a sentence encoder"),
        ("tokenizer.json", "{", "cannot be loaded as a sentence encoder"),
        ("model.safetensors", "no", "cannot be loaded as a sentence encoder"),
    ],
)
def test_a_broken_encoder_is_refused_by_name(
    tmp_path: Path, file: str, content: object, why: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = spoil(save_encoder(tmp_path / "broken"), file, content)
    with pytest.raises(EncoderError, match=why) as caught:
        load_encoder(str(folder), tokenizer)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "why"), [(None, "lacks 1 weights"), (float("nan"), "not finite")]
)
def test_weights_must_be_there_and_finite(
    tmp_path: Path, value: float | None, why: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_encoder(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    if value is None:
        del weights[name]
    else:
        weights[name].fill_(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=why):
        load_encoder(str(folder), tokenizer)
