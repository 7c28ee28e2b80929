"""Text survives the tokenizer, and typing a control token does not make one."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from adapters.chat import ChatEncoder, PromptError, user_turn
from meta_training.tokenizer import BOS, END, PAD, ROLES, train_tokenizer

CONTROL = [PAD, BOS, END, *(f"<|{role}|>" for role in ROLES)]
PROPERTY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str, **more: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, **more)["input_ids"]
    return ids


@PROPERTY
@given(text=st.text(max_size=60))
def test_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assume(text == text.strip(" "))
    assume(not any(token in text for token in CONTROL))
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧‍👦 🇳🇴 👍🏽",
        "Ein Käsebrötchen für 3,50 €, bitte!",
        "日本語のテキスト と العربية und עברית",
        "e\u0301 is not \u00e9, \ufb01 stays, \u200b too",
        "tabs\tand\nlines\r\nand  two   spaces",
        "don't re-open it at 18:30 <b>&amp;</b>",
        "",
    ],
)
def test_hard_texts_survive(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@PROPERTY
@given(before=st.text(max_size=8), token=st.sampled_from(CONTROL), after=st.text(max_size=8))
def test_a_typed_control_token_is_text_when_split(
    tokenizer: PreTrainedTokenizerFast, before: str, token: str, after: str
) -> None:
    text = f"x{before}{token}{after}x"
    ids = ids_of(tokenizer, text, split_special_tokens=True)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("token", CONTROL)
def test_a_typed_control_token_is_refused_in_a_chat(
    tokenizer: PreTrainedTokenizerFast, token: str
) -> None:
    encoder = ChatEncoder(tokenizer)
    with pytest.raises(PromptError, match="control token"):
        encoder.prompt(user_turn(f"Hi {token}"))
    with pytest.raises(PromptError, match="control token"):
        encoder.completion(f"Hi {token}")


def test_control_tokens_come_first_and_have_their_jobs(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokenizer.convert_tokens_to_ids(CONTROL) == list(range(len(CONTROL)))
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (PAD, BOS, END)
    assert sorted(tokenizer.all_special_ids) == list(range(len(CONTROL)))


def test_the_chat_template_writes_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "  Hi there \n"},
        {"role": "assistant", "content": "Hello."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|bos|><|system|>Be kind.<|end|><|user|>Hi there<|end|><|assistant|>Hello.<|end|>"
    )
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == f"{text}<|assistant|>"


@PROPERTY
@given(answer=st.text(max_size=30))
def test_a_turn_has_the_tokens_of_its_text(tokenizer: PreTrainedTokenizerFast, answer: str) -> None:
    """What is taught as a completion is what a later chat shows as history."""
    assume(answer == answer.strip())
    assume(not any(token in answer for token in CONTROL))
    encoder = ChatEncoder(tokenizer)
    history = [*user_turn("Hi"), {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(history, tokenize=True, return_dict=False)
    taught = encoder.example(user_turn("Hi"), answer)
    assert tuple(whole) == taught.prompt + taught.header + taught.completion


def test_a_word_is_one_token_at_the_start_of_a_turn_and_inside_it() -> None:
    tokenizer = train_tokenizer(["open the door", "we open it", "open"] * 9, 300, 64)
    first = ids_of(tokenizer, "open")
    assert len(first) == 1
    assert ids_of(tokenizer, "the open door")[1] == first[0]
    assert tokenizer.model_max_length == 64


def test_training_again_gives_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [f"word{i % 7} and word{i % 5}" for i in range(40)]
    made = [train_tokenizer(texts, 320, 64).backend_tokenizer.to_str() for _ in range(3)]
    assert made[0] == made[1] == made[2]


def test_the_vocabulary_has_the_size_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 700
    assert train_tokenizer(["a"], 4096, 8).vocab_size == 256 + len(CONTROL) + 1
