"""Words replaced by the predictions of a masked language model: computed once, kept, and the same on every device."""

import json
import shutil

import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.init_from import resolve
from jaxlm.run import load_run_config, set_up
from jaxlm.trainer import train
from jaxlm.use.replacements import CANDIDATES, EXCLUDED, FILE, _drawn
from tests.test_finetuning import classify, encoder  # noqa: F401  fixtures

REPLACE = ("task.replace_words=0.2", "task.replace_copies=2", "task.augmented_share=0.8")
ALONE = ("evaluation.select=none", "evaluation.calibrate=false", "evaluation.every=0")


def test_a_word_is_drawn_by_its_probability_and_never_the_original():
    count = 4000
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32)).repeat(count, 0)
    ids = np.array([[7, 8, 9, 10]], np.int32).repeat(count, 0)
    numbers = (np.arange(count) + 0.5) / count
    found = _drawn(logits, ids, np.full(count, 7), numbers)
    shares = [(found == id).mean() for id in (7, 8, 9, 10)]
    np.testing.assert_allclose(shares, [0, 0.6, 0.3, 0.1], atol=1e-3)
    assert (_drawn(logits, ids, np.full(count, -1), numbers) == 7).mean() == pytest.approx(0.5, abs=1e-3)
    excluded = np.full((1, 4), EXCLUDED, np.float32)
    assert _drawn(excluded, ids[:1], np.array([7]), np.array([0.5])).tolist() == [-1]
    many = np.arange(CANDIDATES + 1)[None]
    last = _drawn(np.zeros((1, CANDIDATES + 1), np.float32), many, np.array([-1]), np.array([0.999]))
    assert last.tolist() == [CANDIDATES - 1]


@pytest.mark.slow
def test_a_run_with_all_ways_resumes_with_the_same_bits_without_the_model(classify, encoder, tmp_path, capsys):  # noqa: F811
    start = shutil.copytree(encoder, tmp_path / "start")
    changes = (*REPLACE, "task.delete_words=0.1", "task.swap_words=0.1", f"init_from={start}", *ALONE)
    whole = train(classify("train.steps=8", "checkpoint.every=3", *changes), tmp_path / "whole")
    shown = capsys.readouterr()
    assert "words deleted in" in shown.out
    assert "words swapped in" in shown.out
    assert "words replaced in" in shown.out
    assert "in 2 copies of 300 texts" in shown.err

    train(classify("train.steps=5", "checkpoint.every=3", *changes), tmp_path / "parts")
    config = classify("train.steps=8", "checkpoint.every=3", *changes)
    shutil.rmtree(start / "checkpoints")  # the weights; the tokenizer stays
    (start / "config.json").unlink()
    parts = train(*load_run_config(config, [], tmp_path / "parts")[:1], tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]

    run = set_up(config, tmp_path / "whole")
    tokenizer, train_set = run.data.tokenizer, run.data.train
    replacements = run.data.augmentation.replacements
    assert len(replacements) == len(train_set) == 300
    changed = [int((found >= 0).sum(1).min()) for found in replacements]
    assert min(changed) == 1
    words = sum(found.size for found in replacements)
    assert 0.1 < sum(int((found >= 0).sum()) for found in replacements) / words < 0.4
    for found, numbers, tokens in zip(replacements, run.data.augmentation.words, train_set.tokens, strict=True):
        for word in np.flatnonzero((found >= 0).any(0)):
            pieces = tokens[numbers == word]
            for token in found[:, word][found[:, word] >= 0].tolist():
                assert any(map(str.isalnum, tokenizer.text_of(token)))
                assert tokenizer.starts_word(token) == tokenizer.starts_word(int(pieces[0]))
                assert pieces.tolist() != [token]
    assert all(not run.data.sets[name].columns.keys() - {"labels", "weights"} for name in run.data.sets)

    # A damaged file is computed again, which needs the model.
    (tmp_path / "parts" / FILE).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"start has no config\.json"):
        set_up(config, tmp_path / "parts")


@pytest.mark.slow
def test_a_model_that_cannot_predict_words_is_refused_before_data_are_read(classify, encoder, tmp_path):  # noqa: F811
    train(classify("train.steps=1", *ALONE), tmp_path / "classifier")
    config = classify(f"init_from={tmp_path / 'classifier'}", "task.train=/nowhere.tsv", *REPLACE)
    with pytest.raises(
        UserError, match=r"replace_words=0\.2 needs a model with a masked-LM head, and .* has none: set"
    ):
        set_up(config, tmp_path / "run", resolve(str(tmp_path / "classifier")))
    other = classify(f"init_from={tmp_path / 'classifier'}", f"task.replace_model={encoder}", *REPLACE)
    run = set_up(other, tmp_path / "run", resolve(str(tmp_path / "classifier")))
    assert run.data.augmentation.ways == ["replace"]
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["task"]["replace_model"] == str(encoder)
