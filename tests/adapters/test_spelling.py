"""Words and pieces of words as numbers."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from adapters.spelling import BUCKETS, bucket_of_word, buckets_of, words_of


def share(one: str, other: str) -> float:
    """How much of the smaller bag is in both."""
    first, second = Counter(buckets_of(one)), Counter(buckets_of(other))
    return (first & second).total() / min(first.total(), second.total())


def test_words_are_in_small_letters_and_signs_are_words() -> None:
    assert words_of("Where's my PARCEL, please?") == [
        "where",
        "'",
        "s",
        "my",
        "parcel",
        ",",
        "please",
        "?",
    ]
    assert words_of("  ") == []
    assert buckets_of("") == []


def test_a_word_is_itself_and_its_pieces_of_three_and_four_letters() -> None:
    # <is> is three pieces of three and four letters, but for the whole, which is the word itself
    assert len(buckets_of("is")) == 1 + 2
    assert len(buckets_of("lamp")) == 1 + 4 + 3
    assert buckets_of("lamp")[0] == bucket_of_word("lamp")


def test_kin_and_mistyped_words_share_pieces_and_others_do_not() -> None:
    assert share("shipping", "shipped") > 0.4
    assert share("refund", "refudn") > 0.2
    assert share("refund", "lamp") == 0


def test_numbers_are_the_same_everywhere() -> None:
    """Artifacts keep what was learned for them."""
    assert bucket_of_word("refund") == 1056  # crc32 of wrefund, modulo 2**14
    assert buckets_of("ab") == [15701, 407, 12904]  # of wab, c<ab and cab>


@given(st.text(max_size=40))
def test_any_text_has_numbers_in_range(text: str) -> None:
    assert all(0 <= bucket < BUCKETS for bucket in buckets_of(text))


@given(st.lists(st.sampled_from(["refund", "lamp", "my", "?"]), max_size=6))
def test_spaces_and_order_do_not_matter(words: list[str]) -> None:
    assert Counter(buckets_of(" ".join(words))) == Counter(buckets_of("  ".join(words[::-1])))
