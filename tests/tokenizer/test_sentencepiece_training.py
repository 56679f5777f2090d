import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.errors import UserError
from jaxlm.tokenizer.sentencepiece_schema import parse_model
from jaxlm.tokenizer.sentencepiece_training import chosen_size, sentences_of
from jaxlm.tokenizer.tokenizer import train_tokenizer
from tests.tokenizer.examples import sentences, tokenizer_settings


def test_training_is_reproducible_and_role_ids_are_fixed(tokenizers, tmp_path):
    again = train_tokenizer(iter(sentences()), tokenizer_settings(), tmp_path / "again")
    assert again.fingerprint == tokenizers["unigram"].fingerprint
    assert [again.token(id) for id in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (again.pad_id, again.unk_id, again.begin_id, again.end_id, again.mask_id) == (0, 1, 2, 3, 4)
    assert again.special_ids == (0, 1, 2, 3, 4)
    assert again.vocab_size == 225
    model = parse_model((tmp_path / "again" / "tokenizer.model").read_bytes())
    assert model.trainer_spec.num_threads == 4  # not the number of processors
    other = train_tokenizer(sentences(), tokenizer_settings(lower_case=True), tmp_path / "other")
    assert other.fingerprint != again.fingerprint


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_a_vocabulary_size_out_of_range_is_reported_with_the_limit(tmp_path, algorithm):
    texts = ["a b c", "d e f", "hello there hello"]
    with pytest.raises(UserError, match="vocab_size=8000 is too large for this text; set it to at most ") as caught:
        train_tokenizer(texts, tokenizer_settings(vocab_size=8000, algorithm=algorithm), tmp_path)
    largest = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert (
        train_tokenizer(texts, tokenizer_settings(vocab_size=largest, algorithm=algorithm), tmp_path).vocab_size
        == largest
    )
    with pytest.raises(
        UserError, match="vocab_size=10 is too small for the characters of this text; set it to at least "
    ):
        train_tokenizer(texts, tokenizer_settings(vocab_size=10, algorithm=algorithm), tmp_path)


def test_settings_that_sentencepiece_rejects_are_reported(tmp_path):
    with pytest.raises(UserError, match="vocab_size=3 is too small; set it to more than 5"):
        train_tokenizer(["hello world"], tokenizer_settings(vocab_size=3), tmp_path)
    with pytest.raises(UserError, match=r"character_coverage=0\.9: must be between 0\.98 and 1"):
        train_tokenizer(["hello world"], tokenizer_settings(character_coverage=0.9), tmp_path)
    with pytest.raises(UserError, match="at least 2"):  # 256 bytes among them
        train_tokenizer(["hello world"], tokenizer_settings(vocab_size=100, byte_fallback=True), tmp_path)


@pytest.mark.parametrize("texts", [[], [" ", "\n"], ["▅"], ["\u200b\u3000"]])
def test_training_without_text_is_rejected(tmp_path, texts):
    with pytest.raises(UserError, match="there is no text to train the tokenizer on"):
        train_tokenizer(texts, tokenizer_settings(), tmp_path)


def test_an_error_while_reading_the_text_is_raised_unchanged(tmp_path):
    def broken():
        yield "the capital"
        raise UserError("line 3 is damaged")

    with pytest.raises(UserError, match="line 3 is damaged"):
        train_tokenizer(broken(), tokenizer_settings(), tmp_path)


def test_long_lines_are_not_skipped(tmp_path):
    tokenizer = train_tokenizer(["x y " * 3000, "zebra" * 2000], tokenizer_settings(vocab_size=14), tmp_path)
    assert {"x", "y", "z", "e", "b"} <= {tokenizer.token(id).removeprefix("▁") for id in range(14)}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["a b ", "é", "字 ", "🦙", "x\ny", "▅"]), st.integers(1, 2500)), max_size=4))
def test_sentences_contain_all_text_and_are_short_enough(parts):
    text = "".join(part * count for part, count in parts)
    found = list(sentences_of([text]))
    assert all(0 < len(sentence.encode()) <= 4192 for sentence in found)
    assert "".join("".join(found).split()) == "".join(text.replace("▅", " ").split())


def test_training_prints_nothing(tmp_path, capfd):
    train_tokenizer(sentences(), tokenizer_settings(), tmp_path)
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_split_han_limits_pieces_to_one_chinese_character(tmp_path):
    lines = ["我们喜欢学习中文。", "学习中文很有意思。", "我们学习 Python 和中文。", "喜欢中文的学生很多。"] * 50
    together = train_tokenizer(lines, tokenizer_settings(vocab_size=33), tmp_path / "together")
    split = train_tokenizer(lines, tokenizer_settings(vocab_size=29, split_han=True), tmp_path / "split")
    han = re.compile("[\u4e00-\u9fff]")

    def most(tokenizer) -> int:
        return max(len(han.findall(tokenizer.token(id))) for id in range(tokenizer.vocab_size))

    assert most(together) > 1
    assert most(split) == 1
    assert split.decode(split.encode("我们学习中文。").ids) == "我们学习中文。"


def test_sums_of_trained_scores_are_exact(tokenizers):
    model = parse_model(tokenizers["unigram"]._backend.content)
    scores = np.array([piece.score for piece in model.pieces], np.float32)
    assert (scores * 64 == np.round(scores * 64)).all()
    assert len(np.unique(scores)) > 50
    sums = [np.cumsum(np.tile(scores, 20)[order]) for order in (slice(None), slice(None, None, -1))]
    assert sums[0][-1] == sums[1][-1]


@pytest.mark.parametrize(
    ("megabytes", "size"), [(0.0, 256), (0.05, 256), (0.3, 1024), (1.3, 4096), (1.6, 4096), (1.7, 8192), (1000, 8192)]
)
def test_the_size_of_a_vocabulary_grows_with_the_text(megabytes, size):
    assert chosen_size(int(megabytes * 1e6)) == size


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_a_chosen_size_always_suits_the_text(tmp_path, capsys, algorithm):
    rare = "".join(chr(0x4E00 + number) for number in range(700))
    texts = {
        "few words": ["a b c", "d e f"],
        "sentences": sentences(),
        "many characters": ["".join(rare), *sentences()],
    }
    sizes = {}
    for name, content in texts.items():
        settings = tokenizer_settings(vocab_size=0, algorithm=algorithm, character_coverage=1.0)
        sizes[name] = train_tokenizer(iter(content), settings, tmp_path / name).vocab_size
        assert f"vocabulary: {sizes[name]:,} entries, chosen for " in capsys.readouterr().err
        assert settings.vocab_size == 0
    assert 5 < sizes["few words"] < 256
    assert 200 < sizes["sentences"] <= 256
    assert 700 < sizes["many characters"] <= 1100


RARE = [*sentences(2000), "Is it? It is! Pay $5 & Zero: a€"]


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("lower_case", [False, True])
def test_every_character_of_a_small_alphabet_is_kept(tmp_path, caplog, algorithm, lower_case):
    settings = tokenizer_settings(vocab_size=320, algorithm=algorithm, lower_case=lower_case)
    tokenizer = train_tokenizer(RARE, settings, tmp_path)
    ids = {text: tokenizer.encode(text).ids.tolist() for text in ("Is it?", "Is it!", "Is it$", "Is it&", "Zero€")}
    assert len({tuple(found) for found in ids.values()}) == len(ids)
    assert not any(tokenizer.unk_id in found for found in ids.values())
    assert not caplog.text


def test_rare_characters_of_a_large_alphabet_are_left_out_and_named(tmp_path, caplog):
    settings = tokenizer_settings(vocab_size=120, character_coverage=0.999)
    tokenizer = train_tokenizer(RARE, settings, tmp_path / "a")
    assert tokenizer.unk_id in tokenizer.encode("€").ids
    assert "the vocabulary leaves out" in caplog.text
    assert "'€' 1" in caplog.text
    caplog.clear()
    train_tokenizer(RARE, tokenizer_settings(vocab_size=420, byte_fallback=True), tmp_path / "b")
    assert not caplog.text
