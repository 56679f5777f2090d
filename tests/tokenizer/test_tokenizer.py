import itertools
import json
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from jaxlm.tokenizer.special_tokens import HIDDEN
from jaxlm.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from jaxlm.tokenizer.words import word_boundaries
from tests.tokenizer.examples import (
    STRANGE,
    TYPED,
    WORDS,
    byte_level,
    pieces,
    saved,
    slices,
    tokenizer_settings,
    wordpiece,
)

NAMES = ("unigram", "bpe", "lower", "bytes", "wordpiece", "byte_level", "metaspace")
every_tokenizer = pytest.mark.parametrize("name", NAMES)
every_sentencepiece = pytest.mark.parametrize("name", NAMES[:4])
some_text = st.one_of(
    st.text(),
    st.text(st.sampled_from(STRANGE)),
    st.lists(st.sampled_from(WORDS + TYPED + list(STRANGE)) | st.text(max_size=3), max_size=12).map(" ".join),
    st.lists(st.sampled_from(WORDS + TYPED + list(STRANGE)), max_size=12).map("".join),
)


# Any text


@every_tokenizer
@settings(deadline=None, max_examples=60)
@given(text=some_text | st.text(st.characters()), find_mask=st.booleans())
def test_any_text_has_valid_ids_and_offsets(tokenizers, name, text, find_mask):
    tokenizer = tokenizers[name]
    encoding = tokenizer.encode(text, find_mask)
    ids, offsets = tokenizer.encode_with_offsets(text, find_mask)
    assert encoding.ids.dtype == ids.dtype == offsets.dtype == np.int32
    assert encoding.word_starts.dtype == bool
    assert encoding.word_starts.shape == encoding.ids.shape
    assert encoding.ids.tolist() == ids.tolist()
    assert offsets.shape == (len(ids), 2)
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    assert (offsets[:, 0] >= 0).all()
    assert (offsets[:, 0] <= offsets[:, 1]).all()
    assert (offsets <= len(text)).all()
    assert (np.diff(offsets[:, 0]) >= 0).all()
    assert isinstance(tokenizer.decode(ids), str)
    starts = tokenizer.pretoken_starts(text)
    assert (starts.dtype, starts.shape) == (bool, tokenizer.encode(text).ids.shape)


@pytest.mark.parametrize(
    ("name", "begins"), [("wordpiece", [0, 4, 6, 7]), ("byte_level", [0, 4, 6, 7]), ("unigram", [0, 4])]
)
def test_pretokens_are_what_the_tokenizer_splits_first(tokenizers, name, begins):
    tokenizer, text = tokenizers[name], "the of-the"
    _, offsets = tokenizer.encode_with_offsets(text)
    assert offsets[tokenizer.pretoken_starts(text), 0].tolist() == begins


@every_tokenizer
def test_surrogates_and_the_hidden_character_are_unknown(tokenizers, name):
    tokenizer = tokenizers[name]
    text = f"the \ud800 {HIDDEN * len(tokenizer.mask_token)} the"
    ids, offsets = tokenizer.encode_with_offsets(text, find_mask=True)
    assert tokenizer.mask_id not in ids.tolist()
    assert tokenizer.encode_batch(["of", text])[1].ids.tolist() == ids.tolist()
    assert text[slice(*offsets[-1].tolist())].endswith(("the", "he", "e"))


@every_tokenizer
@settings(deadline=None, max_examples=60)
@given(text=some_text)
def test_literal_special_tokens_in_training_text_remain_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    ids = set(tokenizer.encode(text).ids.tolist()) | set(tokenizer.encode_with_offsets(text)[0].tolist())
    assert not ids & set(tokenizer.special_ids) - {tokenizer.unk_id}


@every_tokenizer
def test_special_tokens_are_found_on_request(tokenizers, name):
    tokenizer = tokenizers[name]
    special = [
        tokenizer.token(id) for id in (tokenizer.end_id, tokenizer.begin_id, tokenizer.pad_id, tokenizer.mask_id)
    ]
    text = f"the {special[0]} of {special[1]}{special[2]} is x{special[3]}y"
    ids = tokenizer.encode(text, find_special=True).ids.tolist()
    assert [id for id in ids if id in tokenizer.special_ids and id != tokenizer.unk_id] == [
        tokenizer.end_id, tokenizer.begin_id, tokenizer.pad_id, tokenizer.mask_id
    ]  # fmt: skip
    again, offsets = tokenizer.encode_with_offsets(text, find_special=True)
    assert again.tolist() == ids
    found = [text[slice(*offsets[ids.index(id)].tolist())] for id in (tokenizer.end_id, tokenizer.mask_id)]
    assert found == [special[0], special[3]]
    only_mask = tokenizer.encode(text, find_mask=True).ids.tolist()
    assert tokenizer.mask_id in only_mask
    assert not {tokenizer.end_id, tokenizer.begin_id, tokenizer.pad_id} & set(only_mask)
    batch = tokenizer.encode_batch(["the of", text, "", "is"], find_special=True)
    assert [encoding.ids.tolist() for encoding in batch] == [
        tokenizer.encode("the of").ids.tolist(), ids, [], tokenizer.encode("is").ids.tolist()
    ]  # fmt: skip


@every_tokenizer
def test_a_literal_special_token_is_several_tokens(tokenizers, name):
    for literal in TYPED:
        assert len(tokenizers[name].encode(f"a {literal} b").ids) >= 3 + (name != "metaspace")


@every_tokenizer
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(some_text, max_size=5))
def test_a_batch_has_the_same_tokens_as_single_texts(tokenizers, name, texts):
    tokenizer = tokenizers[name]
    for text, (ids, word_starts) in zip(texts, tokenizer.encode_batch(texts), strict=True):
        alone = tokenizer.encode(text)
        assert ids.tolist() == alone.ids.tolist()
        assert word_starts.tolist() == alone.word_starts.tolist()


@every_sentencepiece
@settings(deadline=None, max_examples=200)
@given(texts=st.lists(some_text, min_size=1, max_size=4))
def test_word_starts_from_lengths_equal_those_from_the_offsets_of_sentencepiece(tokenizers, name, texts):
    tokenizer = tokenizers[name]
    for text, (_, word_starts) in zip(texts, tokenizer.encode_batch(texts), strict=True):
        _, firsts, _, boundaries = tokenizer._spans(text, False)
        expected = [
            bool(boundaries[at]) and (number == 0 or firsts[number - 1] != at) for number, at in enumerate(firsts)
        ]
        assert word_starts.tolist() == expected


@every_sentencepiece
def test_ordinary_text_does_not_need_the_slow_offsets_of_sentencepiece(tokenizers, name, monkeypatch):
    text = "the Paris\tof\n\n  Zoë 🦙🦙 is 日本語 ＡＢ\xa0walked, THE 3.14."
    _, firsts, _, boundaries = tokenizers[name]._spans(text, False)
    monkeypatch.setattr(tokenizers[name]._backend, "encode_spans", None)
    starts = tokenizers[name].encode_batch(["a.", text, "the end"])[1].word_starts
    assert starts.tolist() == (boundaries[firsts] & (np.diff(firsts, prepend=-1) != 0)).tolist()


def test_word_starts_are_right_if_normalization_lengthens_and_shortens_text(tmp_path):
    rules = tmp_path / "rules.tsv"
    rules.write_text("61 62\t78 79 7A\n63 64\t71\n")  # ab: xyz, cd: q
    texts = ["ab-pp cd-ab", "x y z q p - pp", "a b c d"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(tmp_path / "m"), vocab_size=17, minloglevel=2, pad_id=3,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"], normalization_rule_tsv=str(rules), model_type="char",
        hard_vocab_limit=False,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "m.model")
    ids, word_starts = tokenizer.encode("ab-pp cd")
    words = [
        tokenizer.token(id) for id, start in zip(ids, np.append(word_starts[1:], True), strict=True) if start
    ]  # the last token of each word
    assert [tokenizer.token(id) for id in ids] == ["▁", *"xyz-pp", "▁", "q"]
    assert words == ["z", "-", "p", "q"]


# The mask


@every_tokenizer
def test_the_mask_replaces_a_word_and_the_space_before_it(tokenizers, name):
    tokenizer = tokenizers[name]
    texts = [
        "The capital of France is Paris.", "Paris the", "the Paris", "the  Paris  the", "Paris", "(Paris)",
        "Paris, the",
        "the Paris Paris the", "Paris  Paris", "the\nParis\tthe",
    ]  # fmt: skip
    for text in texts:
        masked = tokenizer.encode(text.replace("Paris", tokenizer.mask_token), find_mask=True).ids.tolist()
        word = [id for id in tokenizer.encode(text).ids.tolist() if tokenizer.text_of(id).lower() == "paris"]
        if not word:  # without its own space before it, "Paris" is several tokens
            assert (
                text.startswith("(")
                or (name, text[:5]) == ("byte_level", "Paris")
                or (name, text[3]) == ("metaspace", "\n")
            )
            continue
        expected = [tokenizer.mask_id if id in word else id for id in tokenizer.encode(text).ids.tolist()]
        if name == "byte_level":  # lstrip takes all white space before the mask
            expected = [
                id
                for id, after in zip(expected, [*expected[1:], None], strict=True)
                if tokenizer.token(id) not in ("Ġ", "Ċ") or after != tokenizer.mask_id
            ]
        assert masked == expected, text


@every_sentencepiece
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_masking_a_word_in_the_text_masks_its_token(tokenizers, name, data):
    tokenizer = tokenizers[name]
    words = data.draw(st.lists(st.sampled_from([*WORDS, "🦙", "½", "."]), min_size=1, max_size=8))
    gaps = data.draw(st.lists(st.sampled_from([" ", "  ", "\n", " \t"]), min_size=len(words), max_size=len(words)))
    text = "".join(word + gap for word, gap in zip(words, gaps, strict=True))
    ids, offsets = tokenizer.encode_with_offsets(text)
    whole = [
        number
        for number, (a, b) in enumerate(offsets.tolist())
        if tokenizer.starts_word(int(ids[number]))
        and a < b
        and (a == 0 or text[a - 1].isspace())
        and (number + 1 == len(ids) or tokenizer.starts_word(int(ids[number + 1])) or offsets[number + 1, 0] == b)
    ]
    chosen = sorted(data.draw(st.sets(st.sampled_from(whole), max_size=3))) if whole else []
    masked, expected = text, ids.copy()
    for number in reversed(chosen):
        a, b = offsets[number].tolist()
        if b < len(text) and not text[b].isspace() and text[b] not in ".,:":
            continue
        masked = masked[:a] + tokenizer.mask_token + masked[b:]
        expected[number] = tokenizer.mask_id
    assert tokenizer.encode(masked, find_mask=True).ids.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the [MASK] the", "▁the [MASK] ▁the"), ("the[MASK] the", "▁the [MASK] ▁the"), ("the [MASK]", "▁the [MASK]"),
        ("[MASK] the", "[MASK] ▁the"), ("[MASK]", "[MASK]"), ("  [MASK]. ", "[MASK] ."),
        ("[MASK].[MASK]", "[MASK] . [MASK]"),
        ("[MASK][MASK]  [MASK] the", "[MASK] [MASK] [MASK] ▁the"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["unigram", "bpe", "lower"])
def test_spaces_around_a_mask(tokenizers, name, text, expected):
    assert pieces(tokenizers[name], text) == expected.split()


def test_a_byte_level_mask_includes_the_space_before_it(tokenizers):
    assert pieces(tokenizers["byte_level"], "is <mask> the") == ["is", "<mask>", "Ġthe"]
    assert pieces(tokenizers["byte_level"], "is<mask>.") == ["is", "<mask>", "."]


def test_the_offsets_of_a_mask_exclude_white_space_after_it(tmp_path):
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    text = "the <mask>  the"
    ids, offsets = load_tokenizer(saved(tokenizer, tmp_path)).encode_with_offsets(text, find_mask=True)
    assert "<mask>" in [text[a:b] for a, b in offsets.tolist()]
    assert len(ids) == len(offsets)


def test_a_mask_is_found_before_normalization(tmp_path):
    tokenizer = wordpiece()
    definition = json.loads(tokenizer.to_str())
    for entry in definition["added_tokens"]:
        entry |= {"normalized": True, "special": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert pieces(load_tokenizer(tmp_path), "THE [MASK].") == ["the", "[MASK]", "."]


def test_a_mask_without_lstrip_keeps_the_space(tmp_path):
    tokenizer = load_tokenizer(saved(byte_level(lstrip=False), tmp_path))
    assert pieces(tokenizer, "is <mask>.") == ["is", "Ġ", "<mask>", "."]


def test_a_mask_is_found_if_text_is_lower_cased(tokenizers):
    for name in ("lower", "wordpiece"):
        ids = tokenizers[name].encode("THE [MASK]", find_mask=True).ids.tolist()
        assert ids[-1] == tokenizers[name].mask_id
        assert tokenizers[name].mask_id not in tokenizers[name].encode("the [mask]", find_mask=True).ids.tolist()


@every_tokenizer
def test_the_offsets_of_a_mask_are_those_in_the_text(tokenizers, name):
    tokenizer = tokenizers[name]
    text = f"½ ﬁ the {tokenizer.mask_token} Paris {tokenizer.mask_token}"
    ids, offsets = tokenizer.encode_with_offsets(text, find_mask=True)
    spans = offsets[ids == tokenizer.mask_id].tolist()
    assert [text[a:b] for a, b in spans] == [tokenizer.mask_token] * 2
    assert tokenizer.encode(text, find_mask=True).word_starts[ids == tokenizer.mask_id].all()


# Offsets


@every_tokenizer
@pytest.mark.parametrize("text", ["x  y\t½ ﬁ end", "  the end", "🦙🦙 end", "Zoe\u0308  end", "a\u200bb … end"])
def test_the_offsets_of_the_last_word_are_right(tokenizers, name, text):
    tokenizer = tokenizers[name]
    _, offsets = tokenizer.encode_with_offsets(text)
    starts = np.flatnonzero(tokenizer.encode(text).word_starts)
    assert text[offsets[starts[-1], 0] : offsets[-1, 1]] == "end"


@every_tokenizer
@pytest.mark.parametrize("word", ["Zoe\u0308", "cafe\u0301", "Été", "e\u0301\u0302"])
def test_a_combining_accent_belongs_to_its_word(tokenizers, name, word):
    text = f" {word}  the\r\n🦙 Ana."
    _, offsets = tokenizers[name].encode_with_offsets(text)
    starts = np.flatnonzero(tokenizers[name].encode(text).word_starts)
    last = starts[1] - 1
    assert text[offsets[0, 0] : offsets[last, 1]] == word


def test_tokens_of_one_character_have_the_same_offsets(tokenizers):
    assert slices(tokenizers["bytes"], "the 🦙")[-4:] == ["🦙"] * 4
    assert slices(tokenizers["byte_level"], "the 🦙")[-4:] == ["🦙"] * 4
    assert slices(tokenizers["unigram"], "the ½")[-2:] == ["½"] * 2


# Word starts


@every_tokenizer
def test_words_begin_at_unicode_word_boundaries(tokenizers, name):
    tokenizer = tokenizers[name]
    text = "well-known walking; don't 3.14 (e.g. café)  🦙\nZoë"
    _, offsets = tokenizer.encode_with_offsets(text)
    word_starts = tokenizer.encode(text).word_starts
    edges = [*offsets[word_starts, 0].tolist(), len(text)]
    words = [text[a:b].strip() for a, b in itertools.pairwise(edges)]
    expected = ["well", "-", "known", "walking", ";", "don't", "3.14", "(", "e.g", ".", "café", ")", "🦙", "Zoë"]
    boundaries = word_boundaries(text, "unicode")
    assert words == expected or (  # where one token holds several words, such as ".)"
        all(boundaries[edge] for edge in edges) and len(words) < len(expected)
    )


@every_tokenizer
def test_tokens_inside_a_word_do_not_start_one(tokenizers, name):
    tokenizer = tokenizers[name]
    ids, word_starts = tokenizer.encode("qqqqq zzzzzzz")
    assert len(ids) >= 2
    assert word_starts.sum() == 2
    assert word_starts[0]


def test_a_space_marker_by_itself_starts_the_word_after_it(tokenizers):
    encoding = tokenizers["unigram"].encode("the 🦙")
    assert [tokenizers["unigram"].token(id) for id in encoding.ids] == ["▁the", "▁", "[UNK]"]
    assert encoding.word_starts.tolist() == [True, True, False]


@every_tokenizer
def test_the_rule_spaces_separates_words_at_spaces(tokenizers, name):
    tokenizer = tokenizers[name].with_words("spaces")
    text = "我们 喜欢 学习 x-y."
    _, offsets = tokenizer.encode_with_offsets(text)
    assert offsets[tokenizer.encode(text).word_starts, 0].tolist() == [0, 3, 6, 9]
    assert tokenizer.fingerprint != tokenizers[name].fingerprint


def test_jieba_finds_chinese_words(tmp_path):
    pytest.importorskip("jieba")
    texts = ["我们喜欢学习机器学习。", "机器喜欢我们。"] * 10
    tokenizer = train_tokenizer(texts, tokenizer_settings(vocab_size=17, words="jieba"), tmp_path)
    text = "我们喜欢学习机器学习。"
    (encoding, _) = tokenizer.encode_batch([text, texts[1]])
    _, offsets = tokenizer.encode_with_offsets(text)
    assert set(offsets[encoding.word_starts, 0].tolist()) <= {0, 2, 4, 6, 8, 10}
    assert encoding.word_starts.sum() < tokenizer.with_words("unicode").encode(text).word_starts.sum()


# Single tokens


@every_tokenizer
def test_text_and_length_of_a_token(tokenizers, name):
    tokenizer = tokenizers[name]
    by_piece = {tokenizer.token(id): id for id in range(tokenizer.vocab_size)}
    for piece in ("▁the", "Ġthe", "the"):
        if piece in by_piece:
            assert tokenizer.text_of(by_piece[piece]) == "the"
            assert tokenizer.starts_word(by_piece[piece]) == (piece != "the" or name == "wordpiece")
            assert tokenizer.piece_bytes()[by_piece[piece]] == len(piece)
    assert all(tokenizer.text_of(id) == "" for id in tokenizer.special_ids)
    assert not tokenizer.piece_bytes()[list(tokenizer.special_ids)].any()
    assert tokenizer.piece_bytes().dtype == np.int32
    assert tokenizer.piece_bytes().shape == (tokenizer.vocab_size,)


def test_continuation_prefixes_are_not_part_of_the_text(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    ing = next(id for id in range(tokenizer.vocab_size) if tokenizer.token(id) == "##ing")
    assert tokenizer.text_of(ing) == "ing"
    assert not tokenizer.starts_word(ing)
    assert tokenizer.piece_bytes()[ing] == 3


@every_tokenizer
@settings(deadline=None, max_examples=30)
@given(words=st.lists(st.sampled_from(["the", "of", "café", "Paris", "walking"]), min_size=1, max_size=8))
def test_lengths_add_up_and_decoding_restores_the_text(tokenizers, name, words):
    tokenizer = tokenizers[name]
    text = " ".join(words)
    ids = tokenizer.encode(text).ids
    if tokenizer.unk_id in ids.tolist():
        return
    size = tokenizer.piece_bytes()[ids].sum()
    plain = unicodedata.normalize("NFD", text).encode("ascii", "ignore") if name == "wordpiece" else text.encode()
    spaces = {"wordpiece": -text.count(" "), "byte_level": 0}.get(name, 1)
    assert size == len(plain) + spaces
    expected = {"wordpiece": plain.decode().lower(), "lower": text.lower()}.get(name, text)
    assert tokenizer.decode(ids) == expected


def test_a_byte_token_has_length_one(tokenizers):
    for name in ("bytes", "byte_level"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode("🦙").ids
        assert tokenizer.piece_bytes()[ids].sum() == 4 + (name == "bytes")
        assert tokenizer.decode(ids) == "🦙"
        assert tokenizer.text_of(int(ids[-1])) == "\ufffd"


@pytest.mark.parametrize("name", ["unigram", "wordpiece", "byte_level", "metaspace"])
def test_special_tokens_are_found_within_the_given_parts_only(tokenizers, name):
    tokenizer = tokenizers[name]
    mask = tokenizer.mask_token
    text = f"the {mask} and {mask}"
    spans = {(0, len(text)): 2, (len(text) - len(mask), len(text)): 1, (0, 5): 0}
    for span, count in spans.items():
        ids, offsets = tokenizer.encode_with_offsets(text, find_special=True, within=[span])
        assert (ids == tokenizer.mask_id).sum() == count
        assert offsets[-1, 1] == len(text)
    plain, _ = tokenizer.encode_with_offsets(text)
    assert tokenizer.encode_with_offsets(text, find_special=True, within=[])[0].tolist() == plain.tolist()
