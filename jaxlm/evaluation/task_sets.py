"""The evaluators of a run on labelled examples: which set selects, and which are reported at the end.

The selecting set is evaluated during the run. The others are evaluated once, on the best checkpoint, so that selection
never sees them; their predictions are written in the order of their files.
"""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.data.example_rows import Layout, evaluation_batches, shape_for
from jaxlm.data.examples import SPLIT, Examples
from jaxlm.data.task_data import TaskData
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Evaluator, Metrics
from jaxlm.evaluation.sequences import Classification, MultiLabel, Regression
from jaxlm.evaluation.spans import Spans, submission
from jaxlm.evaluation.task_evaluation import FittedEvaluation, Outputs, TaskEvaluation
from jaxlm.runtime import sharding
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.json_output import as_json
from jaxlm.step import Assembly
from jaxlm.storage import write_text

TASKS: dict[str, TaskEvaluation] = {
    "classification": Classification(),
    "multi_label": MultiLabel(),
    "regression": Regression(),
    "span": Spans(),
}


def predict_examples(
    outputs_of: Callable, params: dict, examples: Examples, assembly: Assembly, of_tokens: bool, pad_id: int
) -> Outputs:
    """Returns the outputs of each segment of examples; `outputs_of` is jitted, (params, batch) -> arrays by name."""
    config = assembly.config
    parts_here, parts = sharding.local_parts(assembly.mesh)
    shape = shape_for(examples, config.data.sequence_length)
    size = config.evaluation.batch_size or config.train.batch_size
    mean = sum(len(tokens) for tokens in examples.tokens) / max(len(examples.tokens), 1)
    rows = parts * max(1, math.ceil(size * mean / (0.9 * shape.length * parts)))
    found: dict[str, list[Any]] = {}
    for batch, layout in evaluation_batches(examples, shape, rows, pad_id, parts_here, parts):
        outputs = jax.device_get(outputs_of(params, sharding.shard_batch(assembly.mesh, batch)))
        for name, array in outputs.items():
            found.setdefault(name, []).extend(_of_segments(array, layout, examples, of_tokens))
    return found


def _of_segments(array: np.ndarray, layout: Layout, examples: Examples, of_tokens: bool) -> list[np.ndarray]:
    if not of_tokens:
        return list(array[layout.rows, layout.slots])
    sizes = [len(examples.tokens[segment]) for segment in layout.segments.tolist()]
    places = zip(layout.rows.tolist(), layout.starts.tolist(), sizes, strict=True)
    return [array[row, start : start + size] for row, start, size in places]


def task_evaluators(assembly: Assembly, data: TaskData, workdir: Path) -> list[Evaluator]:
    """Returns an evaluator for each set. Raises UserError for a metric that the kind of task does not have."""
    config = assembly.config
    kind = TASKS[config.train.objective]
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

    def select(examples: Examples, params: dict, number: int) -> Metrics:
        outputs = predict(examples, params, number)
        return _fitted(kind, outputs, examples, config.task).measure(outputs, examples, data.labels, config.task)

    fits: list[tuple[dict, TaskEvaluation]] = []  # the parameters that were reported on last, and the evaluation

    def evaluation_of(params: dict, number: int) -> TaskEvaluation:
        """Returns the evaluation with what it fits on the selecting set for these parameters."""
        if not isinstance(kind, FittedEvaluation) or not data.selects:
            return kind
        if not fits or fits[0][0] is not params:
            chosen = data.sets[data.selects]
            fits[:] = [(params, _fitted(kind, predict(chosen, params, number), chosen, config.task))]
        return fits[0][1]

    def run(examples: Examples, file: Path | None, params: dict, number: int) -> Metrics:
        evaluation, outputs = evaluation_of(params, number), predict(examples, params, number)
        if file and jax.process_index() == 0:
            predictions = list(evaluation.predictions(outputs, examples, data.labels, config.task))
            write_predictions(file, predictions)
            if config.task.submission:
                write_text(file.with_suffix(".json"), json.dumps(submission(predictions), ensure_ascii=False) + "\n")
            write_fitted(workdir, evaluation)
        return evaluation.measure(outputs, examples, data.labels, config.task)

    evaluators = []
    for name, examples in data.sets.items():
        selects = name == data.selects
        evaluators.append(Evaluator(
            name, config.evaluation.every if selects else 0,
            functools.partial(select, examples) if selects else functools.partial(run, examples, None), kind.describe,
            selects=metric if selects else "", higher_is_better=kind.metrics[metric].higher_is_better,
            remark=functools.partial(kind.remark, name),
            report=None if name == SPLIT else functools.partial(run, examples, predictions_file(workdir, name)),
        ))  # fmt: skip
    return evaluators


def predictions_file(workdir: Path, name: str) -> Path:
    """Returns where the predictions of a set are written."""
    return workdir / "predictions" / f"{name}.jsonl"


def write_predictions(file: Path, predictions: Any) -> None:
    """Writes one JSON object per line. Raises UserError."""
    file.parent.mkdir(exist_ok=True)
    write_text(file, "".join(json.dumps(as_json(one), ensure_ascii=False) + "\n" for one in predictions))


def _fitted(kind: TaskEvaluation, outputs: Outputs, examples: Examples, task: Any) -> Any:
    """Returns the evaluation with what it fits on the selecting set, whose outputs these are, if it fits anything."""
    return kind.fit(outputs, examples, task) if isinstance(kind, FittedEvaluation) else kind


def write_fitted(workdir: Path, evaluation: TaskEvaluation) -> None:
    """Writes what an evaluation fitted on the selecting set, by name, to fitted.json, if it fitted anything."""
    if isinstance(evaluation, FittedEvaluation) and evaluation.fitted:
        write_text(workdir / "fitted.json", json.dumps(as_json(dict(evaluation.fitted)), indent=2) + "\n")


def write_results(
    workdir: Path, evaluation: dict[str, Metrics], selection: dict[str, Metrics], protocol: dict[str, Any]
) -> None:
    """Writes results.json: the metrics of the reported sets and of the selecting one, and how the step was chosen.

    Raises UserError.
    """
    content = {"evaluation": evaluation, "selection": selection, "protocol": protocol}
    write_text(workdir / "results.json", json.dumps(as_json(content), indent=2, ensure_ascii=False) + "\n")
