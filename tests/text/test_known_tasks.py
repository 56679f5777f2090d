"""The table of known tasks, and the real files of those that are at hand."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from jaxlm.config import load_config
from jaxlm.settings import SETTINGS
from jaxlm.task_settings import TASK_NAMES
from jaxlm.text import known_tasks
from jaxlm.text.known_tasks import KNOWN_TASKS
from jaxlm.text.labelled import read_table
from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
FOLDERS = {"cola": "glue/CoLA", "sst2": "glue/SST-2", "mrpc": "glue/MRPC", "sick_relatedness": "sick",
           "sick_entailment": "sick", "ag_news": "ag_news"}  # fmt: skip


def test_the_setting_task_name_has_every_known_task():
    assert tuple(known_tasks._TASKS) == TASK_NAMES
    assert SETTINGS["task"]["name"].choices == ("none", *TASK_NAMES)
    assert all(task.objective in SETTINGS["train"]["objective"].choices for task in KNOWN_TASKS.values())


@pytest.mark.parametrize("name", KNOWN_TASKS)
def test_a_recipe_sets_what_the_table_says(name):
    config = load_config(f"finetune:{name}", ["init_from=x"])
    assert config.task.name == name
    assert config.train.objective == KNOWN_TASKS[name].objective
    assert {key: config.task[key] for key in KNOWN_TASKS[name].settings} == KNOWN_TASKS[name].settings


def independent(path: Path, name: str) -> tuple[int, Counter]:
    """Returns the number of rows and the counts of labels, read without the code under test."""
    label = KNOWN_TASKS[name].label
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row[label] for row in csv.DictReader(file)]
    else:
        lines = [line.rstrip("\r\n").split("\t") for line in path.open(encoding="utf-8-sig", newline="")]
        column = int(label) if label.isdigit() else lines[0].index(label)
        rows = [fields[column] for fields in lines[0 if label.isdigit() else 1 :]]
    return len(rows), Counter(rows)


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items(), ids=FOLDERS)
def test_real_files_have_the_rows_and_labels_that_an_independent_reading_finds(name, folder):
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is absent")
    task, settings = KNOWN_TASKS[name], load_config("finetune", ["init_from=x"]).data
    for entry in (task.train, *task.evaluation):
        path = DATA / folder / entry.rpartition("=")[2]
        rows = read_table(path, "task.train", settings, dict.fromkeys((*task.text, task.label), ""), task.header, False)
        assert (len(rows), Counter(row.values[task.label] for row in rows)) == independent(path, name)
        assert all(row.values[column].strip() for row in rows for column in task.text)
