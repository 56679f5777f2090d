"""Words as pieces, with the ids of Transformers, and the windows of sentences longer than the model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.word_encoder import encode_words, windows
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.tokenizer.examples import byte_level, metaspace, saved, wordpiece

SENTENCES = [
    ["Where", "is", "paulwalk's", "Empire", "ESB", "?"],
    ["", "naïve", "\u00a0", "\u200b", "日本", "can't"],
    [],
]


@pytest.mark.parametrize("name", ["wordpiece", "byte_level", "metaspace"])
def test_the_pieces_of_words_are_those_of_transformers(tmp_path, name):
    from tokenizers import pre_tokenizers

    backend = {"wordpiece": wordpiece, "byte_level": byte_level, "metaspace": metaspace}[name]()
    tokenizer = load_tokenizer(saved(backend, tmp_path))
    if name == "byte_level":  # Transformers requires add_prefix_space for words
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for words, found in zip(SENTENCES, encode_words(SENTENCES, tokenizer), strict=True):
        kept = [word for word in words if word]  # the oracle gives a space marker for an empty word
        wanted = backend.encode(kept, is_pretokenized=True, add_special_tokens=False).ids
        assert [int(id) for pieces in found for id in pieces] == wanted
        assert len(found) == len(words)


@settings(deadline=None)
@given(sizes=st.lists(st.one_of(st.integers(0, 2), st.integers(0, 9)), max_size=40), room=st.integers(1, 9))
def test_windows_cover_each_word_and_choose_the_one_with_most_context(sizes, room):
    sizes = [min(size, room) for size in sizes]
    found = windows(sizes, room)
    assert {word for words in found.words for word in words} == set(range(len(sizes)))
    assert all(sum(sizes[words.start : words.stop]) <= room for words in found.words)
    assert len(found.chosen) == len(sizes)

    def context(words, word):
        return min(sum(sizes[words.start : word]), sum(sizes[word : words.stop]))

    for word, chosen in enumerate(found.chosen):
        best = max(context(words, word) for words in found.words if word in words)
        assert context(found.words[chosen], word) == best


def test_windows_overlap_by_half_and_the_last_is_full():
    found = windows([1] * 27, 10)
    assert found.words == [range(10), range(5, 15), range(10, 20), range(15, 25), range(17, 27)]
    assert found.chosen.tolist() == [0] * 8 + [1] * 5 + [2] * 5 + [3] * 4 + [4] * 5
    assert windows([3, 0, 4], 7).words == [range(3)]
    assert windows([], 7).words == [range(0)]
