"""The choice with the highest logit, among as many as each example has."""

import math

import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.data.examples import Examples
from jaxlm.evaluation.choice import Choice


def test_choices_are_compared_within_their_example():
    task = default_config().task
    task.choices = ("a", "b", "c")
    example = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3])
    columns = {
        "role": np.array([0, 1, 2, 0, 2, 0, 1, 0, 1], np.int32),
        "labels": np.array([1, 1, 1, 2, 2, 0, 0, 0, 0], np.int32),
        "weights": np.array([1, 1, 1, 1, 1, 1, 1, 0, 0], np.float32),
    }
    tokens = [np.zeros(4, np.int32)] * 9
    examples = Examples([None] * 4, tokens, tokens, columns, example=example)
    logits = [0.0, 2, 1, 5, 4, 1, 1, 0, 3]  # right, wrong, a tie, no label
    outputs = {"outputs": [np.array([logit]) for logit in logits]}
    metrics = Choice().measure(outputs, examples, (), task)
    assert metrics["n"] == 3
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    expected = [math.log(math.exp(-2) + 1 + math.exp(-1)), math.log(1 + math.e), math.log(2)]
    assert metrics["loss"] == pytest.approx(np.mean(expected))
    predictions = list(Choice().predictions(outputs, examples, (), task))
    assert [one["label"] for one in predictions] == ["b", "a", "a", "b"]
    assert list(predictions[1]["probabilities"]) == ["a", "c"]
    assert "not above chance" in Choice().remark("dev", metrics)
