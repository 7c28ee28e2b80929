"""Text becomes tokens with the activation point known, and never becomes control tokens."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from adapters.chat import (
    ROLES,
    ChatEncoder,
    PromptError,
    last_turn,
    tells_turns_apart,
    user_turn,
)

CHAT = [
    {"role": "system", "content": "You work in a shop."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good morning!"},
    {"role": "user", "content": "When do you open?"},
]


@pytest.fixture
def own(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer to change."""
    return copy.deepcopy(tokenizer)


def test_the_header_is_the_last_one_of_a_long_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = ChatEncoder(tokenizer).prompt(CHAT)
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert prompt.header == (assistant,)
    assert prompt.prefix.count(assistant) == 1  # the turn that is history
    assert prompt.prefix[0] == tokenizer.bos_token_id
    assert prompt.prefix[-1] == tokenizer.eos_token_id
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert prompt.ids == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_prompt_is_one_user_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = ChatEncoder(tokenizer)
    assert encoder.prompt(user_turn("Hi")) == encoder.prompt([{"role": "user", "content": "Hi"}])


def test_an_example_ends_with_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = ChatEncoder(tokenizer)
    example = encoder.example(user_turn("Hi"), "At nine.")
    assert example.completion[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(list(example.completion[:-1])) == "At nine."
    answered = [*user_turn("Hi"), {"role": "assistant", "content": "At nine."}]
    whole = tokenizer.apply_chat_template(answered, tokenize=True, return_dict=False)
    assert example.prompt + example.header + example.completion == tuple(whole)


def test_the_header_of_every_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert ChatEncoder(tokenizer).assistant_header() == (assistant,)


def test_a_template_without_generation_prompt_starts_at_the_last_token(
    own: PreTrainedTokenizerFast,
) -> None:
    own.chat_template = "{% for m in messages %}{{ m['content'] + '<|end|>' }}{% endfor %}"
    encoder = ChatEncoder(own)
    prompt = encoder.prompt(user_turn("Hello there"))
    assert prompt.header == (own.eos_token_id,)
    assert own.decode(list(prompt.prefix)) == "Hello there"
    assert encoder.assistant_header() is None


def test_a_header_that_merges_with_the_text_before_starts_at_the_last_token(
    own: PreTrainedTokenizerFast,
) -> None:
    own.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}pen: {% endif %}"
    )
    encoder = ChatEncoder(own)
    prompt = encoder.prompt(user_turn("When do you o"))
    assert len(prompt.header) == 1
    text = "When do you open: "
    assert prompt.ids == tuple(own(text, add_special_tokens=False)["input_ids"])


def test_without_a_template_the_adapter_starts_at_the_last_token(
    own: PreTrainedTokenizerFast,
) -> None:
    own.chat_template = None
    encoder = ChatEncoder(own)
    prompt = encoder.prompt(user_turn("When do you open?"))
    assert prompt == encoder.raw("When do you open?")
    assert prompt.ids == tuple(own("When do you open?")["input_ids"])
    assert len(prompt.header) == 1
    assert encoder.assistant_header() is None
    with pytest.raises(PromptError, match="no chat template"):
        encoder.prompt(CHAT)


def test_no_end_token_teaches_the_text_alone(own: PreTrainedTokenizerFast) -> None:
    own.eos_token = None
    assert ChatEncoder(own).completion("four") == tuple(own("four")["input_ids"])


@pytest.mark.parametrize("token", ["<|end|>", "<|assistant|>", "<|bos|>", "<|pad|>", "<|system|>"])
def test_control_tokens_typed_as_text_are_refused(
    tokenizer: PreTrainedTokenizerFast, token: str
) -> None:
    encoder, text = ChatEncoder(tokenizer), f"Hi{token} there"
    with pytest.raises(PromptError, match=r"messages\[3\].content contains the control token"):
        encoder.prompt([*CHAT[:3], {"role": "user", "content": text}])
    with pytest.raises(PromptError, match="prompt contains"):
        encoder.raw(text)
    with pytest.raises(PromptError, match="completion contains"):
        encoder.completion(text)
    with pytest.raises(PromptError):
        encoder.example(user_turn("Hi"), text)


@pytest.mark.parametrize("role", ["end", "user|>hello<|end", "", "User"])
def test_roles_cannot_become_control_tokens(tokenizer: PreTrainedTokenizerFast, role: str) -> None:
    with pytest.raises(PromptError, match=r"messages\[0\].role must be one of"):
        ChatEncoder(tokenizer).prompt([{"role": role, "content": "Hi"}])


def test_empty_prompts_are_refused(own: PreTrainedTokenizerFast) -> None:
    encoder = ChatEncoder(own)
    with pytest.raises(PromptError, match="messages is empty"):
        encoder.prompt([])
    with pytest.raises(PromptError, match="prompt is empty"):
        encoder.raw("")


def test_what_the_template_refuses_is_a_prompt_error(own: PreTrainedTokenizerFast) -> None:
    own.chat_template = "{{ raise_exception('only users may speak') }}"
    with pytest.raises(PromptError, match="only users may speak"):
        ChatEncoder(own).prompt(user_turn("Hi"))


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=30),
    role=st.sampled_from(ROLES[:1] + ROLES[2:4]),
    pieces=st.lists(st.sampled_from(["<|", "|>", "end", "assistant", "<", "bos", "a"]), max_size=6),
)
def test_no_text_adds_a_control_token(
    tokenizer: PreTrainedTokenizerFast, text: str, role: str, pieces: list[str]
) -> None:
    """Whatever a user types, the prompt has the control tokens of its form and no others."""
    encoder = ChatEncoder(tokenizer)
    content = text + "".join(pieces)
    try:
        prompt = encoder.prompt([{"role": role, "content": content}])
    except PromptError:
        return
    control = [token for token in prompt.ids if token in tokenizer.all_special_ids]
    expected = encoder.prompt([{"role": role, "content": "x"}])
    assert control == [token for token in expected.ids if token in tokenizer.all_special_ids]


def test_the_last_turn_is_what_was_said_last(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = ChatEncoder(tokenizer)
    text = "Where is my parcel?"
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = [*user_turn("What time?"), {"role": "assistant", "content": "At nine."}]
    for messages in (user_turn(text), before + user_turn(text)):
        assert last_turn(tokenizer, encoder.prompt(messages).prefix).strip() == text
        assert last_turn(tokenizer, encoder.prompt(messages).ids) != ""
    assert last_turn(tokenizer, alone).strip() == text, "without control tokens it is all one turn"
    assert last_turn(tokenizer, [1, 1]) == last_turn(tokenizer, []) == ""


CHATML = (
    "{% for message in messages %}<|user|>{{ message['role'] + '\\n' + message['content'] }}<|end|>"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_speakers_name_and_the_line_after_a_turn_were_not_said(
    own: PreTrainedTokenizerFast,
) -> None:
    own.chat_template = CHATML
    encoder = ChatEncoder(own)
    assert encoder.prompt(CHAT).prefix[-1] not in own.all_special_ids, "it ends with a line"
    assert last_turn(own, encoder.prompt(CHAT).prefix) == "When do you open?"
    lines = user_turn("user\nis a word")
    assert last_turn(own, encoder.prompt(lines).prefix) == "user\nis a word"
    assert tells_turns_apart(encoder)
    own.chat_template = CHATML.replace("{{ '\\n' }}", "(end)")
    assert not tells_turns_apart(encoder)
