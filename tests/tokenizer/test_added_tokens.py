import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jaxlm.errors import UserError
from jaxlm.tokenizer.added_tokens import read_added
from jaxlm.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from tests.tokenizer.examples import (
    STRANGE,
    TYPED,
    WORDS,
    byte_level,
    metaspace,
    saved,
    sentences,
    slices,
    tokenizer_settings,
    wordpiece,
)

NEW = ["zebrafish", "New York", "C++", "ümläut", "机器学习", "Q"]
NAMES = ["unigram", "bytes", "wordpiece", "byte_level", "metaspace"]
every_kind = pytest.mark.parametrize("name", NAMES)


class Made(dict):
    def __repr__(self) -> str:  # otherwise a failed test prints megabytes
        return "made"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Maps a name to a tokenizer and the same tokenizer with added tokens."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = {
        "unigram": train_tokenizer(sentences(), tokenizer_settings(), folder / "unigram"),
        "bytes": train_tokenizer(
            sentences(), tokenizer_settings(algorithm="bpe", byte_fallback=True, vocab_size=420), folder / "bytes"
        ),
    }
    for name, tokenizer in (("wordpiece", wordpiece()), ("byte_level", byte_level()), ("metaspace", metaspace())):
        found[name] = load_tokenizer(saved(tokenizer, folder / name))
    return Made({name: (tokenizer, tokenizer.with_added(NEW)) for name, tokenizer in found.items()})


def token_of(tokenizer, word):
    return [tokenizer.token(id) for id in range(tokenizer.vocab_size)].index(word)


@every_kind
def test_added_tokens_are_at_the_end_of_the_vocabulary(made, name):
    old, new = made[name]
    assert set(new.added) <= set(NEW)
    assert set(NEW[:5]) <= set(new.added)
    assert new.vocab_size == old.vocab_size + len(new.added)
    for number, word in enumerate(new.added):
        id = old.vocab_size + number
        assert new.token(id) == new.text_of(id) == word
        assert new.starts_word(id)
        assert new.piece_bytes()[id] == len(word.encode()) + (name != "wordpiece")
        assert id not in new.special_ids
    assert new.fingerprint != old.fingerprint
    assert old.added == ()


@every_kind
@settings(deadline=None, max_examples=60)
@given(text=st.text() | st.text(st.sampled_from(STRANGE)) | st.lists(st.sampled_from(WORDS + TYPED)).map(" ".join))
def test_text_without_added_tokens_is_encoded_as_before(made, name, text):
    old, new = made[name]
    if not any(word in text for word in NEW):
        assert new.encode(text, True).ids.tolist() == old.encode(text, True).ids.tolist()
        assert new.encode(text).word_starts.tolist() == old.encode(text).word_starts.tolist()


@every_kind
@settings(deadline=None, max_examples=60)
@given(words=st.lists(st.sampled_from(WORDS[:30] + NEW[:4] * 4), min_size=1, max_size=8))
def test_each_added_token_is_one_token_and_can_be_masked(made, name, words):
    _, new = made[name]
    text = " ".join(words)
    ids, offsets = new.encode_with_offsets(text)
    chosen = [token_of(new, word) for word in words if word in new.added]
    assert [id for id in ids.tolist() if id >= new.vocab_size - len(new.added)] == chosen
    starts = new.encode(text).word_starts
    for at in np.flatnonzero(ids >= new.vocab_size - len(new.added)).tolist():
        begin, end = offsets[at].tolist()
        assert text[begin:end] == new.token(int(ids[at]))
        assert starts[at]
        masked = text[:begin] + new.mask_token + text[end:]
        expected = [*ids[:at].tolist(), new.mask_id, *ids[at + 1 :].tolist()]
        assert new.encode(masked, find_mask=True).ids.tolist() == expected
    (batched, _) = new.encode_batch([text, "the"])
    assert batched.ids.tolist() == ids.tolist()
    assert batched.word_starts.tolist() == starts.tolist()


@every_kind
def test_decoding_restores_added_tokens(made, name):
    _, new = made[name]
    for text in ("the zebrafish of paris", "zebrafish is the zebrafish", "is New York", "the ümläut of"):
        decoded = new.decode(new.encode(text).ids)
        assert decoded == text or new.unk_id in new.encode(text).ids.tolist()


@every_kind
@pytest.mark.parametrize(
    "text", ["zebrafishes", "xzebrafish", "zebrafish_", "New Yorker", "zebrafish\u0301", "New  York"]
)
def test_a_part_of_a_longer_word_is_not_found(made, name, text):
    old, new = made[name]
    assert new.encode(text).ids.tolist() == old.encode(text).ids.tolist()


@every_kind
@pytest.mark.parametrize("text", ["(zebrafish)", "zebrafish-", "zebrafish.", "\tzebrafish\n", "我们机器学习吧"])
def test_punctuation_and_scripts_without_spaces_end_a_word(made, name, text):
    _, new = made[name]
    word = "机器学习" if "机" in text else "zebrafish"
    ids = new.encode(text).ids.tolist()
    assert ids.count(token_of(new, word)) == 1
    assert slices(new, text)[ids.index(token_of(new, word))] == word


@every_kind
def test_added_tokens_are_saved_and_loaded(made, name, tmp_path):
    _, new = made[name]
    new.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == new.fingerprint
    assert loaded.added == new.added
    text = "the zebrafish of New York (C++)"
    assert loaded.encode(text).ids.tolist() == new.encode(text).ids.tolist()
    more = loaded.with_added(["aardvark", "zebrafish"])
    assert more.added == (*new.added, "aardvark")
    respaced = new.with_words("spaces").with_added(["aardvark"])
    assert (respaced.added, respaced.words) == (more.added, "spaces")
    assert respaced.encode(text).ids.tolist() == more.encode(text).ids.tolist()


def test_known_repeated_and_empty_words_are_skipped(made):
    old, _ = made["unigram"]
    assert old.with_added(["the", "zebu", "", "  ", " zebu ", "Paris", "▁of"]).added == ("zebu",)
    assert old.with_added([]) is old


@pytest.mark.parametrize(
    ("word", "message"),
    [("a[SEP]", r"contains the special token \[SEP\]"), ("a\nb", "line end"), ("\U00100000", "private-use")],
)
def test_a_word_that_cannot_be_added_is_reported(made, word, message):
    with pytest.raises(UserError, match=message):
        made["unigram"][0].with_added([word])


def test_characters_used_as_internal_names_are_unknown_in_text(made):
    _, new = made["unigram"]
    assert new.encode("the \U00100000").ids.tolist()[-1] == new.unk_id


def test_an_exported_definition_finds_added_tokens(made):
    for name in NAMES:
        _, new = made[name]
        theirs = Tokenizer.from_str(new.transformers_files(64)["tokenizer.json"].decode())
        for text in ("the zebrafish, New York", "xC++ C++", "机器学习 zebrafishzebrafish", "New York New York"):
            assert theirs.encode(text, add_special_tokens=False).ids == new.encode(text).ids.tolist()


def test_a_file_of_tokens_has_one_per_line(tmp_path):
    file = tmp_path / "new.txt"
    file.write_bytes("\ufeffzebrafish\r\n\n New York \n".encode())
    assert read_added(file) == ["zebrafish", "New York"]
    file.write_bytes(b"good\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"new\.txt, line 2, byte 8: not UTF-8"):
        read_added(file)
    file.write_text("\n \n")
    with pytest.raises(UserError, match="contains no tokens; write one token per line"):
        read_added(file)
    with pytest.raises(UserError, match=r"cannot read .*nowhere"):
        read_added(tmp_path / "nowhere")
