"""Metrics and predictions of classes, several classes and numbers."""

import json
import math
import re
import warnings

import numpy as np
import pytest

from jaxlm.data.examples import Examples
from jaxlm.evaluation.sequences import Classification, MultiLabel, Regression, classification_metrics
from jaxlm.evaluation.task_sets import write_predictions


def examples(labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else np.array(weights)
    return Examples([None] * len(labels), [], [], {"labels": np.array(labels), "weights": weights})


def test_classification():
    logits = np.log([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.9, 0.1]])
    found = classification_metrics(logits, np.array([0, 1, 1, 0]), 2)
    assert found["accuracy"] == 0.75
    assert found["accuracy_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found["majority_accuracy"] == 0.5
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["mcc"] == pytest.approx(0.57735, abs=1e-5)
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.8, 0.4, 0.9]).mean())
    assert found["n"] == 4


def test_metrics_of_an_empty_set_are_nan_and_constant_answers_correlate_with_nothing():
    nothing = classification_metrics(np.zeros((0, 3)), np.zeros(0, int), 3)
    assert nothing["n"] == 0
    assert np.isnan(nothing["accuracy"])
    constant = classification_metrics(np.zeros((2, 2)), np.array([0, 1]), 2)
    assert (constant["accuracy"], constant["mcc"], constant["loss"]) == (0.5, 0, pytest.approx(np.log(2)))
    with warnings.catch_warnings(action="error"):
        assert classification_metrics(np.zeros((1, 2)), np.array([0]), 2)["mcc"] == 0
    metrics = Regression().measure({"outputs": [np.zeros(1)] * 3}, examples([1.0, 2.0, 3.0]), (), None)
    assert (metrics["pearson"], metrics["spearman"]) == (0, 0)
    assert metrics["loss"] == pytest.approx(14 / 3)


def test_examples_without_a_label_are_predicted_but_not_measured(tmp_path):
    outputs = {"outputs": [np.array([2.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 1.0])]}
    some = examples([0, 0, 1], [1, 0, 1])
    assert Classification().measure(outputs, some, ("no", "yes"), None)["n"] == 2
    found = list(Classification().predictions(outputs, some, ("no", "yes"), None))
    assert [one["label"] for one in found] == ["no", "yes", "yes"]
    write_predictions(tmp_path / "predictions" / "test.jsonl", found)
    lines = (tmp_path / "predictions" / "test.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found


def test_several_labels():
    outputs = {"outputs": [np.array([3.0, -1.0, 2.0]), np.array([-1.0, -1.0, -1.0])]}
    found = MultiLabel().measure(outputs, examples([[1, 0, 0], [0, 0, 0]]), ("x", "y", "z"), None)
    assert (found["exact"], found["micro_f1"], found["n"]) == (0.5, pytest.approx(2 / 3), 2)
    assert [one["labels"] for one in MultiLabel().predictions(outputs, examples([0, 0]), ("x", "y", "z"), None)] == [
        ["x", "z"], []
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "n", "text"),
    [
        (0.6, 5000, "not above that of always answering the most frequent label"),
        (0.8, 60, r"with only 60 examples, the 95% interval of the accuracy is ±10\.1 points"),
        (0.8, 5000, "^$"),
        (math.nan, 0, "^$"),
    ],
)
def test_an_accuracy_that_means_little_is_remarked(accuracy, n, text):
    error = math.sqrt(accuracy * (1 - accuracy) / n) if n else math.nan
    metrics = {"accuracy": accuracy, "accuracy_error": error, "majority_accuracy": 0.6, "n": n}
    assert re.search(text, Classification().remark("dev", metrics))
