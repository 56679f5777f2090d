import itertools
import json
import logging
import random
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.tokenizer.sentencepiece_schema import parse_model
from jaxlm.tokenizer.sentencepiece_training import sentences_of
from jaxlm.tokenizer.special_tokens import HIDDEN
from jaxlm.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from jaxlm.tokenizer.words import word_boundaries

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
WORDS = [
    "the", "of", "and", "to", "in", "is", "it", "that", "was", "he", "for", "on", "are", "with", "as", "his",
    "they", "be", "at", "one", "have", "this", "from", "Paris", "France", "London", "capital", "museum", "river's",
    "well-known", "history,", "(which)", "1889:", "3.14", "e.g.", "walking", "walked", "walks", "don't", "café",
    "naïve", "Zoë",
]  # fmt: skip
TYPED = ["[MASK]", "[SEP]", "[CLS]", "[PAD]", "[UNK]", "<s>", "</s>", "<mask>", "<pad>", "<unk>", "<extra>"]
STRANGE = "½ﬁ…e\u0301\u0308🦙日本　ＡBc\xa0\u200b\u200d\xad\0\x01▁\n\r\t ㎏ İßĲ\u0300ẍx\U0010ffff한각\u1100\u1161'’."


def sentences(count=300, seed=0):
    """Frequent words among rare ones, as in real text, so that frequent words become one token each."""
    draw = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkTE"
    texts = []
    for _ in range(count):
        rare = ["".join(draw.choices(letters, range(24, 0, -1), k=draw.randint(2, 7))) for _ in range(4)]
        words = [*draw.choices(WORDS, k=8), *draw.choices(["Paris", "the", "capital", "of", "is"], k=4), *rare]
        texts.append(" ".join(draw.sample(words, len(words))) + ".")
    return texts


def tokenizer_settings(**changes):
    config = default_config().tokenizer
    config.vocab_size = 225
    for name, value in changes.items():
        config[name] = value
    return config


def wordpiece(**normalization):
    pieces = [
        *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"],
        *"abcdefghijklmnopqrstuvwxyz.,'[]:x",
        "é",
        "字",
        "🦙",
    ]
    pieces += ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyzé"] + ["paris", "Paris", "the", "capital", "walk"]
    pieces += ["##ing", "##ed", "##s", "of", "is", "##s]"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**({"lowercase": True} | normalization))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def byte_level(lstrip=True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=lstrip, special=True), "<extra>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


def metaspace():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *sorted(set("".join(WORDS)) - {"x"}), "▁the", "▁Paris", "ing"]
    tokenizer = Tokenizer(models.Unigram([(p, -0.5 if len(p) > 1 else -1.0) for p in [*pieces, "<mask>"]], unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    return tokenizer


def saved(tokenizer, directory):
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One of each kind, by name."""
    folder = tmp_path_factory.mktemp("tokenizers")
    trained = {
        "unigram": tokenizer_settings(),
        "bpe": tokenizer_settings(algorithm="bpe"),
        "lower": tokenizer_settings(lower_case=True, vocab_size=210),
        "bytes": tokenizer_settings(algorithm="bpe", byte_fallback=True, vocab_size=400, character_coverage=0.98),
    }
    made = {name: train_tokenizer(sentences(), config, folder / name) for name, config in trained.items()}
    for name, tokenizer in (("wordpiece", wordpiece()), ("byte_level", byte_level()), ("metaspace", metaspace())):
        made[name] = load_tokenizer(saved(tokenizer, folder / name))
    return made


NAMES = ("unigram", "bpe", "lower", "bytes", "wordpiece", "byte_level", "metaspace")
every_tokenizer = pytest.mark.parametrize("name", NAMES)
every_sentencepiece = pytest.mark.parametrize("name", NAMES[:4])
some_text = st.one_of(
    st.text(),
    st.text(st.sampled_from(STRANGE)),
    st.lists(st.sampled_from(WORDS + TYPED + list(STRANGE)) | st.text(max_size=3), max_size=12).map(" ".join),
    st.lists(st.sampled_from(WORDS + TYPED + list(STRANGE)), max_size=12).map("".join),
)


def pieces(tokenizer, text, find_mask=True):
    return [tokenizer.token(id) for id in tokenizer.encode(text, find_mask).ids.tolist()]


def slices(tokenizer, text, find_mask=False):
    return [text[a:b] for a, b in tokenizer.encode_with_offsets(text, find_mask)[1].tolist()]


# Any text


@every_tokenizer
@settings(deadline=None, max_examples=60)
@given(text=some_text | st.text(st.characters()), find_mask=st.booleans())
def test_any_text_gives_valid_ids_and_spans(tokenizers, name, text, find_mask):
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


@every_tokenizer
def test_surrogates_and_our_own_hidden_character_are_ordinary_unknowns(tokenizers, name):
    tokenizer = tokenizers[name]
    text = f"the \ud800 {HIDDEN * len(tokenizer.mask_token)} the"
    ids, offsets = tokenizer.encode_with_offsets(text, find_mask=True)
    assert tokenizer.mask_id not in ids.tolist()
    assert tokenizer.encode_batch(["of", text])[1].ids.tolist() == ids.tolist()
    assert text[slice(*offsets[-1].tolist())].endswith(("the", "he", "e"))


@every_tokenizer
@settings(deadline=None, max_examples=60)
@given(text=some_text)
def test_typed_special_tokens_in_training_text_are_plain_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    ids = set(tokenizer.encode(text).ids.tolist()) | set(tokenizer.encode_with_offsets(text)[0].tolist())
    assert not ids & set(tokenizer.special_ids) - {tokenizer.unk_id}


@every_tokenizer
def test_a_typed_special_token_is_spelled_out(tokenizers, name):
    for typed in TYPED:
        assert len(tokenizers[name].encode(f"a {typed} b").ids) >= 3 + (name != "metaspace")


@every_tokenizer
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(some_text, max_size=5))
def test_a_batch_is_the_same_as_one_by_one(tokenizers, name, texts):
    tokenizer = tokenizers[name]
    for text, (ids, word_starts) in zip(texts, tokenizer.encode_batch(texts), strict=True):
        alone = tokenizer.encode(text)
        assert ids.tolist() == alone.ids.tolist()
        assert word_starts.tolist() == alone.word_starts.tolist()


@every_sentencepiece
@settings(deadline=None, max_examples=200)
@given(texts=st.lists(some_text, min_size=1, max_size=4))
def test_word_starts_from_lengths_are_those_from_the_librarys_offsets(tokenizers, name, texts):
    tokenizer = tokenizers[name]
    for text, (_, word_starts) in zip(texts, tokenizer.encode_batch(texts), strict=True):
        _, firsts, _, boundaries = tokenizer._spans(text, False)
        expected = [
            bool(boundaries[at]) and (number == 0 or firsts[number - 1] != at) for number, at in enumerate(firsts)
        ]
        assert word_starts.tolist() == expected


@every_sentencepiece
def test_ordinary_text_needs_none_of_the_librarys_slow_offsets(tokenizers, name, monkeypatch):
    text = "the Paris\tof\n\n  Zoë 🦙🦙 is 日本語 ＡＢ\xa0walked, THE 3.14."
    _, firsts, _, boundaries = tokenizers[name]._spans(text, False)
    monkeypatch.setattr(tokenizers[name]._backend, "encode_spans", None)
    starts = tokenizers[name].encode_batch(["a.", text, "the end"])[1].word_starts
    assert starts.tolist() == (boundaries[firsts] & (np.diff(firsts, prepend=-1) != 0)).tolist()


def test_words_begin_at_their_places_where_normalisation_moves_text_both_ways(tmp_path):
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
    ]  # the last token of each
    assert [tokenizer.token(id) for id in ids] == ["▁", *"xyz-pp", "▁", "q"]
    assert words == ["z", "-", "p", "q"]


# The mask


@every_tokenizer
def test_the_mask_takes_the_place_of_a_word_and_its_space(tokenizers, name):
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
def test_masking_a_word_in_the_text_is_masking_its_token(tokenizers, name, data):
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


def test_a_byte_level_mask_takes_the_space_before_it(tokenizers):
    assert pieces(tokenizers["byte_level"], "is <mask> the") == ["is", "<mask>", "Ġthe"]
    assert pieces(tokenizers["byte_level"], "is<mask>.") == ["is", "<mask>", "."]


def test_a_masks_span_has_no_white_space_behind_it(tmp_path):
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    text = "the <mask>  the"
    ids, offsets = load_tokenizer(saved(tokenizer, tmp_path)).encode_with_offsets(text, find_mask=True)
    assert "<mask>" in [text[a:b] for a, b in offsets.tolist()]
    assert len(ids) == len(offsets)


def test_a_mask_that_a_definition_would_normalise_is_found(tmp_path):
    tokenizer = wordpiece()
    definition = json.loads(tokenizer.to_str())
    for entry in definition["added_tokens"]:
        entry |= {"normalized": True, "special": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert pieces(load_tokenizer(tmp_path), "THE [MASK].") == ["the", "[MASK]", "."]


def test_a_mask_without_lstrip_leaves_the_space(tmp_path):
    tokenizer = load_tokenizer(saved(byte_level(lstrip=False), tmp_path))
    assert pieces(tokenizer, "is <mask>.") == ["is", "Ġ", "<mask>", "."]


def test_a_typed_mask_is_found_where_text_is_lower_cased(tokenizers):
    for name in ("lower", "wordpiece"):
        ids = tokenizers[name].encode("THE [MASK]", find_mask=True).ids.tolist()
        assert ids[-1] == tokenizers[name].mask_id
        assert tokenizers[name].mask_id not in tokenizers[name].encode("the [mask]", find_mask=True).ids.tolist()


@every_tokenizer
def test_a_masks_span_is_the_typed_mask(tokenizers, name):
    tokenizer = tokenizers[name]
    text = f"½ ﬁ the {tokenizer.mask_token} Paris {tokenizer.mask_token}"
    ids, offsets = tokenizer.encode_with_offsets(text, find_mask=True)
    spans = offsets[ids == tokenizer.mask_id].tolist()
    assert [text[a:b] for a, b in spans] == [tokenizer.mask_token] * 2
    assert tokenizer.encode(text, find_mask=True).word_starts[ids == tokenizer.mask_id].all()


# Offsets


@every_tokenizer
@pytest.mark.parametrize("text", ["x  y\t½ ﬁ end", "  the end", "🦙🦙 end", "Zoe\u0308  end", "a\u200bb … end"])
def test_the_last_words_slice_is_the_word(tokenizers, name, text):
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


def test_tokens_of_one_character_share_its_span(tokenizers):
    assert slices(tokenizers["bytes"], "the 🦙")[-4:] == ["🦙"] * 4
    assert slices(tokenizers["byte_level"], "the 🦙")[-4:] == ["🦙"] * 4
    assert slices(tokenizers["unigram"], "the ½")[-2:] == ["½"] * 2


# Word starts


@every_tokenizer
def test_words_begin_where_unicode_says(tokenizers, name):
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
def test_tokens_inside_a_word_begin_none(tokenizers, name):
    tokenizer = tokenizers[name]
    ids, word_starts = tokenizer.encode("qqqqq zzzzzzz")
    assert len(ids) >= 2
    assert word_starts.sum() == 2
    assert word_starts[0]


def test_a_space_marker_that_stands_alone_begins_the_word_behind_it(tokenizers):
    encoding = tokenizers["unigram"].encode("the 🦙")
    assert [tokenizers["unigram"].token(id) for id in encoding.ids] == ["▁the", "▁", "[UNK]"]
    assert encoding.word_starts.tolist() == [True, True, False]


@every_tokenizer
def test_segmented_text_has_its_words_between_spaces(tokenizers, name):
    tokenizer = tokenizers[name].with_words("spaces")
    text = "我们 喜欢 学习 x-y."
    _, offsets = tokenizer.encode_with_offsets(text)
    assert offsets[tokenizer.encode(text).word_starts, 0].tolist() == [0, 3, 6, 9]
    assert tokenizer.fingerprint != tokenizers[name].fingerprint


def test_jieba_finds_the_words_of_chinese(tmp_path):
    pytest.importorskip("jieba")
    texts = ["我们喜欢学习机器学习。", "机器喜欢我们。"] * 10
    tokenizer = train_tokenizer(texts, tokenizer_settings(vocab_size=17, words="jieba"), tmp_path)
    text = "我们喜欢学习机器学习。"
    (encoding, _) = tokenizer.encode_batch([text, texts[1]])
    _, offsets = tokenizer.encode_with_offsets(text)
    assert set(offsets[encoding.word_starts, 0].tolist()) <= {0, 2, 4, 6, 8, 10}
    assert encoding.word_starts.sum() < tokenizer.with_words("unicode").encode(text).word_starts.sum()


# One token


@every_tokenizer
def test_what_a_token_adds_to_a_text(tokenizers, name):
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


def test_joints_are_left_out(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    ing = next(id for id in range(tokenizer.vocab_size) if tokenizer.token(id) == "##ing")
    assert tokenizer.text_of(ing) == "ing"
    assert not tokenizer.starts_word(ing)
    assert tokenizer.piece_bytes()[ing] == 3


@every_tokenizer
@settings(deadline=None, max_examples=30)
@given(words=st.lists(st.sampled_from(["the", "of", "café", "Paris", "walking"]), min_size=1, max_size=8))
def test_bytes_add_up_and_text_comes_back(tokenizers, name, words):
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


def test_a_byte_counts_as_one(tokenizers):
    for name in ("bytes", "byte_level"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode("🦙").ids
        assert tokenizer.piece_bytes()[ids].sum() == 4 + (name == "bytes")
        assert tokenizer.decode(ids) == "🦙"
        assert tokenizer.text_of(int(ids[-1])) == "\ufffd"


# Saving and loading


@every_tokenizer
def test_a_saved_tokenizer_is_the_same(tokenizers, name, tmp_path):
    tokenizer = tokenizers[name].with_words("spaces")
    tokenizer.save(tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.words == "spaces"
    assert loaded.special_ids == tokenizer.special_ids
    text = f"the {loaded.mask_token} Paris [SEP] ½"
    assert loaded.encode(text, True).ids.tolist() == tokenizer.encode(text, True).ids.tolist()
    assert load_tokenizer(tmp_path / "a", "unicode").fingerprint == tokenizers[name].fingerprint
    assert not list((tmp_path / "a").glob("*.tmp"))


def test_training_is_repeatable_and_ids_are_fixed(tokenizers, tmp_path):
    again = train_tokenizer(iter(sentences()), tokenizer_settings(), tmp_path / "again")
    assert again.fingerprint == tokenizers["unigram"].fingerprint
    assert [again.token(id) for id in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (again.pad_id, again.unk_id, again.begin_id, again.end_id, again.mask_id) == (0, 1, 2, 3, 4)
    assert again.special_ids == (0, 1, 2, 3, 4)
    assert again.vocab_size == 225
    model = parse_model((tmp_path / "again" / "tokenizer.model").read_bytes())
    assert model.trainer_spec.num_threads == 4  # not the machine's number
    other = train_tokenizer(sentences(), tokenizer_settings(lower_case=True), tmp_path / "other")
    assert other.fingerprint != again.fingerprint


def test_the_fingerprint_is_not_that_of_the_files_bytes(tokenizers, tmp_path):
    tokenizers["unigram"].save(tmp_path)
    file = tmp_path / "tokenizer.model"
    model = parse_model(file.read_bytes())
    model.trainer_spec.num_threads, model.trainer_spec.model_prefix = 7, "/elsewhere"
    file.write_bytes(model.SerializeToString())
    assert load_tokenizer(tmp_path).fingerprint == tokenizers["unigram"].fingerprint
    model.pieces[20].score -= 1
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="is not the tokenizer that was saved"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_a_vocabulary_too_large_names_the_largest_that_fits(tmp_path, algorithm):
    texts = ["a b c", "d e f", "hello there hello"]
    with pytest.raises(UserError, match="vocab_size=8000 is too large for this text: at most ") as caught:
        train_tokenizer(texts, tokenizer_settings(vocab_size=8000, algorithm=algorithm), tmp_path)
    largest = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert (
        train_tokenizer(texts, tokenizer_settings(vocab_size=largest, algorithm=algorithm), tmp_path).vocab_size
        == largest
    )
    with pytest.raises(UserError, match="vocab_size=10 is too small for the characters of this text: at least "):
        train_tokenizer(texts, tokenizer_settings(vocab_size=10, algorithm=algorithm), tmp_path)


def test_what_sentencepiece_refuses_is_said_in_our_words(tmp_path):
    with pytest.raises(UserError, match="vocab_size=3 is too small: the special tokens alone are 5"):
        train_tokenizer(["hello world"], tokenizer_settings(vocab_size=3), tmp_path)
    with pytest.raises(UserError, match=r"character_coverage=0\.9: SentencePiece takes 0\.98 to 1"):
        train_tokenizer(["hello world"], tokenizer_settings(character_coverage=0.9), tmp_path)
    with pytest.raises(UserError, match="at least 2"):  # 256 bytes among them
        train_tokenizer(["hello world"], tokenizer_settings(vocab_size=100, byte_fallback=True), tmp_path)


@pytest.mark.parametrize("texts", [[], [" ", "\n"], ["▅"], ["\u200b\u3000"]])
def test_no_text_to_train_on_is_an_error(tmp_path, texts):
    with pytest.raises(UserError, match="there is no text to train the tokenizer on"):
        train_tokenizer(texts, tokenizer_settings(), tmp_path)


def test_an_error_in_the_text_comes_through(tmp_path):
    def broken():
        yield "the capital"
        raise UserError("line 3 is damaged")

    with pytest.raises(UserError, match="line 3 is damaged"):
        train_tokenizer(broken(), tokenizer_settings(), tmp_path)


def test_long_lines_are_trained_on(tmp_path):
    tokenizer = train_tokenizer(["x y " * 3000, "zebra" * 2000], tokenizer_settings(vocab_size=14), tmp_path)
    assert {"x", "y", "z", "e", "b"} <= {tokenizer.token(id).removeprefix("▁") for id in range(14)}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["a b ", "é", "字 ", "🦙", "x\ny", "▅"]), st.integers(1, 2500)), max_size=4))
def test_sentences_hold_all_text_and_fit(parts):
    text = "".join(part * count for part, count in parts)
    found = list(sentences_of([text]))
    assert all(0 < len(sentence.encode()) <= 4192 for sentence in found)
    assert "".join("".join(found).split()) == "".join(text.replace("▅", " ").split())


def test_training_says_nothing(tmp_path, capfd):
    train_tokenizer(sentences(), tokenizer_settings(), tmp_path)
    said = capfd.readouterr()
    assert said.out == said.err == ""


# Models and vocabularies of others


def train_foreign(directory, **arguments):
    directory.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_prefix=str(directory / "spiece"), vocab_size=160, minloglevel=2,
        **arguments,
    )  # fmt: skip
    return directory / "spiece.model"


def test_a_foreign_model_without_mask_and_pad_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no special token for pad \(\[PAD\], <pad>\), mask \(\[MASK\], <mask>\)"):
        load_tokenizer(train_foreign(tmp_path))


def test_a_foreign_models_special_tokens_are_found(tmp_path):
    file = train_foreign(
        tmp_path, pad_id=3, user_defined_symbols=["<mask>", "<sep>", "[SEP]"], control_symbols=["[CLS]"]
    )
    tokenizer = load_tokenizer(file)
    names = [tokenizer.token(id) for id in (tokenizer.pad_id, tokenizer.unk_id, tokenizer.begin_id, tokenizer.end_id)]
    assert names == ["<pad>", "<unk>", "[CLS]", "[SEP]"]
    assert tokenizer.mask_token == "<mask>"
    assert pieces(tokenizer, "the <mask> the") == ["▁the", "<mask>", "▁the"]
    assert "<mask>" not in pieces(tokenizer, "the <mask> of", find_mask=False)
    assert "[SEP]" not in pieces(tokenizer, "the [SEP] of", find_mask=False)
    assert "<sep>" in pieces(tokenizer, "the <sep> of")  # an ordinary symbol of that model
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "<s>", "sep_token": {"content": "</s>"}}))
    assert load_tokenizer(tmp_path).token(load_tokenizer(tmp_path).begin_id) == "<s>"
    assert load_tokenizer(tmp_path).token(load_tokenizer(tmp_path).end_id) == "</s>"
    assert load_tokenizer(tmp_path).fingerprint != tokenizer.fingerprint


def test_a_foreign_models_own_name_for_unknown_text_is_taken(tmp_path):
    tokenizer = load_tokenizer(
        train_foreign(tmp_path, pad_id=3, unk_piece="<oov>", control_symbols=["<mask>", "<unk>"])
    )
    assert tokenizer.token(tokenizer.unk_id) == "<oov>"
    assert tokenizer.encode("🦙").ids.tolist()[-1] == tokenizer.unk_id


def vocab_file(directory, pieces, config=None, encoding="utf-8"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding=encoding)
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory / "vocab.txt"


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep", "mask", "zoe", "zoë", "ete", "été"]


def test_a_vocabulary_alone_knows_the_mask(tmp_path):
    tokenizer = load_tokenizer(vocab_file(tmp_path, BERT))
    assert pieces(tokenizer, "zoe [MASK]") == ["zoe", "[MASK]"]
    assert pieces(tokenizer, "[MASK] [SEP]", find_mask=False) == ["[", "mask", "]", "[", "sep", "]"]


def test_a_byte_order_mark_is_no_part_of_the_first_entry(tmp_path):
    tokenizer = load_tokenizer(vocab_file(tmp_path, BERT, encoding="utf-8-sig"))
    assert tokenizer.token(0) == "[PAD]"
    assert tokenizer.pad_id == 0


@pytest.mark.parametrize(
    ("config", "cased", "expected", "said"),
    [
        ({"do_lower_case": True}, True, ["ete", "zoe"], ""),
        ({"do_lower_case": True, "strip_accents": False}, False, ["été", "zoë"], ""),
        ({"do_lower_case": False}, False, ["[UNK]", "[UNK]"], ""),
        ({"do_lower_case": False}, True, ["Été", "Zoë"], ""),
        (None, True, ["Été", "Zoë"], "upper case, text is taken as it is"),
        (None, False, ["ete", "zoe"], "no upper case, text is lower-cased, and accents are stripped"),
    ],
)
def test_case_and_accents_follow_the_config_else_it_is_said(tmp_path, caplog, config, cased, expected, said):
    with caplog.at_level(logging.WARNING, "jaxlm"):
        tokenizer = load_tokenizer(vocab_file(tmp_path, BERT + ["Été", "Zoë"] * cased, config))
    assert pieces(tokenizer, "Été Zoë") == expected
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_bert_base_uncased(caplog):
    file = SHARED / "vocab" / "bert-base-uncased-vocab.txt"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    tokenizer = load_tokenizer(file)
    assert tokenizer.vocab_size == 30522
    assert tokenizer.encode("Hello, my dog is cute!").ids.tolist() == [7592, 1010, 2026, 3899, 2003, 10140, 999]
    assert tokenizer.encode("the [MASK].", find_mask=True).ids.tolist() == [1996, 103, 1012]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.begin_id, tokenizer.end_id) == (0, 100, 101, 102)
    assert tokenizer.special_ids == (0, 100, 101, 102, 103)


def test_the_saved_file_of_a_vocabulary_adds_begin_and_end_for_others(tmp_path):
    load_tokenizer(vocab_file(tmp_path / "a", BERT)).save(tmp_path / "b")
    encoding = Tokenizer.from_file(str(tmp_path / "b" / "tokenizer.json")).encode("zoe")
    assert encoding.tokens == ["[CLS]", "zoe", "[SEP]"]


def test_ids_are_those_of_the_library(tokenizers, tmp_path):
    for name, original in (("byte_level", byte_level()), ("wordpiece", wordpiece()), ("metaspace", metaspace())):
        for text in [*sentences(30, seed=1), "½ 🦙 Zoë  x"]:
            assert tokenizers[name].encode(text).ids.tolist() == original.encode(text, add_special_tokens=False).ids, (
                name
            )


def test_a_fixed_length_and_a_post_processor_change_nothing(tmp_path):
    tokenizer = byte_level()
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(3)
    loaded = load_tokenizer(saved(tokenizer, tmp_path))
    assert len(loaded.encode("the capital of France is Paris").ids) not in (3, 50)


# What cannot be loaded


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nowhere", None, "there is no tokenizer "),
        ("a.bin", b"x", "is no tokenizer that is known"),
        ("a.model", b"garbage", "is no SentencePiece model, or it is damaged"),
        ("a.model", b"", "is no SentencePiece model, or it is damaged"),
        ("tokenizer.json", b"{", "is not valid JSON"),
        ("tokenizer.json", b"[]", "does not hold a JSON object"),
        ("tokenizer.json", b"{}", "holds no tokenizer"),
        ("tokenizer.json", b'{"model": {"vocab": 3}}', "holds no vocabulary that can be read"),
        ("vocab.txt", b"[PAD]\ncaf\xe9\n", "line 2, byte 9: not UTF-8"),
        ("vocab.txt", b"a\nb\n", "has no special token for pad .*mask"),
        ("vocab.txt", b"", "has no special token for pad .*mask"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_broken_definition_is_said_in_a_sentence(tmp_path):
    content = json.loads(wordpiece().to_str())
    content["pre_tokenizer"] = {"type": "Nonsense"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no tokenizer that the `tokenizers` library reads"):
        load_tokenizer(tmp_path)


def test_an_empty_folder_and_two_models_are_refused(tmp_path, tokenizers):
    with pytest.raises(UserError, match=r"no tokenizer\.json, no .model, no vocab.txt and no vocab.json"):
        load_tokenizer(tmp_path)
    tokenizers["unigram"].save(tmp_path)
    shutil.copy(tmp_path / "tokenizer.model", tmp_path / "b.model")
    (tmp_path / "jaxlm_tokenizer.json").unlink()
    with pytest.raises(UserError, match="several models"):
        load_tokenizer(tmp_path)


def test_a_damaged_record_is_refused(tmp_path, tokenizers):
    tokenizers["unigram"].save(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"lacks tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "jaxlm_tokenizer.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match="is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "jaxlm_tokenizer.json").write_text('{"format_version": 1')
    with pytest.raises(UserError, match="is not valid JSON"):
        load_tokenizer(tmp_path)


def test_one_token_for_two_roles_is_refused(tmp_path):
    vocab_file(tmp_path, BERT, {"do_lower_case": True, "pad_token": "[SEP]"})
    with pytest.raises(UserError, match="one special token for several"):
        load_tokenizer(tmp_path)


def test_split_han_gives_pieces_of_one_chinese_character(tmp_path):
    lines = ["我们喜欢学习中文。", "学习中文很有意思。", "我们学习 Python 和中文。", "喜欢中文的学生很多。"] * 50
    together = train_tokenizer(lines, tokenizer_settings(vocab_size=33), tmp_path / "together")
    split = train_tokenizer(lines, tokenizer_settings(vocab_size=29, split_han=True), tmp_path / "split")
    han = re.compile("[\u4e00-\u9fff]")

    def most(tokenizer) -> int:
        return max(len(han.findall(tokenizer.token(id))) for id in range(tokenizer.vocab_size))

    assert most(together) > 1
    assert most(split) == 1
    assert split.decode(split.encode("我们学习中文。").ids) == "我们学习中文。"


def test_trained_scores_add_without_error(tokenizers):
    model = parse_model(tokenizers["unigram"]._backend.content)
    scores = np.array([piece.score for piece in model.pieces], np.float32)
    assert (scores * 64 == np.round(scores * 64)).all()
    assert len(np.unique(scores)) > 50
    sums = [np.cumsum(np.tile(scores, 20)[order]) for order in (slice(None), slice(None, None, -1))]
    assert sums[0][-1] == sums[1][-1]
