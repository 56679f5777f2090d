"""scripts/speedrun_submit: a row is added for a significant improvement only, and all of it is made of raw results."""

import json
import os
import sys

import pytest

from jaxlm.errors import UserError
from tests.scripts import load_script


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Returns the script with made-up runs, whose loss is ten times the learning rate, plus noise of the seed."""
    made = load_script("speedrun_submit")
    monkeypatch.setattr(made, "FOLDER", tmp_path / "speedrun")
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda *_: {0, 1})
    made.ran = []

    def run_config(file, directory, seed, settings):
        made.ran.append(directory.name)
        directory.mkdir(parents=True)
        rate = json.loads(file.read_text())["optimizer"]["learning_rate"]
        (directory / "value").write_text(str(10 * rate + 0.1 * seed + 0.001 * ((7 * seed) % 3) * (rate >= 0.006)))
        assert settings["train.minutes"] == 5
        assert settings["train.count_compilation"] == "true"

    start = {"commit": "0123456789abcdef", "processor": "a processor", "cores": 2}
    monkeypatch.setattr(made, "run_config", run_config)
    monkeypatch.setattr(
        made,
        "score",
        lambda directory, *_: {"value": float((directory / "value").read_text()), "step": 100, "start": start},
    )
    monkeypatch.setattr(made, "prepare_peer", lambda file, settings, folder: None)
    monkeypatch.setattr(
        made, "run_peer", lambda folder, seed, *_: {"value": 6.5 + 0.1 * seed, "step": 50, "start": start}
    )
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    return made


@pytest.fixture
def submit(script, tmp_path, monkeypatch, capsys):
    def make(name, *options):
        arguments = [
            "speedrun_submit",
            f"--data={tmp_path}",
            f"--workdir={tmp_path / name.replace(' ', '_')}",
            f"--name={name}",
            *options,
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        status = script.main()
        return status, "".join(capsys.readouterr())

    return make


def rows(script):
    return [line for line in (script.FOLDER / "LEADERBOARD.md").read_text().splitlines() if line.startswith("| ")][1:]


def test_records_are_added_and_others_are_not(submit, script):
    assert submit("Transformers", "--peer", "--what=BERT")[0] == 0
    status, text = submit("first", "--candidate=speedrun", "--what=all of it")
    assert status == 0
    assert "first against Transformers: -6.439 (95% interval" in text
    assert "p < 0.001): a new record" in text
    assert script.ran == [f"candidate-{seed}" for seed in range(5)]
    status, text = submit("lower", "--candidate=speedrun", "--config.optimizer.learning_rate=5e-3")
    assert (status, len(rows(script))) == (0, 3)
    assert script.ran[5:9] == ["record-0", "candidate-0", "record-1", "candidate-1"]  # in turn
    status, text = submit(
        "same", "--candidate=speedrun", "--config.optimizer.learning_rate=5e-3", "--config.train.batch_size=16"
    )
    assert status == 1
    assert "same against lower: +0.000" in text
    assert "not a record, and not added" in text
    status, text = submit("worse", "--candidate=speedrun", "--config.optimizer.learning_rate=2e-2")
    assert status == 1
    table = rows(script)
    assert len(table) == 3
    assert table[0].startswith(
        "| 0 | Transformers | 6.700 | 6.504 to 6.896 | 5 |  |  | 50 | BERT | 0123456789ab | a processor, 2 cores"
    )
    assert "| -0.011 (-0.012 to -0.010) | < 0.001 |" in table[2]
    assert "`jaxlm train --config=speedrun --config.optimizer.learning_rate=5e-3`" in table[2]


def test_the_leaderboard_is_made_of_the_raw_results(submit, script):
    submit("Transformers", "--peer")
    submit("first", "--candidate=speedrun")
    page = (script.FOLDER / "LEADERBOARD.md").read_text()
    (script.FOLDER / "LEADERBOARD.md").unlink()
    script.write_leaderboard(script.FOLDER)
    assert (script.FOLDER / "LEADERBOARD.md").read_text() == page
    row = json.loads((script.FOLDER / "five_minutes" / "01_first.json").read_text())
    assert set(row["runs"]) == {"0", "1", "2", "3", "4"}
    assert row["config"]["model"]["value_residual"] == 0.5


def test_finished_runs_are_kept(submit, script, monkeypatch):
    submit("Transformers", "--peer")
    whole, calls = script.run_config, []

    def fails_once(file, directory, seed, settings):
        calls.append(seed)
        if len(calls) == 3:
            raise UserError("the disk is full")
        whole(file, directory, seed, settings)

    monkeypatch.setattr(script, "run_config", fails_once)
    status, text = submit("first", "--candidate=speedrun")
    assert (status, text.splitlines()[-1]) == (1, "speedrun_submit: the disk is full")
    assert submit("first", "--candidate=speedrun")[0] == 0
    assert calls == [0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--candidate=speedrun", "--config.tokenizer.vocab_size=4096"],
            "tokenizer.vocab_size=4096: the rules fix it at 8192",
        ),
        (
            ["--candidate=speedrun", "--config.data.sequence_length=64"],
            "data.sequence_length=64: the rules fix it at 128",
        ),
        (["--candidate=speedrun", "--config.evaluation.rows=1"], "evaluation.rows=1: the rules fix it at 512"),
        (["--candidate=speedrun", "--seeds=1"], "--seeds=1: a record needs at least 2 seeds"),
        (["--candidate=speedrun", "--track=hour"], "--track=hour needs --tasks=DIR, the folder of GLUE"),
        (["--candidate=nothing"], "there is no recipe nothing"),
        ([], "--candidate=CONFIG is missing"),
        (["--peer", "--data=nothing"], "--data=nothing has no train.jsonl"),
    ],
)
def test_what_cannot_be_submitted_is_said_in_a_sentence(submit, script, options, sentence):
    status, text = submit("candidate", *options)
    assert status == 1
    assert sentence in text
    assert text.count("\n") == 1
    assert script.ran == []
    assert not script.FOLDER.exists()
