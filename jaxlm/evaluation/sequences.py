"""Evaluation of classes, several classes, and numbers, one for each text or pair."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jax import Array

from jaxlm.data.examples import Examples
from jaxlm.evaluation.calibration import AT_COVERAGE, calibration_metrics, fit_temperature
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.task_evaluation import Metric, Outputs
from jaxlm.objectives.objective import Params

FEW_EXAMPLES = 1000  # with fewer, the 95% interval of an accuracy of 80% is wider than ±2.5 points


def predicted(outputs: Outputs) -> np.ndarray:
    """Returns the outputs of each example, float64 [n, C]."""
    return np.stack(outputs["outputs"]).astype(np.float64)


class _Sequences:
    """What the three kinds share: the outputs of the head."""

    of_tokens: ClassVar[bool] = False

    def outputs(self, objective: Any, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"outputs": objective.outputs(params, batch)}

    def remark(self, name: str, metrics: Metrics) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class Classification(_Sequences):
    """One class for each example. F1 is that of the second label if there are two, as in GLUE."""

    temperature: float | None = None  # that predictions use; None: not fitted

    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric(True), "loss": Metric(False), "f1": Metric(True), "macro_f1": Metric(True),
        "mcc": Metric(True),
    }  # fmt: skip

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        logits, classes = self._known(outputs, examples)
        metrics = classification_metrics(logits, classes, len(labels))
        if self.temperature is None:
            return metrics
        calibrated = classification_metrics(logits / self.temperature, classes, len(labels))
        return with_calibrated(metrics, calibrated)

    def fit(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> dict[str, Any]:
        logits, classes = self._known(outputs, examples)
        return fit_temperature(lambda logits: negative_log_likelihood(logits, classes), logits)

    def fitted(self, values: Mapping[str, Any]) -> "Classification":
        return dataclasses.replace(self, temperature=values["temperature"])

    def _known(self, outputs: Outputs, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits and the classes of the examples with labels."""
        known = examples.columns["weights"] > 0
        return predicted(outputs)[known], examples.columns["labels"][known]

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        probabilities = softmax(predicted(outputs) / (self.temperature or 1.0))
        columns = examples.columns["labels"], examples.columns["weights"]
        for scores, label, weight in zip(probabilities, *columns, strict=True):
            best = int(scores.argmax())
            one = {
                "label": labels[best], "probability": float(scores[best]),
                "probabilities": dict(zip(labels, scores.tolist(), strict=True)),
            }  # fmt: skip
            yield one | {"gold": labels[int(label)]} if weight > 0 else one

    def describe(self, name: str, metrics: Metrics) -> str:
        error = f" ± {metrics['accuracy_error']:.2%}" if metrics["n"] else ""
        return (
            f"{name}: accuracy {metrics['accuracy']:.2%}{error}, {metrics['loss']:.3f} nats per example; the most"
            f" frequent label alone {metrics['majority_accuracy']:.2%}; n = {metrics['n']:,}"
        )

    def remark(self, name: str, metrics: Metrics) -> str:
        n = metrics["n"]
        if n and metrics["accuracy"] <= metrics["majority_accuracy"]:
            return (
                f"{name}: the accuracy is not above that of always answering the most frequent label; train longer, or"
                " try another optimizer.learning_rate"
            )
        if 0 < n < FEW_EXAMPLES:
            interval = 1.96 * metrics["accuracy_error"]
            return f"{name}: with only {n:,} examples, the 95% interval of the accuracy is ±{100 * interval:.1f} points"
        return ""


def classification_metrics(logits: np.ndarray, labels: np.ndarray, classes: int) -> Metrics:
    """Returns the metrics of logits [n, C] and labels int [n]; all but n are NaN if there are no examples.

    loss is in nats per example; accuracy_error is the binomial standard error of the accuracy; majority_accuracy is
    that of always answering the most frequent label; mcc is Matthews' correlation coefficient, 0 for constant answers;
    brier is the sum of squared errors of the probabilities, from 0 to 2 (Brier, 1950).
    """
    from sklearn.metrics import f1_score, matthews_corrcoef

    count = len(labels)
    if not count:
        names = ("loss", "accuracy", "accuracy_error", "majority_accuracy", "macro_f1", "mcc", "brier")
        nothing = calibration_metrics(np.zeros(0), np.zeros(0, bool))
        return dict.fromkeys([*names, *(["f1"] if classes == 2 else [])], math.nan) | nothing | {"n": 0}
    answers, probabilities = logits.argmax(-1), softmax(logits)
    accuracy = float((answers == labels).mean())
    every = list(range(classes))
    metrics: Metrics = {
        "loss": negative_log_likelihood(logits, labels),
        "accuracy": accuracy,
        "accuracy_error": math.sqrt(accuracy * (1 - accuracy) / count),
        "majority_accuracy": float(np.bincount(labels).max() / count),
        "macro_f1": float(f1_score(labels, answers, labels=every, average="macro", zero_division=0)),
        # scikit-learn warns of a single class, with which nothing can correlate.
        "mcc": float(matthews_corrcoef(labels, answers)) if len(np.union1d(labels, answers)) > 1 else 0.0,
        "brier": float(((probabilities - np.eye(classes)[labels]) ** 2).sum(-1).mean()),
        **calibration_metrics(probabilities.max(-1), answers == labels),
        "n": count,
    }
    if classes == 2:
        metrics["f1"] = float(f1_score(labels, answers, labels=[1], average="macro", zero_division=0))
    return metrics


@dataclasses.dataclass(frozen=True)
class MultiLabel(_Sequences):
    """Any number of classes for each example: those whose probability is above one half."""

    temperature: float | None = None  # that predictions use; None: not fitted

    metrics: ClassVar[Mapping[str, Metric]] = {
        "micro_f1": Metric(True), "macro_f1": Metric(True), "exact": Metric(True), "loss": Metric(False)
    }  # fmt: skip

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        logits, wanted = self._known(outputs, examples)
        metrics = multi_label_metrics(logits, wanted)
        if self.temperature is None:
            return metrics
        return with_calibrated(metrics, multi_label_metrics(logits / self.temperature, wanted))

    def fit(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> dict[str, Any]:
        logits, wanted = self._known(outputs, examples)
        return fit_temperature(lambda logits: float(binary_losses(logits, wanted).mean()), logits)

    def fitted(self, values: Mapping[str, Any]) -> "MultiLabel":
        return dataclasses.replace(self, temperature=values["temperature"])

    def _known(self, outputs: Outputs, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits of the examples with labels, and which of the labels they have."""
        known = examples.columns["weights"] > 0
        return predicted(outputs)[known], examples.columns["labels"][known] > 0.5

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        for scores in sigmoid(predicted(outputs) / (self.temperature or 1.0)):
            chosen = [label for label, score in zip(labels, scores, strict=True) if score > 0.5]
            yield {"labels": chosen, "probabilities": dict(zip(labels, scores.tolist(), strict=True))}

    def describe(self, name: str, metrics: Metrics) -> str:
        return (
            f"{name}: micro F1 {metrics['micro_f1']:.2%}, macro F1 {metrics['macro_f1']:.2%}, all labels right"
            f" {metrics['exact']:.2%}; {metrics['loss']:.3f} nats per label; n = {metrics['n']:,}"
        )


def multi_label_metrics(logits: np.ndarray, wanted: np.ndarray) -> Metrics:
    """Returns the metrics of logits [n, C] and labels bool [n, C]; all but n are NaN if there are no examples.

    loss is in nats per label. The metrics of calibration count each label of each example as an answer, yes or no.
    """
    from sklearn.metrics import f1_score

    if not len(logits):
        nothing = calibration_metrics(np.zeros(0), np.zeros(0, bool))
        return dict.fromkeys(("micro_f1", "macro_f1", "exact", "loss", "brier"), math.nan) | nothing | {"n": 0}
    answers, probabilities = logits > 0, sigmoid(logits)
    confidence = np.maximum(probabilities, 1 - probabilities)
    return {
        "micro_f1": float(f1_score(wanted, answers, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(wanted, answers, average="macro", zero_division=0)),
        "exact": float((answers == wanted).all(-1).mean()),
        "loss": float(binary_losses(logits, wanted).mean()),
        "brier": float(((probabilities - wanted) ** 2).mean()),
        **calibration_metrics(confidence.ravel(), (answers == wanted).ravel()),
        "n": len(logits),
    }


@dataclasses.dataclass(frozen=True)
class Regression(_Sequences):
    """A number for each example; the loss is the mean squared error."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "pearson": Metric(True), "spearman": Metric(True), "loss": Metric(False)
    }  # fmt: skip

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        known = examples.columns["weights"] > 0
        answers, wanted = predicted(outputs)[known, 0], examples.columns["labels"][known].astype(np.float64)
        if not len(answers):
            return {"pearson": math.nan, "spearman": math.nan, "loss": math.nan, "n": 0}
        return {
            "pearson": correlation(answers, wanted, "pearson"),
            "spearman": correlation(answers, wanted, "spearman"),
            "loss": float(((answers - wanted) ** 2).mean()),
            "n": len(answers),
        }

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        for value in predicted(outputs)[:, 0].tolist():
            yield {"value": value}

    def describe(self, name: str, metrics: Metrics) -> str:
        return (
            f"{name}: Pearson {metrics['pearson']:.4f}, Spearman {metrics['spearman']:.4f}, mean squared error"
            f" {metrics['loss']:.4f}; n = {metrics['n']:,}"
        )


def with_calibrated(metrics: Metrics, calibrated: Metrics) -> Metrics:
    """Returns the metrics of a model, and those that a temperature changes as calibrated_..."""
    coverage = {AT_COVERAGE: calibrated[AT_COVERAGE]}  # of the answers that predictions call the most probable
    return metrics | coverage | {f"calibrated_{name}": calibrated[name] for name in ("loss", "ece", "brier")}


def correlation(first: np.ndarray, second: np.ndarray, kind: str) -> float:
    """Returns the Pearson or Spearman correlation of two arrays [n]; 0 if one of them is constant."""
    from scipy import stats

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float((stats.pearsonr if kind == "pearson" else stats.spearmanr)(first, second)[0])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns log probabilities [n, C] of logits [n, C]."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over examples in nats, of logits [n, C] and labels int [n]."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def binary_losses(logits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the cross entropies in nats of logits and labels of 0 and 1 of the same shape."""
    return np.maximum(logits, 0) - logits * wanted + np.log1p(np.exp(-np.abs(logits)))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities of the same shape."""
    return np.exp(-np.logaddexp(0, -logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities [n, C] of logits [n, C]."""
    return np.exp(log_softmax(logits))
