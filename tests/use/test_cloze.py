"""Log-probabilities and ranks of cloze targets, compared with the model's own logits."""

import itertools

import jax
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.text.probe_sets import Cloze
from jaxlm.use.cloze import predict_targets
from jaxlm.use.loading import load_trained
from jaxlm.use.model import Model
from tests.parity.minicons_scores import make_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return load_trained(make_checkpoint(tmp_path_factory.mktemp("cloze") / "bert"))


def cloze(before: str, target: str, after: str) -> Cloze:
    return Cloze("a.tsv, line 2", before + target + after, len(before), len(before) + len(target))


def expected(trained, tokens, first, last, variant):
    """Returns the sum of the log-probabilities of tokens first to last, and the worst rank."""
    total, worst = 0.0, 0
    for position in range(first, last + 1):
        row = tokens.copy()
        row[position : position + 1 if variant == "original" else last + 1] = trained.tokenizer.mask_id
        logits = np.asarray(jax.nn.log_softmax(Model(trained).logits(row[None])))[0, position]
        total += float(logits[tokens[position]])
        worst = max(worst, int((logits >= logits[tokens[position]]).sum()))
    return total, worst


@pytest.mark.parametrize("variant", ["within_word_l2r", "original"])
def test_the_tokens_of_a_target_are_predicted_from_left_to_right(trained, variant):
    tokens = Model(trained).tokenize("a bird sees his garden")
    sizes = [len(trained.tokenizer.encode(word).ids) for word in ("a", "bird", "sees his")]
    assert min(sizes[1:]) > 1  # tokens
    begins = np.cumsum([1, *sizes])
    texts = [cloze("a ", "bird", " sees his garden"), cloze("a bird ", "sees his", " garden")]
    found = predict_targets(trained, texts, variant)
    for number, (first, end) in enumerate(itertools.pairwise(begins[1:])):
        total, rank = expected(trained, tokens, first, end - 1, variant)
        assert found.log_probabilities[number] == pytest.approx(total, abs=1e-3)
        assert found.ranks[number] == rank


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (cloze("a ", "語", " sees"), "line 2: the vocabulary has no token for the target '語' or a part of it"),
        (cloze("a ", "bird 語", " sees"), "no token for the target 'bird 語'"),
        (
            cloze("a ", "bird", " sees" * 60),
            "line 2 has .* tokens, but the model reads at most 62 besides begin and end",
        ),
    ],
)
def test_texts_that_cannot_be_predicted_raise_one_sentence(trained, text, error):
    with pytest.raises(UserError, match=error):
        predict_targets(trained, [text], "original")
