import json
import logging

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.tokenizer.examples import BERT, SHARED, byte_level, pieces, saved, sentences, train_foreign, vocab_file


@pytest.fixture
def roberta(tmp_path):
    """A folder with a vocab.json and merges.txt, and the tokenizer of the `tokenizers` library that wrote them."""
    original = byte_level()
    original.model.save(str(tmp_path))
    return tmp_path, original


def test_byte_level_ids_equal_those_of_the_tokenizers_library(roberta):
    directory, original = roberta
    tokenizer = load_tokenizer(directory)
    for text in [*sentences(30, seed=5), "½ 🦙 Zoë  x", "", " the"]:
        assert tokenizer.encode(text).ids.tolist() == original.encode(text, add_special_tokens=False).ids
    assert pieces(tokenizer, "is <mask> the") == ["is", "<mask>", "Ġthe"]
    assert tokenizer.token(tokenizer.begin_id) == "<s>"
    assert load_tokenizer(directory / "vocab.json").fingerprint == tokenizer.fingerprint
    theirs = Tokenizer.from_str(tokenizer.transformers_files(64)["tokenizer.json"].decode())
    assert theirs.encode("the").tokens[:: len(theirs.encode("the").tokens) - 1] == ["<s>", "</s>"]


def test_add_prefix_space_is_read_from_the_config(roberta):
    directory, _ = roberta
    (directory / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    assert pieces(load_tokenizer(directory), "the the") == ["Ġthe", "Ġthe"]


def test_an_invalid_byte_level_vocabulary_is_reported(roberta):
    directory, _ = roberta
    merges = (directory / "merges.txt").read_text()
    (directory / "merges.txt").write_text(merges + "nonsense\n")
    with pytest.raises(UserError, match=r"merges\.txt, line \d+: 'nonsense' is not a pair"):
        load_tokenizer(directory)
    (directory / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"vocab\.json has no merges\.txt beside it; copy"):
        load_tokenizer(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    with pytest.raises(UserError, match="names the tokenizer class CLIPTokenizer, which is not supported"):
        load_tokenizer(directory)
    (directory / "tokenizer_config.json").unlink()
    (directory / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="is not a vocabulary: expected a JSON object"):
        load_tokenizer(directory)


@pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "CamembertTokenizer"])
def test_a_model_with_shifted_ids_is_rejected(tmp_path, name):
    train_foreign(tmp_path, pad_id=3, control_symbols=["<mask>"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(UserError, match=rf"is the model of a {name}, .* use its tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_bpe_with_byte_fallback_reads_its_roles_from_the_config(tmp_path):
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    entries = [*names, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"thecaf", "▁t", "▁th", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    vocabulary = {piece: id for id, piece in enumerate(entries)}
    original = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    original.normalizer = normalizers.Replace(" ", "▁")
    original.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    original.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    original.add_special_tokens([*names[:4], AddedToken("<mask>", lstrip=True, special=True)])
    saved(original, tmp_path)
    with pytest.raises(UserError, match="has no special token for begin"):
        load_tokenizer(tmp_path)
    roles = {"cls_token": "<bos>", "sep_token": "<eos>", "bos_token": "<bos>", "eos_token": "<eos>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token(tokenizer.begin_id) == "<bos>"
    assert tokenizer.token(tokenizer.end_id) == "<eos>"
    assert pieces(tokenizer, "a the <mask> é") == ["a", "▁the", "<mask>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("a the é").ids.tolist() == original.encode("a the é").ids
    grown = tokenizer.with_added(["zebra"])
    assert grown.decode(grown.encode("the zebra the").ids) == "the zebra the"
    theirs = Tokenizer.from_str(grown.transformers_files(64)["tokenizer.json"].decode())
    assert theirs.encode("a").tokens == ["<bos>", "a", "<eos>"]
    assert theirs.encode("the zebra <mask>").ids[1:-1] == grown.encode("the zebra <mask>", True).ids.tolist()


# BERT's vocab.txt


def test_a_vocabulary_without_config_has_a_mask(tmp_path):
    tokenizer = load_tokenizer(vocab_file(tmp_path, BERT))
    assert pieces(tokenizer, "zoe [MASK]") == ["zoe", "[MASK]"]
    assert pieces(tokenizer, "[MASK] [SEP]", find_mask=False) == ["[", "mask", "]", "[", "sep", "]"]


def test_a_byte_order_mark_is_not_part_of_the_first_token(tmp_path):
    tokenizer = load_tokenizer(vocab_file(tmp_path, BERT, encoding="utf-8-sig"))
    assert tokenizer.token(0) == "[PAD]"
    assert tokenizer.pad_id == 0


@pytest.mark.parametrize(
    ("config", "cased", "expected", "logged"),
    [
        ({"do_lower_case": True}, True, ["ete", "zoe"], ""),
        ({"do_lower_case": True, "strip_accents": False}, False, ["été", "zoë"], ""),
        ({"do_lower_case": False}, False, ["[UNK]", "[UNK]"], ""),
        ({"do_lower_case": False}, True, ["Été", "Zoë"], ""),
        (None, True, ["Été", "Zoë"], "upper-case letters, so case and accents are kept"),
        (None, False, ["ete", "zoe"], "no upper-case letters, so text is lower-cased and accents are stripped"),
    ],
)
def test_case_and_accents_follow_the_config_or_a_warning_is_logged(tmp_path, caplog, config, cased, expected, logged):
    with caplog.at_level(logging.WARNING, "jaxlm"):
        tokenizer = load_tokenizer(vocab_file(tmp_path, BERT + ["Été", "Zoë"] * cased, config))
    assert pieces(tokenizer, "Été Zoë") == expected
    assert logged in caplog.text
    assert bool(caplog.text) == bool(logged)


def test_bert_base_uncased(caplog):
    file = SHARED / "vocab" / "bert-base-uncased-vocab.txt"
    if not file.exists():
        pytest.skip(f"{file} does not exist")
    tokenizer = load_tokenizer(file)
    assert tokenizer.vocab_size == 30522
    assert tokenizer.encode("Hello, my dog is cute!").ids.tolist() == [7592, 1010, 2026, 3899, 2003, 10140, 999]
    assert tokenizer.encode("the [MASK].", find_mask=True).ids.tolist() == [1996, 103, 1012]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.begin_id, tokenizer.end_id) == (0, 100, 101, 102)
    assert tokenizer.special_ids == (0, 100, 101, 102, 103)


def test_the_saved_tokenizer_json_adds_begin_and_end(tmp_path):
    load_tokenizer(vocab_file(tmp_path / "a", BERT)).save(tmp_path / "b")
    encoding = Tokenizer.from_file(str(tmp_path / "b" / "tokenizer.json")).encode("zoe")
    assert encoding.tokens == ["[CLS]", "zoe", "[SEP]"]
