"""A template learned from labelled rows: the masked-LM head goes on, and the result is a masked language model."""

import json

import numpy as np
import pytest

from jaxlm import cli
from jaxlm.config import load_config
from jaxlm.errors import UserError
from jaxlm.init_from import resolve, start_settings
from jaxlm.runtime.run_log import read_metrics
from jaxlm.trainer import train
from jaxlm.use.loading import load_trained
from jaxlm.use.model import load
from tests.conftest import ROOT, predictions_of, write_checkpoint, write_text
from tests.test_finetuning import write_table

TEMPLATE, WORDS = "{sentence} it was [MASK].", "calm=harbour/house,busy=music"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    text = write_text(folder / "text.txt", 200)
    write_checkpoint(folder / "bert", text)
    write_checkpoint(folder / "headless", text, head=False, architectures=["BertModel"])
    for seed, (name, count) in enumerate([("train", 300), ("dev", 60)]):
        write_table(folder / f"{name}.tsv", count, seed)
    return folder


@pytest.fixture
def config(folder):
    """Returns the config of finetune:template from the checkpoint, with overrides."""

    def make(*overrides):
        settings = [
            f"init_from={folder / 'bert'}", f"task.train={folder / 'train.tsv'}",
            f"task.evaluation=dev={folder / 'dev.tsv'}", f"task.template={TEMPLATE}", f"task.label_words={WORDS}",
            "data.sequence_length=40", "model.dropout=0", "model.attention_dropout=0", "train.epochs=none",
            "train.steps=60", "evaluation.every=20", "evaluation.per_epoch=0", "checkpoint.every=100",
            "optimizer.learning_rate=0.01", "logging.tensorboard=false", "logging.curve=false", "logging.every=20",
            "train.compute_dtype=float32", "schedule.name=constant", "schedule.warmup=0",
        ]  # fmt: skip
        path = f"{ROOT / 'configs' / 'finetune.py'}:template"
        return load_config(path, [*settings, *overrides], start_settings)

    return make


@pytest.mark.slow
def test_a_template_is_learned_used_and_exported(config, folder, tmp_path, capsys):
    run = tmp_path / "run"
    result = train(config(), run)
    assert result["evaluation"]["dev"]["accuracy"] > 0.9
    results = json.loads((run / "results.json").read_text())
    assert results["protocol"]["template"] == TEMPLATE
    assert results["protocol"]["label_words"] == {"busy": ["music"], "calm": ["harbour", "house"]}

    # Step 0 is the result without training.
    before = next(e for e in read_metrics(run) if e["kind"] == "evaluation" and e["name"] == "dev" and e["step"] == 0)
    capsys.readouterr()
    settings = (f"--task.template={TEMPLATE}", f"--task.label_words={WORDS}", f"--task.evaluation={folder / 'dev.tsv'}")
    assert cli.main(["evaluate", f"--model={folder / 'bert'}", *settings, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["evaluation"]
    assert measured["accuracy"] == before["accuracy"]
    assert measured["loss"] == pytest.approx(before["loss"], rel=1e-5)

    # Use: the predictions of the run again, the words at the mask, and the metrics.
    again = tmp_path / "again.jsonl"
    assert cli.main(["classify", f"--model={run}", f"--input={folder / 'dev.tsv'}", f"--output={again}"]) == 0
    assert predictions_of(again) == predictions_of(run / "predictions" / "dev.jsonl")
    sentence = (folder / "dev.tsv").read_text().splitlines()[1].split("\t")[0]
    model = load(run)
    words = {one.word: one.probability for one in
             model.fill_mask(f"{sentence} it was [MASK].", targets=["harbour", "house", "music"])[0]}  # fmt: skip
    logits = np.log([words["music"], words["harbour"] + words["house"]])
    temperature = json.loads((run / "calibration.json").read_text())["temperature"]
    scores = np.exp(logits / temperature)
    found = model.classify([sentence])[0]["probabilities"]
    assert list(found.values()) == pytest.approx((scores / scores.sum()).tolist(), abs=1e-4)
    capsys.readouterr()
    assert cli.main(["evaluate", f"--model={run}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(results["evaluation"]))

    # The export is a masked language model with the same logits, and training goes on from both.
    out = tmp_path / "out"
    assert cli.main(["export", f"--workdir={run}", f"--to={out}"]) == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    card = (out / "README.md").read_text()
    assert "| dev | 60 |" in card
    assert f"at the mask of the template `{TEMPLATE}`: busy (music), calm (harbour, house)." in card
    tokens = model.tokenize(f"{sentence} it was [MASK].")[None]
    np.testing.assert_array_equal(load(out).logits(tokens), model.logits(tokens))
    assert load_trained(run).has_head
    for start in (run, out):
        train(config(f"init_from={start}", "train.steps=1"), tmp_path / f"on-{start.name}", resolve(str(start)))
        events = [e for e in read_metrics(tmp_path / f"on-{start.name}") if e["kind"] == "evaluation"]
        first = next(e for e in events if e["name"] == "dev" and e["step"] == 0)
        assert first["accuracy"] == results["evaluation"]["dev"]["accuracy"]


@pytest.mark.slow
def test_a_resumed_template_ends_with_the_same_bits(config, tmp_path):
    settings = ("model.dropout=0.1", "evaluation.every=0", "checkpoint.every=5", "task.softmax=vocabulary")
    whole = train(config("train.steps=12", *settings), tmp_path / "whole")
    train(config("train.steps=7", *settings), tmp_path / "parts")
    parts = train(config("train.steps=12", *settings), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]


def test_a_model_without_a_masked_lm_head_is_refused(config, folder, tmp_path):
    message = "has no masked-LM head, with which train.objective=template predicts words; start from a model that has"
    headless = folder / "headless"
    with pytest.raises(UserError, match=message):
        train(config(f"init_from={headless}"), tmp_path / "run", resolve(str(headless)))
    with pytest.raises(UserError, match=r"task\.teacher does not apply to train\.objective=template"):
        train(config("task.teacher=runs/other"), tmp_path / "run")
