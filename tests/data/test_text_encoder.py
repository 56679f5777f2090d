"""Texts and pairs as token sequences, cut as Transformers cuts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.text_encoder import TextEncoder, truncated_sizes
from jaxlm.errors import UserError
from tests.conftest import sentences

LONG, SHORT = " ".join(sentences(20)), "a river"


@given(sizes=st.tuples(st.integers(0, 40), st.integers(0, 40)), room=st.integers(0, 50))
def test_the_longer_text_is_cut_first_and_nothing_more_than_needed(sizes, room):
    cut = truncated_sizes(sizes, room, "longest_first")
    assert sum(cut) == min(sum(sizes), room)
    assert all(after <= before for after, before in zip(cut, sizes, strict=True))
    shorter = min(sizes)
    if shorter <= room // 2:  # then only the longer one is cut
        assert min(shorter, *cut) == shorter or sum(sizes) <= room


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5), room=st.integers(0, 60))
def test_of_several_texts_the_longest_loses_one_token_after_another(sizes, room):
    expected = list(sizes)
    while sum(expected) > room:
        expected[max(range(len(sizes)), key=lambda number: (expected[number], -sizes[number], -number))] -= 1
    assert sorted(truncated_sizes(sizes, room, "longest_first")) == sorted(expected)


def test_longest_first_is_that_of_transformers():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for room in range(1, 14):
        tokenizer.enable_truncation(room, strategy="longest_first")
        for first in range(1, 9):
            for second in range(1, 9):
                encoding = tokenizer.encode("a " * first, "b " * second)
                sizes = [encoding.ids.count(0), encoding.ids.count(1)]
                assert truncated_sizes([first, second], room, "longest_first") == sizes, (first, second, room)


def test_pairs_keep_their_types_and_roberta_separates_with_two_ends(tokenizer):
    for separators in (1, 2):
        encoded = TextEncoder(tokenizer, 32, separators=separators)([(LONG, SHORT), (SHORT, SHORT)], ["1", "2"])
        assert encoded.truncated == 1
        first, second = encoded.tokens
        assert len(first) == 32
        count = len(tokenizer.encode(SHORT).ids)
        assert encoded.token_types[0].tolist() == [0] * (31 - count) + [1] * (count + 1)
        assert (second == tokenizer.end_id).sum() == 1 + separators
        assert second[0] == tokenizer.begin_id


@pytest.mark.parametrize(("policy", "cut"), [("first", 0), ("second", 1)])
def test_one_text_of_a_pair_is_cut(tokenizer, policy, cut):
    texts = [LONG, LONG]
    texts[1 - cut] = SHORT
    encoded = TextEncoder(tokenizer, 32, policy)([texts], ["1"])
    assert len(encoded.tokens[0]) == 32
    with pytest.raises(UserError, match=r"row 7: .* tokens, but at most 32 fit"):
        TextEncoder(tokenizer, 32, policy)([texts[::-1]], ["row 7"])


def test_a_text_that_is_too_long_is_refused_with_its_place(tokenizer):
    with pytest.raises(UserError, match=r"a\.tsv, line 3: .* tokens, but at most 32 fit; shorten it"):
        TextEncoder(tokenizer, 32, "refuse")([(LONG,)], ["a.tsv, line 3"])
