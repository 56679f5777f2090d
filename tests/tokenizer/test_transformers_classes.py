import json

import pytest

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.tokenizer.examples import BERT, byte_level, metaspace, pieces, saved, train_foreign, vocab_file, wordpiece


def beside(file, **contents):
    """Writes JSON files beside a vocabulary, each named by its argument, and returns the folder."""
    for name, content in contents.items():
        (file.parent / f"{name}.json").write_text(json.dumps(content))
    return file.parent


def cased(folder):
    return saved(wordpiece(lowercase=False), folder)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer"}},
        {"tokenizer_config": {"do_lower_case": True}, "config": {"model_type": "bert"}},
        {"config": {"model_type": "distilbert"}},
        {"config": {"tokenizer_class": "ElectraTokenizerFast"}},
        {"tokenizer_config": {"tokenizer_class": "DistilBertTokenizerFast"}, "config": {"model_type": "roberta"}},
    ],
)
def test_the_class_lower_cases_what_tokenizer_json_does_not(tmp_path, caplog, files):
    tokenizer = load_tokenizer(beside(cased(tmp_path), **files))
    assert pieces(tokenizer, "Paris IS") == ["paris", "is"]
    assert "do_lower_case=True" in caplog.text
    assert "not the settings in tokenizer.json" in caplog.text
    tokenizer.save(tmp_path / "again")
    assert pieces(load_tokenizer(tmp_path / "again"), "Paris IS") == ["paris", "is"]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": False}},
        {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}},
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer"}, "config": {"model_type": "modernbert"}},
        {"tokenizer_config": {"do_lower_case": True}},
    ],
)
def test_tokenizer_json_applies_as_written(tmp_path, caplog, files):
    assert pieces(load_tokenizer(beside(cased(tmp_path), **files)), "Paris the") == ["Paris", "the"]
    assert "defaults of the class" not in caplog.text


def test_accents_and_chinese_characters_are_set_by_the_config(tmp_path):
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": True}
    folder = beside(cased(tmp_path), tokenizer_config=config)
    assert pieces(load_tokenizer(folder), "é") == ["e"]
    assert pieces(load_tokenizer(folder), "字字") == ["字", "字"]
    beside(folder / "x", tokenizer_config=config | {"tokenize_chinese_chars": False, "strip_accents": False})
    assert pieces(load_tokenizer(folder), "é") == ["é"]
    assert pieces(load_tokenizer(folder), "字字") == ["[UNK]"]


@pytest.mark.parametrize("name", ["RobertaTokenizer", "LongformerTokenizerFast", "BartTokenizer"])
def test_the_prefix_space_is_set_by_the_config(tmp_path, name):
    config = {"tokenizer_class": name, "add_prefix_space": True}
    folder = beside(saved(byte_level(), tmp_path), tokenizer_config=config)
    assert pieces(load_tokenizer(folder), "the the") == ["Ġthe", "Ġthe"]
    beside(folder / "x", tokenizer_config={"tokenizer_class": name})
    assert pieces(load_tokenizer(folder), "the the") == ["the", "Ġthe"]
    beside(folder / "x", tokenizer_config={"add_prefix_space": False, "tokenizer_class": "XLMRobertaTokenizer"})
    with pytest.raises(UserError, match="of the type BPE, but its tokenizer class XLMRobertaTokenizer needs Unigram"):
        load_tokenizer(folder)


def test_a_unigram_class_marks_the_beginning_of_every_stretch(tmp_path):
    folder = beside(saved(metaspace(), tmp_path), config={"model_type": "xlm-roberta"})
    assert pieces(load_tokenizer(folder), "the<mask>the") == ["▁the", "<mask>", "▁the"]
    beside(folder / "x", tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    assert pieces(load_tokenizer(folder), "the<mask>the") == ["▁the", "<mask>", "t", "h", "e"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer"}}, "tokenizer class BertJapaneseTokenizer"),
        ({"config": {"tokenizer_class": "BertJapaneseTokenizer"}}, r"config\.json names .* BertJapaneseTokenizer"),
        ({"config": {"model_type": "deberta-v2"}}, "has the family 'deberta-v2', whose tokenizer class is not known"),
        ({"tokenizer_config": {"tokenizer_class": ["x"]}}, r"tokenizer_class=\['x'\]: expected text"),
        ({"tokenizer_config": {"tokenizer_class": False}}, "tokenizer_class=False: expected text"),
        ({"config": {"model_type": [1]}}, r"config\.json: model_type=\[1\]: expected text"),
        (
            {"special_tokens_map": {"mask_token": 3}},
            r"special_tokens_map\.json: mask_token=3: expected a token, which is text",
        ),
        ({"tokenizer_config": {"pad_token": {"content": [1]}}}, r"pad_token={'content': \[1\]}: expected a token"),
        ({"tokenizer_config": {"extra_special_tokens": ["a", 1]}}, "extra_special_tokens=.*: expected a token"),
        ({"tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": "no"}}, "expected true or false"),
        (
            {"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}},
            "type WordPiece, .* RobertaTokenizer needs BPE",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "not a valid list of added tokens"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9999": {"content": "new"}}}}, "has the id 9999, but"),
        ({"tokenizer_config": {"split_special_tokens": True}}, "sets split_special_tokens, with which Transformers"),
        ({"tokenizer_config": {"cls_token": "<cls>"}}, "the cls_token '<cls>', which .* is not in the vocabulary"),
        ({"special_tokens_map": {"mask_token": {"content": "<m>"}}}, "the mask_token '<m>', which .* is not in the"),
        ({"added_tokens": {"new": None}}, r"added_tokens\.json beside .* is not a valid list"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, files, message):
    folder = beside(cased(tmp_path), **files)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_other_tokens_around_a_text_are_reported(tmp_path, caplog):
    folder = beside(cased(tmp_path), config={"model_type": "modernbert"})
    definition = json.loads((folder / "tokenizer.json").read_text())
    ids = {entry["content"]: entry["id"] for entry in definition["added_tokens"]}

    def warning_with(post_processor):
        caplog.clear()
        (folder / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": post_processor}))
        load_tokenizer(folder)
        return caplog.text

    both = {"type": "BertProcessing", "sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]]}
    assert warning_with(both) == ""
    assert "puts no token around a text, but jaxlm always puts [CLS] and [SEP]" in warning_with(None)
    swapped = both | {"cls": both["sep"], "sep": both["cls"]}
    assert "puts [SEP] and [CLS] around a text" in warning_with(swapped)
    with pytest.raises(UserError, match="has a post_processor that the `tokenizers` library cannot load"):
        warning_with({"type": "Nonsense"})


def test_a_vocabulary_file_of_another_class_is_named(tmp_path):
    file = vocab_file(tmp_path / "a", BERT, {"tokenizer_class": "BertJapaneseTokenizer"})
    with pytest.raises(UserError, match="BertJapaneseTokenizer, which is not supported"):
        load_tokenizer(file)
    beside(file, tokenizer_config={"tokenizer_class": "RobertaTokenizer"})
    with pytest.raises(UserError, match=r"vocab\.txt is the vocabulary of a RobertaTokenizer"):
        load_tokenizer(file)
    train_foreign(tmp_path / "b", pad_id=3, control_symbols=["<mask>"])
    beside(tmp_path / "b" / "x", config={"model_type": "xlm-roberta"})
    with pytest.raises(UserError, match="is the model of a XLMRobertaTokenizer"):
        load_tokenizer(tmp_path / "b")


def test_added_tokens_beside_a_vocabulary_are_found(tmp_path):
    file = vocab_file(tmp_path, BERT, {"do_lower_case": False})
    assert pieces(load_tokenizer(file), "zebra mask") == ["[UNK]", "mask"]
    beside(file, added_tokens={"zebra": len(BERT)})
    tokenizer = load_tokenizer(file)
    assert tokenizer.vocab_size == len(BERT) + 1
    assert pieces(tokenizer, "zebra mask") == ["zebra", "mask"]
    entry = {"content": "zoo", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    config = {"do_lower_case": False, "added_tokens_decoder": {str(len(BERT)): entry}}
    beside(file, tokenizer_config=config)  # replaces added_tokens.json
    assert pieces(load_tokenizer(file), "zoo mask") == ["zoo", "mask"]
    config = config | {"mask_token": "zoo"}
    beside(file, tokenizer_config=config)
    assert load_tokenizer(file).mask_token == "zoo"


def test_special_tokens_map_precedes_tokenizer_config(tmp_path):
    file = vocab_file(tmp_path, BERT, {"do_lower_case": False, "mask_token": "[MASK]"})
    beside(file, special_tokens_map={"mask_token": {"content": "mask"}})
    assert load_tokenizer(file).mask_token == "mask"
    beside(file, tokenizer_config={"do_lower_case": False, "mask_token": "[MASK]", "added_tokens_decoder": {}})
    assert load_tokenizer(file).mask_token == "[MASK]"


def test_dropout_is_not_applied_and_kept_in_the_export(tmp_path):
    file = saved(byte_level(), tmp_path)
    definition = json.loads(file.read_text())
    definition["model"]["dropout"] = 0.5
    text = "the capital of France is well-known"
    expected = load_tokenizer(file).encode(text).ids.tolist()
    for config in ({}, {"tokenizer_class": "RobertaTokenizer"}):
        file.write_text(json.dumps(definition))
        tokenizer = load_tokenizer(beside(file, tokenizer_config=config))
        assert all(tokenizer.encode(text).ids.tolist() == expected for _ in range(20))
        assert all(tokenizer.encode_with_offsets(text)[0].tolist() == expected for _ in range(20))
        exported = tokenizer.transformers_files(64)["tokenizer.json"]
        assert json.loads(exported)["model"]["dropout"] == 0.5
