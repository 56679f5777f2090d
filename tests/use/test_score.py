import io
import json

import jax
import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.use import score as module
from jaxlm.use.loading import load_trained
from jaxlm.use.model import Model
from jaxlm.use.score import score
from tests.conftest import sentences
from tests.parity import minicons_scores
from tests.untrained import LENGTH, make_workdir

TEXTS = ["The cat sees.", *sentences(3, seed=2)[:2], "cat"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("score") / "run")


@pytest.fixture(scope="module")
def trained(workdir):
    return load_trained(workdir)


def expected(trained, text, variant):
    """Returns the log-probabilities computed from one masked copy per row of LENGTH tokens."""
    tokenizer, encoding = trained.tokenizer, trained.tokenizer.encode(text)
    starts = np.append(encoding.word_starts, True)
    whole = Model(trained).tokenize(text)
    rows = np.full((len(encoding.ids), LENGTH), tokenizer.pad_id, np.int32)
    for number in range(len(rows)):
        end = number + 1
        while variant == "within-word" and not starts[end]:
            end += 1
        row = whole.copy()
        row[number + 1 : end + 1] = tokenizer.mask_id
        rows[number, : len(row)] = row
    segment_ids = np.broadcast_to(np.arange(LENGTH) < len(whole), rows.shape).astype(np.int32)
    logits = jax.nn.log_softmax(Model(trained).logits(rows, segment_ids))
    return [float(logits[n, n + 1, id]) for n, id in enumerate(encoding.ids)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["original", "within-word"])
def test_a_score_is_the_sum_over_masked_copies(trained, variant):
    for text, result in zip(TEXTS, score(trained, TEXTS, variant), strict=True):
        values = expected(trained, text, variant)
        assert result.text == text
        assert list(result.log_probabilities) == pytest.approx(values, abs=1e-4)
        assert result.total == pytest.approx(sum(values), abs=1e-3)
        assert result.per_token == pytest.approx(sum(values) / len(values), abs=1e-4)
        assert [*result.tokens] == [trained.tokenizer.token(int(id)) for id in trained.tokenizer.encode(text).ids]


@pytest.mark.slow
def test_the_variants_differ_only_within_words_of_several_tokens(trained):
    text = TEXTS[1]
    original, within = (next(score(trained, [text], variant)) for variant in ("original", "within-word"))
    starts = trained.tokenizer.encode(text).word_starts
    last_of_word = np.append(starts[1:], True)
    difference = np.abs(np.subtract(original.log_probabilities, within.log_probabilities))
    assert (difference[last_of_word] < 1e-5).all()
    assert (difference[~last_of_word] > 1e-5).all()
    assert (~last_of_word).any()


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch(trained, monkeypatch):
    together = [result.total for result in score(trained, TEXTS)]
    alone = [next(score(trained, [text], batch_tokens=64)).total for text in TEXTS]
    assert alone == pytest.approx(together, abs=1e-3)
    monkeypatch.setattr(module, "GROUP_TOKENS", 100)
    monkeypatch.setattr(module, "LOGIT_ROWS", 8)
    jax.clear_caches()  # the new values are read when the program is traced
    assert [result.total for result in score(trained, TEXTS)] == pytest.approx(together, abs=1e-3)
    assert list(score(trained, [])) == []


@pytest.mark.parametrize("variant", minicons_scores.METRICS)
def test_scores_are_those_of_minicons(tmp_path, variant):
    trained = load_trained(minicons_scores.make_checkpoint(tmp_path / "bert"))
    found = [result.total for result in score(trained, minicons_scores.TEXTS, variant)]
    assert found == pytest.approx(json.loads(minicons_scores.GOLDEN.read_text())[variant], abs=1e-3)


def test_names_of_texts_are_those_of_the_caller(trained):
    with pytest.raises(UserError, match=r"^a\.txt, line 2 is empty"):
        list(score(trained, ["the", ""], names=["a.txt, line 1", "a.txt, line 2"]))


@pytest.mark.parametrize(
    ("texts", "variant", "error"),
    [
        (["the", ""], "original", "text 2 is empty"),
        (["the", " \t"], "original", "text 2 is empty"),
        (["the", "語 語"], "original", r"text 2 has only characters that are not in the vocabulary \('語 語'\)"),
        (["the", "the [MASK] cat"], "original", r"text 2 contains the mask \[MASK\], which has no probability"),
        (["the cat " * 30], "original", f"text 1 has .* reads at most {LENGTH - 2} besides begin and end"),
        (["x"], "salazar", "variant=salazar is not one of within-word, within_word_l2r, original"),
    ],
)
def test_texts_that_cannot_be_scored_raise_one_sentence(trained, texts, variant, error):
    with pytest.raises(UserError, match=error):
        list(score(trained, texts, variant))


def test_a_model_without_a_head_raises(trained):
    with pytest.raises(UserError, match="no masked-LM head"):
        Model(trained._replace(has_head=False)).score(["x"])


def test_the_verb_prints_sums_means_and_texts(workdir, trained, tmp_path, capsys, monkeypatch):
    result = next(score(trained, TEXTS[:1]))
    line = f"{result.total:10.3f}  {result.per_token:8.3f}  {TEXTS[0]}\n"
    assert main(["score", f"--model={workdir}", TEXTS[0]]) == 0
    assert capsys.readouterr().out == line
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": TEXTS[0]}) + "\n")
    assert main(["score", f"--model={workdir}", f"--input={tmp_path / 'a.jsonl'}", "--field=body"]) == 0
    assert capsys.readouterr().out == line
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXTS[0] + "\n"))
    assert main(["score", f"--model={workdir}", "--json", "--variant=original"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["texts"]
    assert answer["total"] == pytest.approx(next(score(trained, TEXTS[:1], "original")).total, abs=1e-4)
    assert len(answer["tokens"]) == len(answer["log_probabilities"])


def test_unknown_characters_are_reported(workdir, caplog):
    assert main(["score", f"--model={workdir}", "the cat 語"]) == 0
    assert "the texts: 25.0% of 4 tokens are [UNK]" in caplog.text


def test_texts_without_a_known_token_are_refused(trained):
    with pytest.raises(UserError, match=r"text 1 has only characters that are not in the vocabulary \('Привет'\)"):
        list(score(trained, ["Привет", "мир"]))


def test_invalid_arguments_print_one_sentence(workdir, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.txt").write_text("")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    model = f"--model={workdir}"
    for arguments, error in [
        ((model, "x", f"--input={tmp_path / 'empty.txt'}"), "not both"),
        ((model, "x", "--field=body"), "--field=body applies to the file of --input"),
        ((model, "x", "--encoding=latin-1"), "--encoding=latin-1 applies to the file of --input"),
        ((model, f"--input={tmp_path / 'empty.txt'}"), "contains no text"),
        ((model, f"--input={tmp_path / 'none.txt'}"), str(tmp_path / "none.txt")),
        ((model,), "no text given"),
        ((model, "--input="), "--input= is empty"),
        ((model, "--variant=pll", "x"), "invalid choice"),
        (("--model=nowhere", "x"), "no directory nowhere"),
    ]:
        assert main(["score", *arguments]) == 1
        assert error in capsys.readouterr().err
