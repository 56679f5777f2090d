"""The files of a task on disk: their paths, and what is special about those of a known task."""

import os
from pathlib import Path
from typing import Any

from jaxlm.config import config_from_dict, config_to_dict
from jaxlm.data.tasks.kind import TaskKind
from jaxlm.errors import UserError
from jaxlm.text.known_tasks import KNOWN_TASKS, KnownTask
from jaxlm.text.labelled import Row, is_tfds
from jaxlm.typed import listed

_ALSO = {"classification": ("template",)}  # other objectives that learn from the same files


def path_of(task: Any, name: str) -> Path:
    """Returns the path of a file of section `task`, or a name tfds:... as it is."""
    return Path(name) if is_tfds(name) else Path(task.data).expanduser() / name


def test_entries(task: Any) -> tuple[str, ...]:
    """Returns task.test, and with task.submission the test sets of the known task that it does not name."""
    known = KNOWN_TASKS.get(task.name)
    if not known or not task.submission:
        return tuple(task.test)
    named = {entry.partition("=")[0] for entry in task.test}
    return (*task.test, *(entry for entry in known.test if entry.partition("=")[0] not in named))


def check_submission(config: Any) -> None:
    """Raises UserError if task.submission is set for a task that has no format of submissions."""
    task = config.task
    known = KNOWN_TASKS.get(task.name)
    if task.submission and config.train.objective != "span" and not (known and known.submissions):
        able = ", ".join(name for name, other in KNOWN_TASKS.items() if other.submissions)
        raise UserError(
            f"task.submission: {'this task' if known is None else task.name} has no format of submissions; these known"
            f" tasks have one: {able}, and train.objective=span"
        )


def check_known(config: Any) -> None:
    """Raises UserError if files of a known task are missing, or if it is of another kind.

    It runs before anything is read, so that all missing files are named at once.
    """
    task = config.task
    known = KNOWN_TASKS.get(task.name)
    if not known:
        return
    if config.train.objective not in (known.objective, *_ALSO.get(known.objective, ())):
        raise UserError(
            f"task.name={task.name} is for train.objective={known.objective}, not {config.train.objective}; set"
            " task.name=none for files of your own"
        )
    entries = [task.train, *task.evaluation, *test_entries(task)]
    paths = [path_of(task, entry.rpartition("=")[2]) for entry in entries]
    missing = [path for path in paths if not is_tfds(path) and not path.is_file()]
    if missing:
        folder = missing[0].parent
        there = f"{folder} has {listed(sorted(os.listdir(folder)))}" if folder.is_dir() else f"there is no {folder}"
        raise UserError(
            f"{task.name}: {' and '.join(map(str, missing))} {'does' if len(missing) == 1 else 'do'} not exist"
            f" ({there}); set task.data to the folder of the published files, or name yours in task.train and"
            " task.evaluation"
        )


def read_test(kind: TaskKind, path: Path, config: Any, setting: str = "task.test") -> list[Row]:
    """Returns the rows of a test file, which may lack labels, in the columns of task.text. Raises UserError.

    The test file of a known task may have a header where its other files have none (CoLA's, in GLUE).
    """
    known = KNOWN_TASKS.get(config.task.name)
    if not known or not known.test_text or path.name not in _test_files(known):
        return kind.read(path, setting, config, labelled=False)
    theirs = config_from_dict(config_to_dict(config), "config")
    theirs.task.update(text=known.test_text, header=True)
    rows = kind.read(path, setting, theirs, labelled=False)
    columns = dict(zip(config.task.text, known.test_text, strict=True))
    return [Row(place, {**values, **{ours: values[name] for ours, name in columns.items()}}) for place, values in rows]


def _test_files(known: KnownTask) -> set[str]:
    return {Path(entry.rpartition("=")[2]).name for entry in known.test}
