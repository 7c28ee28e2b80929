"""A sentence encoder at the gate: what it sees of a prompt, and what it keeps."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny_encoder import WIDTH, save_encoder, spoil
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from adapters import encoder as module
from adapters.chat import ChatEncoder, last_turn, user_turn
from adapters.encoder import Encoder
from adapters.encoder_folder import load_encoder

TEXT = "Where is my parcel?"


def prompt(tokenizer: PreTrainedTokenizerFast, text: str, before: str = "") -> tuple[int, ...]:
    said = [*user_turn(before), {"role": "assistant", "content": "At nine."}] if before else []
    return ChatEncoder(tokenizer).prompt([*said, *user_turn(text)]).prefix


@torch.no_grad()
def by_hand(folder: Path, text: str, first_token: bool = False) -> Tensor:
    model = AutoModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    states = model(**tokens).last_hidden_state[0]
    return normalize(states[0] if first_token else states.mean(0), dim=0)


def test_a_vector_is_of_the_last_turn_alone(
    encoder_folder: Path, encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = [prompt(tokenizer, TEXT), prompt(tokenizer, TEXT, before="What time?")]
    vectors = encoder.vectors([*asked, prompt(tokenizer, "What time do you open tomorrow?")])
    assert vectors.shape == (3, encoder.width)
    assert encoder.width == WIDTH
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])
    turn = last_turn(tokenizer, asked[0])
    assert turn.strip() == TEXT
    torch.testing.assert_close(vectors[0], by_hand(encoder_folder, turn))


def test_an_encoder_may_be_pooled_by_its_first_token(
    tmp_path: Path, encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_encoder(tmp_path / "first", pooling="cls_token")
    first, asked = load_encoder(str(folder), tokenizer), prompt(tokenizer, TEXT)
    turn = last_turn(tokenizer, asked)
    torch.testing.assert_close(first.vectors([asked])[0], by_hand(folder, turn, first_token=True))
    assert first.digest != encoder.digest, "of the same weights"


def test_what_a_turn_was_asked_beside_does_not_matter(
    encoder_folder: Path, encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [prompt(tokenizer, " ".join([TEXT] * n)) for n in (1, 2, 5, 9, 40)]
    together = encoder.vectors(prompts)
    alone = load_encoder(str(encoder_folder), tokenizer)
    for row, each in enumerate(prompts):
        torch.testing.assert_close(alone.vectors([each])[0], together[row], atol=1e-5, rtol=1e-5)


def test_turns_are_kept_and_the_oldest_leave(
    encoder: Encoder, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    encoded: list[str] = []
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda texts: encoded.extend(texts) or encode(texts))
    one, two, three = (prompt(tokenizer, text) for text in ("one", "two", "three"))
    first = encoder.vectors([one])
    assert torch.equal(encoder.vectors([one, two, one])[2:], first)
    assert [text.strip() for text in encoded] == ["one", "two"]
    encoder.vectors([one])
    encoder.vectors([three])  # two is the oldest
    encoder.vectors([one])
    encoder.vectors([two])
    assert [text.strip() for text in encoded[2:]] == ["three", "two"]
    many = [prompt(tokenizer, str(number)) for number in range(9)]
    assert encoder.vectors(many).shape == (9, WIDTH), "more at once than are kept"


def test_threads_get_what_one_alone_gets(
    encoder: Encoder, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    prompts = [prompt(tokenizer, f"{number} parcels") for number in range(6)]
    expected = encoder.vectors(prompts)
    with ThreadPoolExecutor(4) as pool:
        turns = [(n * 7 + k) % 6 for n in range(40) for k in range(2)]
        pairs = [turns[i : i + 2] for i in range(0, len(turns), 2)]
        found = pool.map(lambda pair: encoder.vectors([prompts[i] for i in pair]), pairs)
        for pair, vectors in zip(pairs, found, strict=True):
            torch.testing.assert_close(vectors, expected[pair], atol=1e-5, rtol=1e-5)


def test_the_digest_is_of_all_that_vectors_depend_on(
    encoder_folder: Path, tmp_path: Path, encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    def changed(name: str, **fields: object) -> str:
        copy = save_encoder(tmp_path / f"{len(digests)}")
        content = json.loads((copy / name).read_text("utf-8"))
        return load_encoder(str(spoil(copy, name, content | fields)), tokenizer).digest

    digests = [encoder.digest]
    digests.append(load_encoder(str(save_encoder(tmp_path / "other", seed=1)), tokenizer).digest)
    digests.append(changed("config.json", num_attention_heads=4))
    digests.append(changed("config.json", hidden_act="relu"))
    digests.append(
        changed("1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode="cls")
    )
    digests.append(changed("config.json", max_position_embeddings=256))
    assert digests[-1] == encoder.digest, "nothing changed"
    fewer = save_encoder(tmp_path / "fewer")
    spoil(fewer, "sentence_bert_config.json", {"max_seq_length": 20})
    digests.append(load_encoder(str(fewer), tokenizer).digest)
    others = save_encoder(tmp_path / "others", texts=["zebras xylophone quux"])
    shutil.copy(encoder_folder / "model.safetensors", others)
    shutil.copy(encoder_folder / "config.json", others)
    digests.append(load_encoder(str(others), tokenizer).digest)
    assert len({*digests}) == len(digests) - 1
    assert load_encoder(str(encoder_folder), tokenizer).digest == encoder.digest


def test_what_is_kept_holds_nothing_else(
    encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder.vectors([prompt(tokenizer, f"{number} parcels") for number in range(20)])
    for vector in encoder._kept.values():
        assert vector.untyped_storage().nbytes() == 4 * WIDTH


def test_of_a_long_turn_the_beginning_is_read(
    tmp_path: Path, encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = " ".join([TEXT] * 60)
    vectors = encoder.vectors([prompt(tokenizer, long), prompt(tokenizer, f"{long} And so on.")])
    torch.testing.assert_close(vectors[0], vectors[1])
    short = spoil(
        save_encoder(tmp_path / "short"), "sentence_bert_config.json", {"max_seq_length": 9}
    )
    fewer = load_encoder(str(short), tokenizer)
    twice = [prompt(tokenizer, " ".join([TEXT] * count)) for count in (3, 4)]
    torch.testing.assert_close(*fewer.vectors(twice))
    assert not torch.allclose(*encoder.vectors(twice), atol=1e-4)
