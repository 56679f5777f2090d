import numpy as np
from tokenizers import Tokenizer, models

from jaxlm.data.facts import facts_of
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.tokenizer.examples import BERT, saved


def test_ids_without_a_token_count_as_special(tmp_path):
    vocabulary = {piece: id for id, piece in enumerate(BERT[:8])} | {"zoo": 10}
    tokenizer = load_tokenizer(saved(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")), tmp_path))
    facts = facts_of(tokenizer, np.arange(11), ("no", "yes"))
    assert facts.special_ids == (0, 1, 2, 3, 4, 8, 9)
    assert (facts.vocab_size, facts.mask_id, facts.pad_id, facts.labels) == (11, 4, 0, ("no", "yes"))
