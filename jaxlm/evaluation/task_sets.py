"""The evaluators of a run on labelled examples: which set selects, and which are reported at the end.

The selecting set is evaluated during the run. The others are evaluated once, on the best checkpoint, so that selection
never sees them; their predictions are written in the order of their files.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.data.example_rows import Layout, evaluation_batches, evaluation_shape
from jaxlm.data.examples import SPLIT, Examples
from jaxlm.data.task_data import TaskData
from jaxlm.errors import UserError
from jaxlm.evaluation.choice import Choice
from jaxlm.evaluation.evaluator import Evaluator, Metrics
from jaxlm.evaluation.reranking import Reranking
from jaxlm.evaluation.retrieval import embedding_evaluation
from jaxlm.evaluation.sequences import Classification, MultiLabel, Regression
from jaxlm.evaluation.spans import Spans, null_odds, submission
from jaxlm.evaluation.submission import submission_file, write_glue
from jaxlm.evaluation.tagging import Tagging
from jaxlm.evaluation.task_evaluation import Calibrated, Outputs, TaskEvaluation
from jaxlm.runtime import sharding
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.json_output import as_json
from jaxlm.step import Assembly
from jaxlm.storage import write_text
from jaxlm.text.labelled import Row

# An evaluation, or a function that returns it where it depends on section `task`.
TASKS: dict[str, TaskEvaluation | Callable[[Any], TaskEvaluation]] = {
    "classification": Classification(),
    "multi_label": MultiLabel(),
    "regression": Regression(),
    "tagging": Tagging(),
    "embedding": embedding_evaluation,
    "reranking": Reranking(),
    "choice": Choice(),
    "span": Spans(),
    "template": Classification(),
}


def evaluation_of(config: Any) -> TaskEvaluation:
    """Returns how the examples of a run are evaluated."""
    found = TASKS[config.train.objective]
    return found(config.task) if callable(found) else found


def predict_examples(
    outputs_of: Callable, params: dict, examples: Examples, assembly: Assembly, of_tokens: bool, pad_id: int
) -> Outputs:
    """Returns the outputs of each segment of examples; `outputs_of` is jitted, (params, batch) -> arrays by name."""
    found: dict[str, list[np.ndarray]] = {}
    for outputs in predicted_batches(outputs_of, params, examples, assembly, of_tokens, pad_id):
        for name, arrays in outputs.items():
            found.setdefault(name, []).extend(arrays)
    return found


def predicted_batches(
    outputs_of: Callable, params: dict, examples: Examples, assembly: Assembly, of_tokens: bool, pad_id: int,
    done: int = 0,
) -> Iterator[Outputs]:  # fmt: skip
    """Yields the outputs of the segments of examples, batch after batch in order, after the first `done` batches."""
    config = assembly.config
    parts_here, parts = sharding.local_parts(assembly.mesh)
    size = config.evaluation.batch_size or config.train.batch_size
    shape, rows = evaluation_shape(examples, config.data.sequence_length, size, parts)
    batches = evaluation_batches(examples, shape, rows, pad_id, parts_here, parts)
    for batch, layout in itertools.islice(batches, done, None):
        outputs = jax.device_get(outputs_of(params, sharding.shard_batch(assembly.mesh, batch)))
        yield {name: _of_segments(array, layout, examples, of_tokens) for name, array in outputs.items()}


def _of_segments(array: np.ndarray, layout: Layout, examples: Examples, of_tokens: bool) -> list[np.ndarray]:
    if not of_tokens:
        return list(array[layout.rows, layout.slots])
    sizes = [len(examples.tokens[segment]) for segment in layout.segments.tolist()]
    places = zip(layout.rows.tolist(), layout.starts.tolist(), sizes, strict=True)
    return [array[row, start : start + size] for row, start, size in places]


def task_evaluators(assembly: Assembly, data: TaskData, workdir: Path) -> list[Evaluator]:
    """Returns an evaluator for each set. Raises UserError for a metric that the kind of task does not have."""
    config = assembly.config
    kind = evaluation_of(config)
    metric = config.task.metric or next(iter(kind.metrics))
    if metric not in kind.metrics:
        raise UserError(
            f"task.metric={metric} is not a metric of train.objective={config.train.objective}; it has"
            f" {', '.join(kind.metrics)}"
        )

    @functools.cache
    def outputs_of(number: int) -> Callable:
        function = functools.partial(kind.outputs, assembly.objectives[number])
        return jit(function, out_shardings=sharding.replicated(assembly.mesh))

    def predict(examples: Examples, params: dict, number: int) -> Outputs:
        return predict_examples(outputs_of(number), params, examples, assembly, kind.of_tokens, data.pad_id)

    def run(examples: Examples, selects: bool, params: dict, number: int) -> Metrics:
        outputs, evaluation = predict(examples, params, number), kind
        if selects and isinstance(kind, Spans):  # a checkpoint is selected by what its best threshold gives
            evaluation = kind.fitted(kind.fit(outputs, examples, data.labels, config.task))
        return evaluation.measure(outputs, examples, data.labels, config.task)

    def fit(examples: Examples, params: dict, number: int) -> dict[str, Any]:
        assert isinstance(kind, Calibrated)
        return kind.fit(predict(examples, params, number), examples, data.labels, config.task)

    def report(name: str, examples: Examples, params: dict, number: int, fitted: Mapping[str, Any]) -> Metrics:
        outputs = predict(examples, params, number)
        evaluation = kind.fitted(fitted) if fitted and isinstance(kind, Calibrated) else kind
        if jax.process_index() == 0:
            predictions = list(evaluation.predictions(outputs, examples, data.labels, config.task))
            write_set(workdir, name, config, examples.rows, predictions)
        return evaluation.measure(outputs, examples, data.labels, config.task)

    calibrates = config.evaluation.calibrate and isinstance(kind, Calibrated)
    evaluators = []
    for name, examples in data.sets.items():
        selects = name == data.selects
        evaluators.append(Evaluator(
            name, config.evaluation.every if selects else 0, functools.partial(run, examples, selects),
            functools.partial(describe_set, kind),
            selects=metric if selects else "", higher_is_better=kind.metrics[metric].higher_is_better,
            remark=functools.partial(kind.remark, name),
            fit=functools.partial(fit, examples) if selects and calibrates else None,
            report=None if name == SPLIT else functools.partial(report, name, examples),
        ))  # fmt: skip
    return evaluators


def describe_set(kind: TaskEvaluation, name: str, metrics: Metrics) -> str:
    """Returns the metrics of a set as a line; a set without labels has none."""
    return kind.describe(name, metrics) if metrics["n"] else f"{name}: predicted; there are no labels to compare with"


def predictions_file(workdir: Path, name: str) -> Path:
    """Returns where the predictions of a set are written."""
    return workdir / "predictions" / f"{name}.jsonl"


def write_set(
    folder: Path, name: str, config: Any, rows: Sequence[Row], predictions: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the predictions for a set into a folder, and with task.submission what its benchmark accepts.

    predictions/NAME.jsonl has an object for each row. The others are submission/TASK.tsv for GLUE's test sets; for
    questions, predictions/NAME.json and predictions/NAME.null_odds.json. Raises UserError.
    """
    written = predictions_file(folder, name)
    write_predictions(written, predictions)
    if file := submission_file(folder, config.task, name):
        write_glue(file, rows, predictions)
    if config.task.submission and config.train.objective == "span":
        answers = {".json": submission(predictions), ".null_odds.json": null_odds(predictions)}
        for ending, content in answers.items():
            text = json.dumps(as_json(content), ensure_ascii=False) + "\n"
            write_text(written.with_name(f"{name}{ending}"), text)


def write_predictions(file: Path, predictions: Any) -> None:
    """Writes one JSON object per line. Raises UserError."""
    file.parent.mkdir(exist_ok=True)
    write_text(file, "".join(json.dumps(as_json(one), ensure_ascii=False) + "\n" for one in predictions))


def write_results(
    workdir: Path, evaluation: dict[str, Metrics], selection: dict[str, Metrics], protocol: dict[str, Any]
) -> None:
    """Writes results.json: the metrics of the reported sets and of the selecting one, and how the step was chosen.

    Raises UserError.
    """
    content = {"evaluation": evaluation, "selection": selection, "protocol": protocol}
    write_text(workdir / "results.json", json.dumps(as_json(content), indent=2, ensure_ascii=False) + "\n")
