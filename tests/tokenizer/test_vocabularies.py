import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.tokenizer.test_tokenizer import byte_level, pieces, saved, sentences, train_foreign


@pytest.fixture
def roberta(tmp_path):
    """RoBERTa's vocab.json and merges.txt, and what the library makes of the same."""
    original = byte_level()
    original.model.save(str(tmp_path))
    return tmp_path, original


def test_byte_level_pairs_are_those_of_the_library(roberta):
    directory, original = roberta
    tokenizer = load_tokenizer(directory)
    for text in [*sentences(30, seed=5), "½ 🦙 Zoë  x", "", " the"]:
        assert tokenizer.encode(text).ids.tolist() == original.encode(text, add_special_tokens=False).ids
    assert pieces(tokenizer, "is <mask> the") == ["is", "<mask>", "Ġthe"]
    assert tokenizer.token(tokenizer.begin_id) == "<s>"
    assert load_tokenizer(directory / "vocab.json").fingerprint == tokenizer.fingerprint
    theirs = Tokenizer.from_str(tokenizer.transformers_files(64)["tokenizer.json"].decode())
    assert theirs.encode("the").tokens[:: len(theirs.encode("the").tokens) - 1] == ["<s>", "</s>"]


def test_their_prefix_space_follows_the_config(roberta):
    directory, _ = roberta
    (directory / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    assert pieces(load_tokenizer(directory), "the the") == ["Ġthe", "Ġthe"]


def test_what_byte_level_pairs_lack_is_said(roberta):
    directory, _ = roberta
    merges = (directory / "merges.txt").read_text()
    (directory / "merges.txt").write_text(merges + "nonsense\n")
    with pytest.raises(UserError, match=r"merges\.txt, line \d+: 'nonsense' is no pair"):
        load_tokenizer(directory)
    (directory / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"vocab\.json has no merges\.txt beside it"):
        load_tokenizer(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    with pytest.raises(UserError, match="is the vocabulary of a CLIPTokenizer"):
        load_tokenizer(directory)
    (directory / "tokenizer_config.json").unlink()
    (directory / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="holds no vocabulary"):
        load_tokenizer(directory)


@pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "CamembertTokenizer"])
def test_a_model_whose_ids_are_shifted_asks_for_the_definition(tmp_path, name):
    train_foreign(tmp_path, pad_id=3, control_symbols=["<mask>"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(UserError, match=rf"is the model of a {name}, .* give the tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_pairs_with_bytes_for_unknown_text_take_their_roles_from_the_config(tmp_path):
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
