"""Compares exported tokenizers, as Transformers loads them, with the originals."""

import json
import warnings

import pytest

transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
from jaxlm.tokenizer.tokenizer import (  # noqa: E402
    load_tokenizer,
    train_tokenizer,
)
from tests.tokenizer.examples import (  # noqa: E402
    BERT,
    byte_level,
    metaspace,
    saved,
    sentences,
    tokenizer_settings,
    vocab_file,
    wordpiece,
)

KINDS = {
    "unigram": {},
    "bpe": {"algorithm": "bpe", "lower_case": True},
    "bytes": {"byte_fallback": True, "vocab_size": 420},
}
TEXTS = (
    "the [MASK] of France", "x[MASK] y", "[MASK] x", "x [MASK]", "[MASK][MASK]  [MASK] the", " two  spaces ", "",
    "Zoe\u0308 🦙\t½ ﬁ", "the zebrafish (C++) of New York, zebrafishes", "机器学习\x01字",
)  # fmt: skip


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("name", [*KINDS, "wordpiece", "byte_level", "metaspace"])
def test_transformers_gives_the_same_ids(tmp_path, name, grown):
    if name in KINDS:
        ours = train_tokenizer(sentences(), tokenizer_settings(**KINDS[name]), tmp_path / "own")
    else:
        made = {"wordpiece": wordpiece, "byte_level": byte_level, "metaspace": metaspace}[name]()
        ours = load_tokenizer(saved(made, tmp_path / "own"))
    if grown:
        ours = ours.with_added(["zebrafish", "New York", "C++"])
    (tmp_path / "out").mkdir()
    for file, content in ours.transformers_files(64, token_types=True).items():
        (tmp_path / "out" / file).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for _ in range(2):
        assert theirs.is_fast
        assert (theirs.mask_token, theirs.mask_token_id) == (ours.mask_token, ours.mask_id)
        assert (theirs.cls_token_id, theirs.sep_token_id) == (ours.begin_id, ours.end_id)
        assert (theirs.pad_token_id, theirs.unk_token_id) == (ours.pad_id, ours.unk_id)
        assert theirs.model_max_length == 64
        assert len(theirs) == ours.vocab_size
        for text in TEXTS:
            literal = text.replace("[MASK]", ours.mask_token)
            ids = ours.encode(literal, find_mask=True).ids.tolist()
            assert theirs(literal)["input_ids"] == [ours.begin_id, *ids, ours.end_id]
            if name in KINDS:
                assert theirs.decode(theirs(literal)["input_ids"], skip_special_tokens=True) == ours.decode(ids)
        if name in KINDS:
            plain = theirs("a <s> [SEP] the", add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert plain == ours.encode("a <s> [SEP] the").ids.tolist()
        pair = theirs("the", "of")
        assert pair["token_type_ids"][0] == 0
        assert pair["token_type_ids"][-1] == 1
        theirs.save_pretrained(tmp_path / "again")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")


LINES = (
    *sentences(60), "the [MASK] of France", "Zoë Été CAFÉ 字x日本", "a [SEP] b </s> c", "the <mask>  of", "the\n<mask>",
    "[CLS] the [PAD] [unused1] [UNK] x<unk> <pad>", "we Zoë1 the \0 [MASK] zzqqé", "SEP Mask zebra Paris", "½ ﬁ  ",
)  # fmt: skip
ENTRY = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False, "special": False}
CONFIGS = {
    "wordpiece": [
        {"tokenizer_class": "BertTokenizer"},
        {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "strip_accents": True},
        {"tokenizer_class": "ConvBertTokenizer", "tokenize_chinese_chars": False},
        {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False},
        {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True, "strip_accents": False},
        {"tokenizer_class": "ElectraTokenizerFast", "do_lower_case": False},
        {"tokenizer_class": "MobileBertTokenizer"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True},
        {"do_lower_case": True, "added_tokens_decoder": {"5": {"content": "[unused1]"} | ENTRY}},
        None,
    ],
    "byte_level": [
        {"tokenizer_class": "RobertaTokenizer"},
        {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": True},
        {"tokenizer_class": "LongformerTokenizer", "add_prefix_space": True},
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True},
        {"tokenizer_class": "RobertaTokenizer", "added_tokens_decoder": {"5": {"content": "<extra>"} | ENTRY}},
    ],
    "metaspace": [
        {"tokenizer_class": "XLMRobertaTokenizer"},
        {"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": False},
        {"tokenizer_class": "CamembertTokenizer"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ],
    "vocab.txt": [
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        {"do_lower_case": True, "added_tokens_decoder": {"13": {"content": "the capital"} | ENTRY}},
        {"do_lower_case": True, "added_tokens.json": {"Zebra Paris": 13}},
        {"do_lower_case": False, "added_tokens.json": {"zebra": 13, "Paris": 14}, "strip_accents": True},
    ],
}
FAMILY = {"wordpiece": "bert", "byte_level": "roberta", "metaspace": "xlm-roberta", "vocab.txt": "bert"}


@pytest.mark.parametrize(
    ("kind", "config"), [(kind, config) for kind, configs in CONFIGS.items() for config in configs]
)
def test_a_checkpoint_has_the_ids_of_transformers(tmp_path, kind, config):
    if kind == "vocab.txt":
        vocab_file(tmp_path, BERT)
    else:
        made = {"wordpiece": lambda: wordpiece(lowercase=False), "byte_level": byte_level, "metaspace": metaspace}
        saved(made[kind](), tmp_path)
    config = dict(config or {})
    if added := config.pop("added_tokens.json", None):
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": FAMILY[kind]}))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for line, encoding in zip(LINES, ours.encode_batch(LINES, find_special=True), strict=True):
        assert theirs(line, add_special_tokens=False)["input_ids"] == encoding.ids.tolist(), line
