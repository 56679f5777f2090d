"""The metrics of a fine-tuned model on labelled files: those of its run, or others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import apply_override, check_config, config_from_dict, config_to_dict
from jaxlm.data.tasks.known import read_test
from jaxlm.data.tasks.table import check_settings, task_files
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.submission import submission_file
from jaxlm.evaluation.task_sets import describe_set, evaluation_of, predictions_file, write_set
from jaxlm.huggingface.task_heads import numbered
from jaxlm.typed import listed
from jaxlm.use.loading import Trained
from jaxlm.use.prediction_formats import holds_predictions
from jaxlm.use.task_model import TaskModel, check_columns

# The settings that can change which files are evaluated, and how they are read.
SETTINGS = (
    "task.evaluation", "task.test", "task.submission", "task.data", "task.text", "task.label",
    "task.separator", "task.header", "task.bad_rows", "data.format", "data.encoding",
)  # fmt: skip
OWN = {"predictions", "submission"}  # what is written into the folder of --output


def evaluate_task(
    trained: Trained, overrides: Sequence[str] = (), rows: int = 0, output: Path | None = None
) -> dict[str, Metrics]:
    """Returns the metrics of each set by its name, on the first `rows` of each, 0 for all.

    They are computed as at the end of the run, so that those of its own files equal the ones in results.json. Without
    `overrides`, such as "task.evaluation=dev=dev.tsv", the sets are the evaluation and test sets of the run; with
    task.evaluation or task.test they are these files, relative to the current folder unless task.data is given. The
    predictions are written into the folder `output`, as a run writes them. Raises UserError.
    """
    model = TaskModel(trained)
    if trained.source:
        model.labels = numbered(model.labels)  # the files have 0 and 1 where Transformers says LABEL_0 and LABEL_1
    model.config = _config(trained, overrides)
    task = model.config.task
    tests = task_files(task, "test")
    files = task_files(task, "evaluation") | tests
    if not files:
        raise UserError(f"{trained.directory} has no evaluation set; give a file with --task.evaluation=FILE")
    if task.submission and _given(overrides, "task.submission") and output is None:
        raise UserError("--task.submission=true writes files: name their folder with --output=DIR")
    if task.submission and output is not None and rows:
        raise UserError(f"--rows={rows} leaves rows out of a submission: remove it, or set --task.submission=false")
    if output is not None:
        _check_folder(output)
    return {name: _measured(model, name, path, name in tests, rows, output) for name, path in files.items()}


def describe_task(trained: Trained, results: dict[str, Metrics]) -> str:
    """Returns the metrics of each set as a line."""
    evaluation = evaluation_of(trained.config)
    return "\n".join(describe_set(evaluation, name, metrics) for name, metrics in results.items())


def _measured(model: TaskModel, name: str, path: Path, is_test: bool, rows: int, output: Path | None) -> Metrics:
    if is_test:
        found = read_test(model.kind, path, model.config, "--task.test")
    else:
        found = model.kind.read(path, "--task.evaluation", model.config, labelled=True)
    examples = model.encode(found[:rows] if rows else found, str(path))
    if not is_test and not (examples.columns.get("weights", np.ones(1)) > 0).any():
        raise UserError(
            f"{path}: no example has a label in {model.config.task.label}; set --task.label, or give the"
            " file with --task.test to predict it"
        )
    outputs = model.outputs(examples)
    if output is not None:
        predictions = list(model.predictions(outputs, examples))
        _check_replaceable(output, name, model.config.task, predictions)
        output.mkdir(exist_ok=True)
        write_set(output, name, model.config, examples.rows, predictions)
    return model.measure(outputs, examples)


def _check_folder(output: Path) -> None:
    """Raises UserError if a folder contains anything but predictions, or cannot be created."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is not a folder; set a new one")
    if not output.parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {output.parent}; set a folder in an existing one")
    entries = output.iterdir() if output.exists() else ()
    others = sorted(entry.name for entry in entries if entry.name not in OWN or not entry.is_dir())
    if others:
        raise UserError(f"--output={output} has other files ({listed(others, 3)}); set a new folder")


def _check_replaceable(output: Path, name: str, task: Any, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError if files of a set exist and are not those of earlier predictions."""
    own = predictions_file(output, name)
    files = [own, own.with_name(f"{name}.json"), own.with_name(f"{name}.null_odds.json")]
    if submission := submission_file(output, task, name):
        files.append(submission)
    found = next((file for file in files if file.exists()), None)
    if found and not (own.is_file() and holds_predictions(own, [list(predictions[0])])):
        raise UserError(f"--output={output}: {found} exists and does not contain predictions; set a new folder")


def _given(overrides: Sequence[str], key: str) -> bool:
    return any(override.partition("=")[0] == key for override in overrides)


def _config(trained: Trained, overrides: Sequence[str]) -> Any:
    """Returns the config of the run with other files. Raises UserError for settings that would have no effect."""
    config = config_from_dict(config_to_dict(trained.config), "config")
    if _given(overrides, "task.evaluation") or _given(overrides, "task.test"):
        config.task.update(data="", evaluation=(), test=(), submission=False)
    for override in overrides:
        key = override.partition("=")[0]
        if key not in SETTINGS:
            raise UserError(
                f"--{key} has no effect on the evaluation of a fine-tuned model: remove it; settings with an effect are"
                f" {', '.join(SETTINGS)}"
            )
        apply_override(config, override)
    check_columns(trained, "--task.text", config.task.text)
    check_config(config)
    check_settings(config, training=False)
    return config
