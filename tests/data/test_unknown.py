import numpy as np
import pytest

from jaxlm.data.unknown import Spelling, check_spelling, spelling_of, spelling_of_ids
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.tokenizer.examples import saved, wordpiece


@pytest.fixture(scope="module")
def tokenizer(tokenizer_directory):
    return load_tokenizer(tokenizer_directory)


def test_special_tokens_and_spaces_are_neither_known_nor_unknown(tokenizer):
    ids = tokenizer.encode("the Ж the ЖЖ Ж").ids
    assert "▁" in [tokenizer.token(id) for id in ids.tolist()]
    assert spelling_of_ids(np.append(ids, [tokenizer.end_id, tokenizer.mask_id]), tokenizer) == Spelling(3, 2, 2)
    counts = np.bincount(ids, minlength=tokenizer.vocab_size)
    assert spelling_of(counts, tokenizer) == Spelling(3, 2, 2)
    assert spelling_of(np.append(counts, [7]), tokenizer) == Spelling(3, 2, 2)  # a spare row of the token table


def test_punctuation_is_known_but_no_word(tmp_path):
    tokenizer = load_tokenizer(saved(wordpiece(), tmp_path))
    assert spelling_of_ids(tokenizer.encode("Ж, Ж. the:").ids, tokenizer) == Spelling(2, 4, 1)


def test_shares_are_of_known_and_unknown_tokens():
    assert Spelling(0, 0, 0).unknown_share == 0
    assert str(Spelling(1, 3, 2) + Spelling(0, 4, 1)) == "12.50% of 8 tokens are unknown"


def test_more_than_one_percent_is_a_warning_and_nothing_known_an_error(tokenizer, caplog):
    check_spelling({"a": Spelling(1, 99, 9), "b": Spelling(0, 5, 0), "c": Spelling(0, 0, 0)}, tokenizer)
    assert not caplog.text
    check_spelling({"a": Spelling(2, 98, 1)}, tokenizer)
    assert "a: 2.0% of 100 tokens are [UNK]" in caplog.text
    with pytest.raises(
        UserError, match=r"^b: the vocabulary has no token for the words of this text, only \[UNK\]; use a tokenizer"
    ):
        check_spelling({"b": Spelling(1, 5, 0)}, tokenizer)
