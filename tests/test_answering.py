"""Fine-tuning on questions from SQuAD files: a run's metrics, predictions, submission and null threshold."""

import json
import random

import pytest

from jaxlm.config import load_config
from jaxlm.init_from import start_settings
from jaxlm.trainer import train
from tests.conftest import OBJECTS, PLACES, ROOT, SUBJECTS, VERBS, write_checkpoint


def write_squad(path, count, seed):
    """Writes questions about made-up sentences with double spaces and CRLF; each third one has no answer."""
    rng, paragraphs = random.Random(seed), []
    for number in range(count):
        subject, place = rng.choice(SUBJECTS), rng.choice(PLACES)
        context = f"  {subject}  {rng.choice(VERBS)}\r\n{rng.choice(OBJECTS)} {place}."
        answers = [{"text": subject, "answer_start": 2}] if number % 3 else []
        question = {"id": f"{path.stem}-{number}", "question": "who?", "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": context, "qas": [question]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}]}))
    return path


@pytest.mark.slow
def test_questions_are_learned_and_the_threshold_is_that_of_the_selecting_set(tmp_path, text_file, capsys):
    encoder = write_checkpoint(tmp_path / "encoder", text_file)
    files = {name: write_squad(tmp_path / f"{name}.json", count, seed) for seed, (name, count) in
             enumerate([("train", 120), ("dev", 30), ("hidden", 9)])}  # fmt: skip
    unknown = json.loads(files["hidden"].read_text())
    for paragraph in unknown["data"][0]["paragraphs"]:
        for name in ("answers", "is_impossible"):
            del paragraph["qas"][0][name]
    files["hidden"].write_text(json.dumps(unknown))
    settings = [
        f"task.train={files['train']}", f"task.evaluation=dev={files['dev']}", f"task.test=hidden={files['hidden']}",
        "task.submission=true", "data.sequence_length=32", "evaluation.select_fraction=0.3",
        "train.batch_size=16", "train.epochs=none", "train.steps=30",
        "evaluation.every=15", "evaluation.per_epoch=0", "checkpoint.every=15", "model.dropout=0",
        "model.attention_dropout=0", "optimizer.learning_rate=0.01", "schedule.name=constant", "schedule.warmup=0",
        "logging.tensorboard=false", "logging.curve=false", "train.compute_dtype=float32",
    ]  # fmt: skip
    recipe, workdir = f"{ROOT / 'configs' / 'finetune.py'}:span", tmp_path / "run"
    result = train(load_config(recipe, [f"init_from={encoder}", *settings], start_settings), workdir)
    dev = result["evaluation"]["dev"]
    assert (dev["n"], dev["n_unanswerable"], dev["segmentation"]) == (30, 10, "words")
    assert result["evaluation"]["hidden"]["n"] == 0
    assert "dev: F1 " in capsys.readouterr().out
    results = json.loads((workdir / "results.json").read_text())
    assert results["evaluation"]["dev"] == dev
    assert results["protocol"]["selected_by"] == "highest f1 on selection"
    # The threshold is fitted on the selecting set with the reported parameters, and saved.
    fitted = json.loads((workdir / "calibration.json").read_text())
    assert fitted["null_threshold"] == dev["null_threshold"]
    assert (fitted["step"], fitted["fitted_on"]) == (results["protocol"]["step"], "selection")
    if results["protocol"]["step"] == 30:
        assert results["selection"]["selection"]["null_threshold"] == dev["null_threshold"]
    for name, count in (("dev", 30), ("hidden", 9)):
        lines = [json.loads(line) for line in (workdir / "predictions" / f"{name}.jsonl").read_text().splitlines()]
        rows = json.loads(files[name].read_text())["data"][0]["paragraphs"]
        assert [line["id"] for line in lines] == [row["qas"][0]["id"] for row in rows]
        assert len(lines) == count
        assert all(
            row["context"][one["start"] : one["end"]] == one["text"] for row, one in zip(rows, lines, strict=True)
        )
        submission = json.loads((workdir / "predictions" / f"{name}.json").read_text())
        assert submission == {line["id"]: line["text"] for line in lines}
        odds = json.loads((workdir / "predictions" / f"{name}.null_odds.json").read_text())
        threshold = dev["null_threshold"]
        assert all((odds[line["id"]] > threshold) == (line["text"] == "") for line in lines)
    # A run that starts from this one takes over its head: the same task.
    config = load_config(recipe, [f"init_from={workdir}", *settings, "train.steps=1"], start_settings)
    again = train(config, tmp_path / "again")
    first = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    before = next(event for event in first if event["kind"] == "evaluation" and event["name"] == "selection")
    last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    after = [event for event in last if event["kind"] == "evaluation" and event["name"] == "selection"][-1]
    assert before["loss"] == pytest.approx(after["loss"], rel=1e-3)
    assert again["step"] == 1
