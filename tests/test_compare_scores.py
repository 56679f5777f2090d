"""scripts/compare_scores: both programs read the same rows at the same setting, and a second start repeats nothing."""

import importlib
import json
from argparse import Namespace
from pathlib import Path

import pytest

from jaxlm.errors import UserError
from tests.scripts import load_script, write_sick


@pytest.fixture(scope="module")
def script():
    return load_script("compare_scores")


@pytest.fixture
def sick(tmp_path):
    return write_sick(tmp_path / "sick")


def test_both_programs_read_the_same_columns(script, sick, tmp_path):
    task = script.read_task(f"sick_relatedness={sick}")
    files = script.task_files(task, 5, tmp_path)
    assert files["reported"].read_text().splitlines()[:2] == ["a\tb\tlabel", "a test 0\tb 0\t1"]
    assert len(files["train"].read_text().splitlines()) == 6
    args = Namespace(python="python", peer=Path("peer.py"), model="MODEL", rate=5e-5, epochs=3.0)
    command = script.peer_command(task, files, 1, args)
    assert {"--regression", "--text=0", "--text2=1", "--label=2", "--seed=1", "--lr=5e-05"} <= set(command)


def test_tags_and_answers_are_read_by_both_and_scored_here(script, tmp_path):
    folder = tmp_path / "wnut"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"{name}.conll").write_text("Anna\tB-person\nleft\tO\n\nBern\tB-location\n\n")
    context = "Anna left Bern."
    question = {"id": "1", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 0}]}
    paragraphs = [{"context": context, "qas": [question, question | {"id": "2"}]}]
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    args = Namespace(python="python", model="MODEL", rate=5e-5, epochs=3.0)
    for argument, answers, f1 in [
        (f"wnut17={folder}", [{"tags": ["B-person", "O"]}, {"tags": ["O"]}], 2 / 3),
        (f"mine={tmp_path}/a.json,{tmp_path}/a.json", [{"text": "Anna left"}, {"text": "Anna"}], 5 / 6),
    ]:
        task = script.read_task(argument)
        files = script.task_files(task, 5, tmp_path)
        command = script.peer_command(task, files, 1, args)
        assert {f"--kind={task.objective}", f"--train={files['train']}", f"--length={task.length}"} <= set(command)
        predictions = tmp_path / "predictions.jsonl"
        assert f"--output={predictions}" in command
        predictions.write_text("".join(json.dumps(one) + "\n" for one in answers))
        assert script.f1_of(task, files["reported"], predictions) == pytest.approx(f1)
        read_rows = importlib.import_module("finetuning").read_rows
        before, after = read_rows(task, task.reported), read_rows(task, files["reported"])
        assert [row.values | {"line": 0} for row in before] == [row.values | {"line": 0} for row in after]


def test_finished_runs_are_not_repeated(script, sick, tmp_path, monkeypatch):
    done: list[str] = []

    def finished(name: str):
        return lambda *_: done.append(name) or {"score": 0.5 + len(done) / 100, "rate": 10.0, "n": 8}

    monkeypatch.setattr(script, "measure_own", finished("jaxlm"))
    monkeypatch.setattr(script, "measure_peer", finished("peer"))
    args = Namespace(
        seeds=2, rate=5e-5, epochs=3.0, examples=5, runs=tmp_path / "runs.jsonl", output=tmp_path / "page.md",
        python="python", peer=Path("peer.py"), model="MODEL",
    )  # fmt: skip
    tasks = [script.read_task(f"sick_relatedness={sick}")]
    script.compare(tasks, args)
    script.compare(tasks, args)
    assert done == ["jaxlm", "peer"] * 2
    assert [json.loads(line)["seed"] for line in args.runs.read_text().splitlines()] == [0, 0, 1, 1]
    row = (
        "| sick_relatedness (test, 8) | Pearson correlation | 5 | 2 | 52.0 | 51.0 to 53.0 | 53.0 | 52.0 to 54.0 | 1.0 |"
    )
    assert row in args.output.read_text()


@pytest.mark.parametrize("argument", ["sst2", "trecqa=.", "nothing=.", "sst2=.", "mine=a.json,b.json"])
def test_tasks_that_cannot_be_compared_are_refused(script, argument):
    args = Namespace(tasks=[argument], model=".", peer=Path("peer.py"), python="python")
    with pytest.raises(UserError, match=argument.partition("=")[0]):
        script.check(args)
