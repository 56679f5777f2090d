import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jaxlm.errors import UserError
from jaxlm.tokenizer.special_tokens import HIDDEN
from jaxlm.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from tests.tokenizer.examples import (
    SHARED,
    STRANGE,
    TYPED,
    WORDS,
    byte_level,
    metaspace,
    saved,
    sentences,
    tokenizer_settings,
    train_foreign,
    wordpiece,
)

KINDS = {
    "unigram": {},
    "lower": {"lower_case": True, "vocab_size": 210},
    "unigram_bytes": {"byte_fallback": True, "vocab_size": 420},
    "bpe": {"algorithm": "bpe"},
    "bpe_bytes": {"algorithm": "bpe", "byte_fallback": True, "lower_case": True, "vocab_size": 420},
    "split_han": {"split_han": True},
}
ADDED = ["zebrafish", "New York", "C++", "café-au-lait", "机器学习"]
MASKED = (
    "x [MASK] y", "x[MASK] y", "[MASK] y", "[MASK]y", "x [MASK]", "[MASK]", "the  [MASK]  of", "[MASK][MASK] [MASK].",
    "\u200b[MASK]\u3000 [MASK]\n", "the [MASK] (zebrafish) [MASK] New York",
)  # fmt: skip


def exported(tokenizer, **arguments):
    files = tokenizer.transformers_files(64, **arguments)
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def plain(text, *names):
    """Returns the text without literal special tokens, which Transformers recognizes."""
    for name in names:
        text = text.replace(name, "")
    return "" if any(name in text for name in names) else text


def ids(theirs, text):
    return theirs.encode(text, add_special_tokens=False).ids


def special_names(tokenizer):
    return [tokenizer.token(id) for id in tokenizer.special_ids if id != tokenizer.mask_id]


class Made(dict):
    def __repr__(self) -> str:  # otherwise a failed test prints megabytes
        return "made"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Maps a name to pairs of a tokenizer and its export, without and with added tokens."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = {name: train_tokenizer(sentences(), tokenizer_settings(**kind), folder / name)
             for name, kind in KINDS.items()}  # fmt: skip
    for name, tokenizer in (("wordpiece", wordpiece()), ("byte_level", byte_level()), ("metaspace", metaspace())):
        found[name] = load_tokenizer(saved(tokenizer, folder / name))
    grown = {name: tokenizer.with_added(ADDED) for name, tokenizer in found.items()}
    return Made({name: [(t, exported(t)) for t in (found[name], grown[name])] for name in found})


every_kind = pytest.mark.parametrize("name", [*KINDS, "wordpiece", "byte_level", "metaspace"])
any_text = st.one_of(
    st.text(),
    st.text(st.sampled_from(STRANGE.replace("▁", ""))),
    st.lists(st.sampled_from([*WORDS, *ADDED, *"x(.\u3000", "[MASK]", "<mask>", "----", "0x41"]), max_size=9).map(
        " ".join
    ),
    st.lists(st.sampled_from([*WORDS, *ADDED, "[MASK]", "<mask>", " ", "  ", "\n"]), max_size=9).map("".join),
)


@every_kind
@settings(deadline=None, max_examples=80)
@given(text=any_text)
def test_any_text_has_the_same_ids(made, name, text):
    for tokenizer, theirs in made[name]:
        # A loaded definition is exported unchanged, so the hidden character has no meaning in it.
        text = plain(text, *special_names(tokenizer), *([] if name in KINDS else [HIDDEN]))
        assert ids(theirs, text) == tokenizer.encode(text, find_mask=True).ids.tolist()


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=60)
@given(text=any_text | st.lists(st.sampled_from([*WORDS, *TYPED]), max_size=8).map(" ".join))
def test_with_split_special_tokens_a_literal_special_token_is_text(made, name, text):
    for tokenizer, theirs in made[name]:
        text = plain(text, *(typed for typed in TYPED if {"[", "<"} & {*typed} - {*tokenizer._backend.pieces}))
        theirs.encode_special_tokens = True  # split_special_tokens in Transformers
        try:
            assert ids(theirs, text) == tokenizer.encode(text).ids.tolist()
        finally:
            theirs.encode_special_tokens = False


@every_kind
@pytest.mark.parametrize("text", MASKED)
def test_a_literal_mask_has_the_same_ids(made, name, text):
    for tokenizer, theirs in made[name]:
        literal = text.replace("[MASK]", tokenizer.mask_token)
        expected = tokenizer.encode(literal, find_mask=True).ids.tolist()
        assert ids(theirs, literal) == expected
        assert expected.count(tokenizer.mask_id) == text.count("[MASK]")


@every_kind
def test_decoding_gives_the_same_text(made, name):
    for tokenizer, theirs in made[name]:
        for text in [*sentences(20, seed=3), "the zebrafish of New York is"]:
            found = tokenizer.encode(text).ids
            assert theirs.decode(found.tolist()) == tokenizer.decode(found)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_thousand_lines_have_the_same_ids(tmp_path, language, kind):
    file = SHARED / f"corpus_{language}" / "train.jsonl"
    if not file.exists():
        pytest.skip(f"{file} does not exist")
    with file.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"][:3000] for line in itertools.islice(lines, 1000)]
    size = {"en": 2000, "zh": 3700}[language]
    changes = {"vocab_size": size, "algorithm": kind, "character_coverage": 0.999, "lower_case": kind == "unigram"}
    tokenizer = train_tokenizer(texts[:400], tokenizer_settings(**changes), tmp_path)
    theirs = exported(tokenizer)
    texts = [plain(text, *special_names(tokenizer)) for text in texts]
    wrong = [
        text
        for text, ours, others in zip(
            texts, tokenizer.encode_batch(texts), theirs.encode_batch(texts, add_special_tokens=False), strict=True
        )
        if ours.ids.tolist() != others.ids
    ]
    assert len(texts) > 900 or language == "zh"
    assert not wrong


def test_begin_and_end_tokens_and_token_types_are_added(made):
    tokenizer, theirs = made["unigram"][0]
    pair = theirs.encode("the", "of")
    assert pair.tokens == ["[CLS]", "▁the", "[SEP]", "▁of", "[SEP]"]
    assert pair.type_ids == [0] * 5
    with_types = exported(tokenizer, token_types=True).encode("the", "of")
    assert with_types.type_ids == [0, 0, 0, 1, 1]


def test_the_config_names_the_roles(made):
    files = made["bpe"][0][0].transformers_files(64, token_types=True)
    config = json.loads(files["tokenizer_config.json"])
    assert config["mask_token"] == "[MASK]"
    assert config["cls_token"] == "[CLS]"
    assert config["model_max_length"] == 64
    assert "token_type_ids" in config["model_input_names"]
    assert "token_type_ids" not in json.loads(made["bpe"][0][0].transformers_files(8)["tokenizer_config.json"])[
        "model_input_names"
    ]  # fmt: skip


def test_a_loaded_definition_is_exported_unchanged(made):
    definition = json.loads(made["byte_level"][0][0].transformers_files(64)["tokenizer.json"])
    original = json.loads(byte_level().to_str())
    for part in ("model", "normalizer", "pre_tokenizer", "decoder"):
        assert definition[part] == original[part]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"model_type": "char"}, "model type 4 "),
        ({"add_dummy_prefix": False}, "a model without add_dummy_prefix"),
        ({"remove_extra_whitespaces": False}, "a model without remove_extra_whitespaces"),
        ({"user_defined_symbols": ["<sep>"]}, "user-defined symbols such as '<sep>'"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_an_unsupported_feature_is_reported(tmp_path, arguments, named):
    symbols = ["[CLS]", "[SEP]", "[MASK]"]
    arguments = {"hard_vocab_limit": False, "pad_id": 3, "control_symbols": symbols} | arguments
    tokenizer = load_tokenizer(train_foreign(tmp_path, **arguments))
    with pytest.raises(UserError, match=f"cannot convert the SentencePiece model .* does not support {named}"):
        tokenizer.transformers_files(64)


def test_a_model_trained_elsewhere_is_exported(tmp_path):
    file = train_foreign(tmp_path, pad_id=3, user_defined_symbols=["<mask>"], normalization_rule_name="identity")
    tokenizer = load_tokenizer(file)
    theirs = exported(tokenizer)
    for text in ("the <mask> of Ｐaris ½", "e\u0301 <mask>", "  a  b "):
        assert ids(theirs, text) == tokenizer.encode(text, find_mask=True).ids.tolist()


def test_a_text_with_different_ids_is_reported(made, monkeypatch):
    tokenizer = made["unigram"][0][0]
    monkeypatch.setattr("jaxlm.tokenizer.transformers_files.TEST_TEXTS", ("the [UNK]",))
    with pytest.raises(UserError, match=r"would encode 'the \[UNK\]' differently"):
        tokenizer.transformers_files(64)
