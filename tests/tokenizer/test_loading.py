import json
import shutil

import pytest

from jaxlm.errors import UserError
from jaxlm.tokenizer.sentencepiece_schema import parse_model
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.tokenizer.examples import (
    BERT,
    byte_level,
    metaspace,
    pieces,
    saved,
    sentences,
    train_foreign,
    vocab_file,
    wordpiece,
)

NAMES = ("unigram", "bpe", "lower", "bytes", "wordpiece", "byte_level", "metaspace")
every_tokenizer = pytest.mark.parametrize("name", NAMES)


@every_tokenizer
def test_a_saved_tokenizer_is_restored(tokenizers, name, tmp_path):
    tokenizer = tokenizers[name].with_words("spaces")
    tokenizer.save(tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.words == "spaces"
    assert loaded.special_ids == tokenizer.special_ids
    text = f"the {loaded.mask_token} Paris [SEP] ½"
    assert loaded.encode(text, True).ids.tolist() == tokenizer.encode(text, True).ids.tolist()
    assert load_tokenizer(tmp_path / "a", "unicode").fingerprint == tokenizers[name].fingerprint
    assert not list((tmp_path / "a").glob(".*jaxlm-tmp"))


def test_the_fingerprint_does_not_depend_on_irrelevant_bytes_of_the_file(tokenizers, tmp_path):
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


def test_a_model_without_mask_and_pad_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"no special token for pad \(\[PAD\], <pad>\), mask \(\[MASK\], <mask>\)"):
        load_tokenizer(train_foreign(tmp_path))


def test_the_special_tokens_of_another_model_are_found(tmp_path):
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
    assert "<sep>" in pieces(tokenizer, "the <sep> of")  # an ordinary piece of that model
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "<s>", "sep_token": {"content": "</s>"}}))
    assert load_tokenizer(tmp_path).token(load_tokenizer(tmp_path).begin_id) == "<s>"
    assert load_tokenizer(tmp_path).token(load_tokenizer(tmp_path).end_id) == "</s>"
    assert load_tokenizer(tmp_path).fingerprint != tokenizer.fingerprint


def test_the_unknown_piece_of_the_model_takes_precedence(tmp_path):
    tokenizer = load_tokenizer(
        train_foreign(tmp_path, pad_id=3, unk_piece="<oov>", control_symbols=["<mask>", "<unk>"])
    )
    assert tokenizer.token(tokenizer.unk_id) == "<oov>"
    assert tokenizer.encode("🦙").ids.tolist()[-1] == tokenizer.unk_id


def test_ids_equal_those_of_the_tokenizers_library(tokenizers, tmp_path):
    for name, original in (("byte_level", byte_level()), ("wordpiece", wordpiece()), ("metaspace", metaspace())):
        for text in [*sentences(30, seed=1), "½ 🦙 Zoë  x"]:
            assert tokenizers[name].encode(text).ids.tolist() == original.encode(text, add_special_tokens=False).ids, (
                name
            )


def test_padding_and_truncation_of_a_definition_are_ignored(tmp_path):
    tokenizer = byte_level()
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(3)
    loaded = load_tokenizer(saved(tokenizer, tmp_path))
    assert len(loaded.encode("the capital of France is Paris").ids) not in (3, 50)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nowhere", None, "there is no tokenizer "),
        ("a.bin", b"x", "is not a supported tokenizer file"),
        ("a.model", b"garbage", "is damaged or not a SentencePiece model"),
        ("a.model", b"", "is damaged or not a SentencePiece model"),
        ("tokenizer.json", b"{", "is not valid JSON"),
        ("tokenizer.json", b"[]", "does not hold a JSON object"),
        ("tokenizer.json", b"{}", "is not a tokenizer; give a tokenizer.json"),
        ("tokenizer.json", b'{"model": {"vocab": 3}}', "model: vocab=3: expected an object"),
        ("vocab.txt", b"[PAD]\ncaf\xe9\n", "line 2, byte 9: not UTF-8"),
        ("vocab.txt", b"a\nb\n", "has no special token for pad .*mask"),
        ("vocab.txt", b"", "has no special token for pad .*mask"),
    ],
)
def test_an_unusable_file_is_reported_in_one_sentence(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_an_invalid_definition_is_reported(tmp_path):
    content = json.loads(wordpiece().to_str())
    content["pre_tokenizer"] = {"type": "Nonsense"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the `tokenizers` library cannot load .*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_an_empty_folder_and_two_models_are_rejected(tmp_path, tokenizers):
    with pytest.raises(UserError, match=r"contains no tokenizer; give a folder with a tokenizer\.json"):
        load_tokenizer(tmp_path)
    tokenizers["unigram"].save(tmp_path)
    shutil.copy(tmp_path / "tokenizer.model", tmp_path / "b.model")
    (tmp_path / "jaxlm_tokenizer.json").unlink()
    with pytest.raises(UserError, match="contains several models"):
        load_tokenizer(tmp_path)


def test_a_damaged_record_is_rejected(tmp_path, tokenizers):
    tokenizers["unigram"].save(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"lacks tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "jaxlm_tokenizer.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match="lacks file; copy the tokenizer again"):
        load_tokenizer(tmp_path)
    (tmp_path / "jaxlm_tokenizer.json").write_text('{"format_version": 1')
    with pytest.raises(UserError, match="is not valid JSON"):
        load_tokenizer(tmp_path)


def test_one_token_for_two_roles_is_rejected(tmp_path):
    vocab_file(tmp_path, BERT, {"do_lower_case": True, "pad_token": "[SEP]"})
    with pytest.raises(UserError, match="one special token for several"):
        load_tokenizer(tmp_path)
