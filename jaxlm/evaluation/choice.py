"""Evaluation of multiple choice."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jax import Array

from jaxlm.data.examples import Examples
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.sequences import softmax
from jaxlm.evaluation.task_evaluation import Metric, Outputs
from jaxlm.objectives.objective import Params


class Choice:
    """The choice with the highest logit is the answer. An answer that ties with another is wrong."""

    metrics: ClassVar[Mapping[str, Metric]] = {"accuracy": Metric(True), "loss": Metric(False)}
    of_tokens: ClassVar[bool] = False

    def outputs(self, objective: Any, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"outputs": objective.outputs(params, batch)}

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        first = examples.first[:-1]
        known = examples.columns["weights"][first] > 0
        probabilities = choice_probabilities(outputs, examples, len(task.choices))[known]
        right = examples.columns["labels"][first][known]
        count = len(right)
        if not count:
            return dict.fromkeys(("accuracy", "accuracy_error", "loss", "chance"), math.nan) | {"n": 0}
        own = probabilities[np.arange(count), right]
        accuracy = float(((probabilities >= own[:, None]).sum(1) == 1).mean())
        return {
            "accuracy": accuracy,
            "accuracy_error": math.sqrt(accuracy * (1 - accuracy) / count),
            "loss": float(-np.log(np.maximum(own, 1e-300)).mean()),
            "chance": float((1 / np.diff(examples.first)[known]).mean()),
            "n": count,
        }

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        """Yields the column of the chosen text, and the probability of each choice."""
        probabilities = choice_probabilities(outputs, examples, len(task.choices))
        for number, scores in enumerate(probabilities):
            there = examples.columns["role"][examples.first[number] : examples.first[number + 1]]
            yield {
                "label": task.choices[int(scores.argmax())],
                "probabilities": {task.choices[role]: float(scores[role]) for role in there.tolist()},
            }

    def describe(self, name: str, metrics: Metrics) -> str:
        error = f" ± {metrics['accuracy_error']:.2%}" if metrics["n"] else ""
        return (
            f"{name}: accuracy {metrics['accuracy']:.2%}{error}, {metrics['loss']:.3f} nats per example; chance"
            f" {metrics['chance']:.2%}; n = {metrics['n']:,}"
        )

    def remark(self, name: str, metrics: Metrics) -> str:
        if metrics["n"] and metrics["accuracy"] <= metrics["chance"]:
            return f"{name}: the accuracy is not above chance; train longer, or try another optimizer.learning_rate"
        return ""


def choice_probabilities(outputs: Outputs, examples: Examples, choices: int) -> np.ndarray:
    """Returns the probability of each choice, float64 [examples, choices]; 0 where there is none."""
    logits = np.full((len(examples), choices), -np.inf)
    of = np.repeat(np.arange(len(examples)), np.diff(examples.first))
    logits[of, examples.columns["role"]] = np.stack(outputs["outputs"])[:, 0]
    return softmax(logits)
