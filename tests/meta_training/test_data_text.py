from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meta_training.data.text import clean, decode, detokenize, has_words


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  two\t words \n", "two words"),
        ("no\u00a0break", "no break"),
        ("be\u0301bé", "bébé"),
        ("a\x00b\x07c\u200bd\ufeff\ud83d", "abcd"),
        ("fish &amp; chips&#39; &quot;x&quot;", 'fish & chips\' "x"'),
        ("AT&T and R&D; &unknown;", "AT&T and R&D; &unknown;"),
        ("FlamencÃ³, donâ€™t, â€œsoâ€\x9d", "Flamencó, don’t, “so”"),
        ("ðŸ˜€ smile", "😀 smile"),
    ],
)
def test_clean_repairs_text(raw: str, expected: str) -> None:
    assert clean(raw) == expected


@pytest.mark.parametrize(
    "honest",
    ["CAFÉ… “à la carte”", "MENÜ“", "château, São, Âlang", "Größe 5½", "你好，我饿了。", "مرحبا؟"],
)
def test_clean_leaves_honest_text_alone(honest: str) -> None:
    assert clean(honest) == honest


@given(st.text())
def test_cleaned_text_is_normal_single_spaced_and_printable(raw: str) -> None:
    text = clean(raw)
    assert unicodedata.is_normalized("NFC", text)
    assert text == " ".join(text.split())
    assert not any(unicodedata.category(character) == "Cc" for character in text)


def test_layout_is_kept_where_it_matters() -> None:
    assert clean("def f():\r\n    return  1\x00\n\n", keep_layout=True) == "def f():\n    return  1"


def test_detokenize_joins_punctuation_and_contractions() -> None:
    split = "It 's 5 stars , is n't it ? We 'll see ( maybe ) : yes ."
    assert detokenize(split) == "It's 5 stars, isn't it? We'll see (maybe): yes."


def test_has_words_in_any_script() -> None:
    assert all(map(has_words, ("४", "好", "4?")))
    assert not has_words(" ?! 😳 ,")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_decode_reads_old_encodings(encoding: str) -> None:
    assert decode("Málaga – “sí”".encode(encoding)) == "Málaga – “sí”"
