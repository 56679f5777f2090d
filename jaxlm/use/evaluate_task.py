"""The metrics of a fine-tuned model on labelled files: those of its run, or others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import apply_override, check_config, config_from_dict, config_to_dict
from jaxlm.data.tasks.table import check_task, task_files
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.task_sets import evaluation_of
from jaxlm.use.loading import Trained
from jaxlm.use.task_model import TaskModel

# The settings that can change which files are evaluated, and how they are read.
SETTINGS = (
    "task.evaluation", "task.data", "task.text", "task.label", "task.separator", "task.header", "task.bad_rows",
    "data.format", "data.encoding",
)  # fmt: skip


def evaluate_task(trained: Trained, overrides: Sequence[str] = (), rows: int = 0) -> dict[str, Metrics]:
    """Returns the metrics of each set by its name, on the first `rows` of each, 0 for all.

    They are computed as at the end of the run, so that those of its own files equal the ones in results.json. Without
    `overrides`, such as "task.evaluation=dev=dev.tsv", the sets are the evaluation and test sets of the run; with
    task.evaluation they are its files, relative to the current folder unless task.data is given. Raises UserError.
    """
    model = TaskModel(trained)
    model.config = _config(trained, overrides)
    task = model.config.task
    own = not _given(overrides, "task.evaluation")
    tests = task_files(task, "test") if own else {}
    files = task_files(task, "evaluation") | tests
    if not files:
        raise UserError(f"{trained.directory} has no evaluation set; give a file with --task.evaluation=FILE")
    return {name: _measured(model, name, path, name in tests, rows) for name, path in files.items()}


def describe_task(trained: Trained, results: dict[str, Metrics]) -> str:
    """Returns the metrics of each set as a line."""
    evaluation = evaluation_of(trained.config)
    return "\n".join(evaluation.describe(name, metrics) for name, metrics in results.items())


def _measured(model: TaskModel, name: str, path: Path, is_test: bool, rows: int) -> Metrics:
    setting = "test" if is_test else "evaluation"
    found = model.kind.read(path, f"--task.{setting}", model.config, labelled=not is_test)
    examples = model.encode(found[:rows] if rows else found, str(path))
    if not is_test and not (examples.columns.get("weights", np.ones(1)) > 0).any():
        raise UserError(f"{path}: no example has a label in {model.config.task.label}; set --task.label")
    return model.measure(examples)


def _given(overrides: Sequence[str], key: str) -> bool:
    return any(override.partition("=")[0] == key for override in overrides)


def _config(trained: Trained, overrides: Sequence[str]) -> Any:
    """Returns the config of the run with other files. Raises UserError for settings that would have no effect."""
    config = config_from_dict(config_to_dict(trained.config), "config")
    if _given(overrides, "task.evaluation"):
        config.task.data = ""
    for override in overrides:
        key = override.partition("=")[0]
        if key not in SETTINGS:
            raise UserError(
                f"--{key} has no effect on the evaluation of a fine-tuned model: remove it; settings with an effect are"
                f" {', '.join(SETTINGS)}"
            )
        apply_override(config, override)
    check_config(config)
    check_task(config, training=False)
    return config
