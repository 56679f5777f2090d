"""Calibration: the temperature has the lowest loss, the metrics their known values, and the file its step."""

import json
import math

import numpy as np
import pytest

from jaxlm.data.examples import Examples
from jaxlm.errors import UserError
from jaxlm.evaluation.calibration import (
    AT_COVERAGE,
    calibration_metrics,
    describe_calibration,
    fit_temperature,
    read_calibration,
    write_calibration,
)
from jaxlm.evaluation.sequences import (
    Classification,
    MultiLabel,
    binary_losses,
    negative_log_likelihood,
    sigmoid,
    softmax,
)
from jaxlm.evaluation.task_evaluation import Calibrated
from jaxlm.evaluation.task_sets import TASKS


def examples(labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else np.array(weights)
    return Examples([None] * len(labels), [], [], {"labels": np.array(labels), "weights": weights})


def drawn(n=4000, classes=3, sharpness=2.5):
    """Returns logits that are `sharpness` times too large, and labels drawn from their true probabilities."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(n, classes))
    labels = (softmax(logits).cumsum(-1) < random.random((n, 1))).sum(-1)
    return sharpness * logits, labels


def test_the_temperature_undoes_the_overconfidence_of_classes():
    logits, labels = drawn()
    found = fit_temperature(lambda logits: negative_log_likelihood(logits, labels), logits)
    assert found["temperature"] == pytest.approx(2.5, rel=0.1)
    assert found["calibrated_loss"] < found["loss"]
    near = [negative_log_likelihood(logits / (found["temperature"] * factor), labels) for factor in (0.99, 1.01)]
    assert found["calibrated_loss"] < min(near)
    outputs = {"outputs": list(logits)}
    kind = Classification().fitted(Classification().fit(outputs, examples(labels), ("a", "b", "c"), None))
    assert kind.temperature == pytest.approx(found["temperature"])
    before, after = (one.measure(outputs, examples(labels), ("a", "b", "c"), None) for one in (Classification(), kind))
    assert "calibrated_ece" not in before
    assert after["accuracy"] == before["accuracy"]
    assert after["ece"] == before["ece"]
    assert after["calibrated_ece"] < 0.3 * before["ece"]
    assert after["calibrated_brier"] < before["brier"]
    predictions = list(kind.predictions(outputs, examples(labels), ("a", "b", "c"), None))
    given = np.array([list(one["probabilities"].values()) for one in predictions])
    np.testing.assert_allclose(given, softmax(logits / found["temperature"]))


def test_the_temperature_undoes_the_overconfidence_of_several_labels():
    random = np.random.default_rng(0)
    truth = random.normal(size=(4000, 2))
    labels = (random.random(truth.shape) < sigmoid(truth)).astype(float)
    outputs = {"outputs": list(3 * truth)}
    values = MultiLabel().fit(outputs, examples(labels), ("a", "b"), None)
    assert values["temperature"] == pytest.approx(3, rel=0.1)
    assert values["loss"] == pytest.approx(binary_losses(3 * truth, labels).mean())
    found = MultiLabel().fitted(values).measure(outputs, examples(labels), ("a", "b"), None)
    assert found["calibrated_ece"] < 0.3 * found["ece"]
    first = next(iter(MultiLabel().fitted(values).predictions(outputs, examples(labels), ("a", "b"), None)))
    assert first["probabilities"]["a"] == pytest.approx(sigmoid(3 * truth[0, 0] / values["temperature"]))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([[2.0, 0.0], [0.0, 3.0]], [0, 1]),  # all right: the colder the better
        ([[2.0, 0.0], [0.0, 3.0]], [1, 0]),  # all wrong: the hotter the better
        ([[1.0, 1.0], [0.0, 0.0]], [0, 1]),  # constant
        (np.zeros((0, 2)), []),
    ],
)
def test_without_a_best_temperature_it_is_1(logits, labels):
    logits = np.array(logits)
    found = fit_temperature(lambda logits: negative_log_likelihood(logits, np.array(labels)), logits)
    assert found["temperature"] == 1
    assert found["n"] == len(labels)
    assert "none is better than 1" in describe_calibration("selection", found)


def test_examples_without_a_label_do_not_count():
    logits, labels = drawn(400)
    outputs = {"outputs": [*logits, *[np.array([50.0, 0.0, 0.0])] * 100]}
    some = examples([*labels, *[2] * 100], [1] * 400 + [0] * 100)
    alone = Classification().fit({"outputs": list(logits)}, examples(labels), ("a", "b", "c"), None)
    assert Classification().fit(outputs, some, ("a", "b", "c"), None) == alone


def test_the_calibration_error_and_the_accuracy_at_a_coverage_have_their_known_values():
    confidence, correct = np.array([0.95, 0.94, 0.6, 0.62, 1.0]), np.array([True, False, True, True, True])
    found = calibration_metrics(confidence, correct)
    # The bins of 1/15: [0.933, 1] holds three answers, [0.6, 0.667) two.
    assert found["ece"] == pytest.approx((abs(2 - 2.89) + abs(2 - 1.22)) / 5)
    assert found[AT_COVERAGE] == pytest.approx(3 / 4)
    order = np.array([4, 2, 0, 3, 1])
    ties = np.array([0.7, 0.7, 0.7, 0.7, 0.9]), np.array([True, False, True, False, True])
    assert calibration_metrics(*ties)[AT_COVERAGE] == pytest.approx((1 + 3 * 0.5) / 4)
    assert calibration_metrics(*(one[order] for one in ties)) == calibration_metrics(*ties)
    assert all(math.isnan(value) for value in calibration_metrics(np.zeros(0), np.zeros(0, bool)).values())


def test_the_brier_score_is_that_of_scikit_learn():
    from sklearn.metrics import brier_score_loss

    logits, labels = drawn(200, classes=2)
    found = Classification().measure({"outputs": list(logits)}, examples(labels), ("a", "b"), None)
    assert found["brier"] == pytest.approx(2 * brier_score_loss(labels, softmax(logits)[:, 1]))


def test_the_file_is_that_of_one_step(tmp_path):
    assert read_calibration(tmp_path, 40) == {}
    write_calibration(tmp_path, 40, "selection", {"temperature": 1.5, "n": 3, "loss": 1.0, "calibrated_loss": math.nan})
    assert read_calibration(tmp_path, 40)["temperature"] == 1.5
    assert read_calibration(tmp_path, 40)["fitted_on"] == "selection"
    assert "15 bins" in read_calibration(tmp_path, 40)["protocol"]["ece"]
    assert read_calibration(tmp_path, 60) == {}
    write_calibration(tmp_path, 40, "selection", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("temperature", [0, -1, None, "1", True])
def test_a_damaged_file_is_refused(tmp_path, temperature):
    (tmp_path / "calibration.json").write_text(json.dumps({"step": 1, "temperature": temperature}))
    with pytest.raises(UserError, match=r"calibration\.json: temperature=.* is not a number above 0; remove the file"):
        read_calibration(tmp_path, 1)


def test_the_kinds_with_probabilities_are_calibrated():
    assert {name for name, kind in TASKS.items() if isinstance(kind, Calibrated)} >= {"classification", "multi_label"}
    assert not isinstance(TASKS["regression"], Calibrated)
