"""An artifact with an encoder at its gate: only one that its numbers were chosen for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoder import WIDTH, save_encoder
from tiny_models import llama_spec, make_llama, make_rule, random_adapter, random_words
from transformers import PreTrainedTokenizerFast

from adapters import calibrated
from adapters import encoder_folder as encoders
from adapters.artifact import (
    Artifact,
    ArtifactError,
    load_artifact,
    load_served,
    save_artifact,
)
from adapters.calibrated import (
    CALIBRATED_FILE,
    CalibrationError,
    calibrated_gate,
    calibrated_text,
)
from adapters.chat import ChatEncoder
from adapters.config import Gate, InnerRule, Mix
from adapters.encoder_folder import load_encoder
from adapters.gate import OWN, prompt_vectors

PROMPTS = [[55, 56, 57], [58, 59, 60, 61, 62], [63]]
OWN_GATE = Gate(1, 0.3, 0.1, Mix(0.5, 10.0))


def save_tiny(folder: Path, tokenizer: PreTrainedTokenizerFast, gate: Gate | None) -> Artifact:
    model, spec = make_llama(vocab=len(tokenizer)), llama_spec()
    init = random_adapter(model, spec)
    rule = make_rule(init)
    gated = InnerRule(rule.steps, rule.step_sizes, rule.clip, gate=gate)
    header = ChatEncoder(tokenizer).assistant_header()
    return save_artifact(folder, model, tokenizer, spec, init, gated, {}, header)


@pytest.fixture
def artifact(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """One whose gate has words and no numbers for an encoder."""
    words = replace(OWN_GATE, words=random_words(tokenizer))
    save_tiny(tmp_path / "artifact", tokenizer, words)
    return tmp_path / "artifact"


def calibrate(folder: Path, encoder_folder: Path, threshold: float = 0.2) -> Gate:
    """Numbers that nobody chose, written as ``innerloop calibrate`` does."""
    plain = load_artifact(folder)
    own = OWN_GATE if plain.rule.gate is None else plain.rule.gate
    encoder = load_encoder(str(encoder_folder), plain.tokenizer)
    gate = replace(own, threshold=threshold, mix=None, encoder=encoder)
    (folder / CALIBRATED_FILE).write_text(calibrated_text(folder, gate), encoding="utf-8")
    return gate


def test_an_encoders_cosine_counts_four_times_all_others(
    encoder_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    summaries = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    plain = replace(OWN_GATE, words=random_words(tokenizer))
    gate = replace(plain, encoder=load_encoder(str(encoder_folder), tokenizer))
    assert gate.encoder is not None
    own, meant = prompt_vectors(plain, summaries, PROMPTS), gate.encoder.vectors(PROMPTS)
    vectors = prompt_vectors(gate, summaries, PROMPTS)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors.shape[1] == gate.width(8) == plain.width(8) + WIDTH
    expected = (OWN**2 * own @ own.T + meant @ meant.T) / (1 + OWN**2)
    torch.testing.assert_close(vectors @ vectors.T, expected)


def test_its_numbers_come_with_it_and_the_artifact_is_another(
    artifact: Path, encoder_folder: Path
) -> None:
    before = load_artifact(artifact)
    wanted = calibrate(artifact, encoder_folder)
    plain, served = load_artifact(artifact), load_artifact(artifact, encoder=str(encoder_folder))
    assert (plain.rule.gate, served.rule.gate) != (None, None)
    assert plain.rule_hash == before.rule_hash != served.rule_hash
    assert plain.rule.gate is not None
    assert (plain.rule.gate.threshold, plain.rule.gate.encoder) == (0.3, None)
    gate = served.rule.gate
    assert gate is not None
    assert gate.encoder is not None
    assert wanted.encoder is not None
    assert (gate.threshold, gate.growth, gate.mix) == (0.2, 0.1, None)
    assert gate.encoder.digest == wanted.encoder.digest
    assert gate.view == wanted.view != plain.rule.gate.view
    assert served.fingerprint == plain.fingerprint, "the base is the same"


def test_a_model_without_a_gate_gets_one(
    tmp_path: Path, encoder_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_tiny(tmp_path / "bare", tokenizer, None)
    calibrate(tmp_path / "bare", encoder_folder)
    gate = load_artifact(tmp_path / "bare", encoder=str(encoder_folder)).rule.gate
    assert gate is not None
    assert (gate.layer, gate.threshold, gate.words) == (1, 0.2, None)
    assert load_artifact(tmp_path / "bare").rule.gate is None


def test_an_encoder_without_numbers_is_refused(artifact: Path, encoder_folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no numbers for the encoder tiny.*calibrate"):
        load_artifact(artifact, encoder=str(encoder_folder))


def test_another_encoder_of_that_name_is_refused(
    artifact: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    calibrate(artifact, encoder_folder)
    other = save_encoder(tmp_path / "elsewhere" / "tiny", seed=1)
    with pytest.raises(ArtifactError, match=r"no numbers for .*there are some for tiny"):
        load_artifact(artifact, encoder=str(other))
    calibrate(artifact, other, threshold=0.4)
    found = [load_artifact(artifact, encoder=str(e)).rule.gate for e in (encoder_folder, other)]
    assert [gate and gate.threshold for gate in found] == [0.2, 0.4]
    calibrate(artifact, encoder_folder, threshold=0.1)
    assert len(json.loads((artifact / CALIBRATED_FILE).read_text("utf-8"))["encoders"]) == 2


def test_numbers_for_another_table_of_words_are_refused(
    artifact: Path, encoder_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    calibrate(artifact, encoder_folder)
    kept = (artifact / CALIBRATED_FILE).read_bytes()
    save_tiny(artifact, tokenizer, replace(OWN_GATE, words=random_words(tokenizer, seed=5)))
    assert not (artifact / CALIBRATED_FILE).exists(), "an export has numbers for no encoder"
    (artifact / CALIBRATED_FILE).write_bytes(kept)
    with pytest.raises(ArtifactError, match="another table of words"):
        load_artifact(artifact, encoder=str(encoder_folder))


def test_an_encoder_is_no_part_of_an_artifact(
    artifact: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    calibrate(artifact, encoder_folder)
    a = load_artifact(artifact, encoder=str(encoder_folder))
    with pytest.raises(ArtifactError, match="its gate has an encoder"):
        save_artifact(
            tmp_path / "new", a.model, a.tokenizer, a.spec, a.session_init, a.rule, {}, a.header
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry["gate"].pop("threshold"),
        lambda entry: entry["gate"].update(threshold="high"),
        lambda entry: entry["gate"].update(threshold=float("nan")),
        lambda entry: entry.update(further=1),
        lambda entry: entry.pop("digest"),
    ],
)
def test_a_broken_file_says_what_is_wrong(
    artifact: Path, encoder_folder: Path, change: Any
) -> None:
    calibrate(artifact, encoder_folder)
    path = artifact / CALIBRATED_FILE
    content = json.loads(path.read_text("utf-8"))
    change(content["encoders"][0])
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"{path} is not usable: encoders\.0\."):
        load_artifact(artifact, encoder=str(encoder_folder))
    assert load_artifact(artifact).rule.gate is not None, "without the encoder nothing is read"


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 2, "encoders": []}', "[" * 100000])
def test_no_file_of_ours_is_refused(
    artifact: Path, encoder_folder: Path, text: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    (artifact / CALIBRATED_FILE).write_text(text, encoding="utf-8")
    encoder = load_encoder(str(encoder_folder), tokenizer)
    with pytest.raises(CalibrationError, match="is not usable"):
        calibrated_gate(artifact, encoder, None)
    with pytest.raises(CalibrationError, match="is not usable"):
        calibrated_text(artifact, replace(OWN_GATE, encoder=encoder))


@pytest.fixture
def installed(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package carried the tiny encoder."""
    here = {"tiny": encoder_folder}
    monkeypatch.setattr(calibrated, "carried", here.get)
    monkeypatch.setattr(encoders, "carried", here.get)


@pytest.mark.usefixtures("installed")
def test_a_server_takes_the_encoder_that_is_installed_and_fits(
    artifact: Path, encoder_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def served(name: str) -> str | None:
        return load_served(artifact, "cpu", name).encoder

    assert served("auto") is None, "there are no numbers"
    calibrate(artifact, encoder_folder)
    assert (served("auto"), served("none"), served(str(encoder_folder))) == ("tiny", None, "tiny")
    assert not caplog.records
    path = artifact / CALIBRATED_FILE
    path.write_text(re.sub('"digest": "..', '"digest": "zz', path.read_text("utf-8")), "utf-8")
    assert served("auto") is None
    assert "without a sentence encoder" in caplog.text
    assert "there are some for tiny (zz" in caplog.text
    with pytest.raises(ArtifactError, match="has no numbers for"):
        served("tiny")
    path.write_text("{", encoding="utf-8")
    assert served("auto") is None
    assert "is not usable" in caplog.text
    (artifact / "inner_rule.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is not JSON"):
        served("auto")


def test_nothing_is_taken_that_is_not_installed(artifact: Path, encoder_folder: Path) -> None:
    calibrate(artifact, encoder_folder)
    assert load_served(artifact, "cpu", "auto").encoder is None
