"""Shared by the scripts that compare fine-tuning: tasks and their files, jaxlm's command, and what a run leaves."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from comparison import ROOT, last_line

from jaxlm.config import load_config
from jaxlm.errors import UserError
from jaxlm.storage import write_text
from jaxlm.text.conll import read_sentences
from jaxlm.text.known_tasks import KNOWN_TASKS
from jaxlm.text.labelled import Row, read_table
from jaxlm.text.squad import read_questions

OURS = "jaxlm"
UNCOUNTED = 20  # steps before jaxlm's time begins
BATCH, LENGTH, SPAN_LENGTH = 32, 128, 384
METRICS = {"accuracy": "accuracy", "mcc": "Matthews correlation", "pearson": "Pearson correlation", "f1": "F1"}
DEFAULT_METRICS = {"classification": "accuracy", "tagging": "f1", "span": "f1"}
# As the peer's: AdamW with a linear schedule, all of the training set is trained on, and nothing is selected.
SETTINGS = {
    "train.batch_size": BATCH, "task.name": "none", "data.sequence_length": LENGTH, "model.dropout": 0.1,
    "model.attention_dropout": 0.1, "optimizer.weight_decay": 0.01, "optimizer.beta2": 0.999,
    "optimizer.epsilon": 1e-8, "optimizer.clip_norm": 1.0, "schedule.name": "linear", "schedule.warmup": 0.1,
    "evaluation.select": "none", "evaluation.per_epoch": 0, "evaluation.every": 0, "checkpoint.every": 100_000,
    "logging.every": UNCOUNTED, "logging.tensorboard": "false", "logging.curve": "false",
}  # fmt: skip


class Task(NamedTuple):
    """A task, the files of its rows, and the metric that is compared."""

    name: str
    objective: str  # train.objective
    train: Path
    reported: Path
    set: str  # name of the reported set in the table
    metric: str
    text: tuple[str, ...] = ()  # columns of a table
    label: str = "label"
    header: bool = True

    @property
    def of_tokens(self) -> bool:
        """Returns whether the output is one for each token, not for each example."""
        return self.objective in ("tagging", "span")

    @property
    def length(self) -> int:
        return SPAN_LENGTH if self.objective == "span" else LENGTH


def read_task(argument: str) -> Task:
    """Returns the task of an argument. Raises UserError for one that cannot be compared, or whose files are missing."""
    name, _, where = argument.partition("=")
    if "," in where:
        train, _, reported = where.partition(",")
        task = Task(name, "span", Path(train).absolute(), Path(reported).absolute(), Path(reported).stem, "f1")
    else:
        known = KNOWN_TASKS.get(name)
        metric = (known.metric or DEFAULT_METRICS.get(known.objective, "")) if known else ""
        if not where or not known or metric not in METRICS:
            raise UserError(
                f"{argument}: expected TASK=FOLDER with a known task of classification, regression or tagging, or"
                " NAME=TRAIN.json,REPORTED.json with questions"
            )
        reported_set, _, reported = known.evaluation[-1].partition("=")
        task = Task(
            name, known.objective, Path(where, known.train).absolute(), Path(where, reported).absolute(), reported_set,
            metric, known.text, known.label, known.header,
        )  # fmt: skip
    for path in (task.train, task.reported):
        if not path.is_file():
            raise UserError(f"{argument}: {path} does not exist")
    return task


def read_rows(task: Task, path: Path) -> list[Row]:
    config = load_config(f"finetune:{task.name if task.name in KNOWN_TASKS else task.objective}")
    if task.objective == "tagging":
        return read_sentences(path, "the folder", config, labelled=True)
    if task.objective == "span":
        return read_questions(path, "the argument", config.data, labelled=True)
    columns = dict.fromkeys((*task.text, task.label), "task.text")
    return read_table(path, "the folder", config.data, columns, task.header, False)


def line_of(task: Task, row: Row) -> str:
    """Returns a row as both programs read it: JSON for tokens, otherwise tab-separated texts and label."""
    if not task.of_tokens:
        return "\t".join(" ".join(str(row.values[name]).split()) for name in (*task.text, task.label))
    values = {name: row.values[name] for name in ("words", "tags", "id", "question", "context") if name in row.values}
    if task.objective == "span":
        values["answers"] = [{"text": one.text, "answer_start": one.start} for one in row.values["answers"]]
    return json.dumps(values)


def task_files(task: Task, examples: int, into: Path) -> dict[str, Path]:
    """Writes the training set, at most `examples` rows drawn at random, and the reported set; returns the files."""
    files = {}
    for name, source in (("train", task.train), ("reported", task.reported)):
        rows = read_rows(task, source)
        if name == "train" and len(rows) > examples:
            rows = random.Random(0).sample(rows, examples)
        header = [] if task.of_tokens else ["\t".join([*["a", "b"][: len(task.text)], "label"])]
        files[name] = into / f"{name}{'.jsonl' if task.of_tokens else '.tsv'}"
        write_text(files[name], "\n".join([*header, *(line_of(task, row) for row in rows)]) + "\n")
    return files


def count_rows(task: Task, path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) - (not task.of_tokens)


def own_command(
    objective: str, train: Path, sets: Mapping[str, Path], workdir: Path, settings: Mapping[str, Any],
    config: str | Path = "finetune",
) -> list[str]:  # fmt: skip
    """Returns the command that fine-tunes with jaxlm and evaluates `sets`; `settings` go beside those of the peer."""
    evaluation = ",".join(f"{name}={path}" for name, path in sets.items())
    data = {"train.objective": objective, "task.train": train, "task.evaluation": evaluation}
    values = [f"--config.{name}={value}" for name, value in (SETTINGS | data | dict(settings)).items()]
    return [sys.executable, "-m", "jaxlm.cli", "train", f"--config={config}", f"--workdir={workdir}", *values]


def run(command: list[str], ours: bool = False) -> str:
    """Returns what a command prints. Raises UserError with its last line on standard error if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} if ours else dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise UserError(last_line(done.stderr))
    return done.stdout


def own_rate(events: list[dict[str, Any]]) -> float:
    """Returns examples per second from the line of metrics.jsonl after the uncounted steps to that of the last one."""
    lines = [event for event in events if event["kind"] == "train" and event["step"] >= UNCOUNTED]
    if len(lines) < 2:
        raise UserError(f"a run of {BATCH} x {UNCOUNTED} examples is not counted; raise --examples or --epochs")
    first, last = lines[0], lines[-1]
    return BATCH * (last["step"] - first["step"]) / (last["time"] - first["time"])


def results_of(workdir: Path) -> dict[str, dict[str, Any]]:
    """Returns the metrics of each evaluation set of a run."""
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))["evaluation"]
