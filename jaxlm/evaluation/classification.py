"""Evaluation of a classifier on labelled examples: one prediction for each example, in the order of its file."""

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from jaxlm.data.examples import ExampleData, Examples, evaluation_batches
from jaxlm.evaluation.evaluator import Evaluator, Metrics
from jaxlm.objectives.classify import Classify
from jaxlm.runtime import sharding
from jaxlm.runtime.compiling import jit
from jaxlm.step import Assembly

FEW_EXAMPLES = 1000  # with fewer, the 95% interval of an accuracy of 80% is wider than ±2.5 points


def predict_examples(
    logits_of: Callable, params: dict, examples: Examples, assembly: Assembly, length: int, pad_id: int
) -> np.ndarray:
    """Returns the logits of each example in order, float32 [n, C]; `logits_of` is jitted, (params, batch) -> logits."""
    parts_here, parts = sharding.local_parts(assembly.mesh)
    size = assembly.config.evaluation.batch_size or assembly.config.train.batch_size
    rows = parts * math.ceil(size / (4 * parts))  # a row usually holds four examples or more
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for batch, numbers, place in evaluation_batches(examples, length, rows, pad_id, parts_here, parts):
        logits = np.asarray(logits_of(params, sharding.shard_batch(assembly.mesh, batch)))
        found.append((numbers, logits[place[:, 0], place[:, 1]]))
    result = np.concatenate([logits for _, logits in found])
    return result[np.argsort(np.concatenate([numbers for numbers, _ in found]))]


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """Returns loss (nats per example), accuracy, majority_accuracy and n over the labelled examples.

    majority_accuracy is that of always answering the most frequent label. logits are [n, C], labels int [n], -1 for an
    example without a label. All but n are NaN if all are.
    """
    known = labels >= 0
    logits, labels = logits[known].astype(np.float64), labels[known]
    count = len(labels)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return {
        "loss": float(-log_probabilities[np.arange(count), labels].mean()) if count else math.nan,
        "accuracy": float((logits.argmax(-1) == labels).mean()) if count else math.nan,
        "majority_accuracy": float(np.bincount(labels).max() / count) if count else math.nan,
        "n": count,
    }


def describe(name: str, metrics: Mapping[str, float]) -> str:
    """Returns the metrics of an evaluation set as a line."""
    return (
        f"{name}: accuracy {metrics['accuracy']:.2%}, {metrics['loss']:.3f} nats per example; the most frequent label "
        f"alone {metrics['majority_accuracy']:.2%}; n = {metrics['n']:,}"
    )


def remark(name: str, metrics: Mapping[str, float]) -> str:
    """Returns a warning about a classifier that has learned nothing, or about very few examples; or ""."""
    n = metrics["n"]
    if n and metrics["accuracy"] <= metrics["majority_accuracy"]:
        return (
            f"{name}: the accuracy is not above that of always answering the most frequent label; train longer, or try "
            "another optimizer.learning_rate"
        )
    if 0 < n < FEW_EXAMPLES:
        error = 1.96 * math.sqrt(metrics["accuracy"] * (1 - metrics["accuracy"]) / n)
        return f"{name}: with only {n:,} examples, the 95% interval of the accuracy is ±{100 * error:.1f} points"
    return ""


def classification_evaluators(assembly: Assembly, data: ExampleData) -> list[Evaluator]:
    """Returns an evaluator for each evaluation set; the first chooses the best checkpoint by task.metric."""
    config = assembly.config

    @functools.cache
    def logits_of(number: int) -> Callable:
        objective = assembly.objectives[number]
        assert isinstance(objective, Classify)
        return jit(objective.logits, out_shardings=sharding.replicated(assembly.mesh))

    def run(examples: Examples, params: dict, number: int) -> Metrics:
        length = assembly.phases[number].sequence_length
        logits = predict_examples(logits_of(number), params, examples, assembly, length, data.tokenizer.pad_id)
        return classification_metrics(logits, examples.labels)

    return [
        Evaluator(
            name,
            config.evaluation.every,
            functools.partial(run, examples),
            describe,
            selects="" if number else config.task.metric,
            higher_is_better=config.task.metric != "loss",
            remark=functools.partial(remark, name),
        )
        for number, (name, examples) in enumerate(data.evaluation.items())
    ]
