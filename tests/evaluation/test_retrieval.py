"""Vectors evaluated as retrieval and as similarity."""

import math

import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.data.examples import Examples
from jaxlm.evaluation.retrieval import cosent, embedding_evaluation


def make_task(**settings):
    config = default_config()
    config.task.update(settings)
    return config.task


def make_examples(texts, roles, example, **columns):
    tokens = [np.zeros(4, np.int32)] * len(texts)
    columns = {"text": np.array(texts, np.int32), "role": np.array(roles, np.int32)} | columns
    return Examples([None] * (max(example) + 1), tokens, tokens, columns, example=np.array(example))


def at(degrees):
    """Returns a vector of any length at an angle."""
    return 3 * np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], np.float32)


def test_retrieval_among_the_different_texts_of_a_set():
    # (q1, d), (q2, d), (q1, e), and a hard negative of q2 that is the text of q2 itself.
    q1, q2, d, e = 0, 1, 2, 3
    examples = make_examples([q1, d, q2, d, q2, q1, e], [0, 1, 0, 1, 2, 0, 1], [0, 0, 1, 1, 1, 2, 2])
    angles = {q1: 0, q2: 100, d: 10, e: 80}
    vectors = [at(angles[text]) for text in examples.columns["text"].tolist()]
    evaluation, task = embedding_evaluation(make_task()), make_task(temperature=0.5)
    metrics = evaluation.measure({"vectors": vectors}, examples, (), task)
    # q1 is 10° from d, 80° from e and 100° from q2, and q2 is 20° from e and 90° from d; its own text is left out.
    assert metrics["n"] == 2
    assert metrics["documents"] == 3
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["map"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["recall_at_1"] == pytest.approx((1 / 2 + 0) / 2)
    cosine = {degrees: math.cos(math.radians(degrees)) / 0.5 for degrees in (10, 80, 90, 20, 100)}
    first = np.mean([np.logaddexp(cosine[own], cosine[100]) - cosine[own] for own in (10, 80)])
    second = np.logaddexp(cosine[90], cosine[20]) - cosine[90]
    assert metrics["loss"] == pytest.approx((first + second) / 2, rel=1e-4)
    predictions = list(evaluation.predictions({"vectors": vectors}, examples, (), task))
    assert [one["rank"] for one in predictions] == [1, 2, 2]
    assert predictions[0]["cosine"] == pytest.approx(math.cos(math.radians(10)), abs=1e-6)
    assert "among 3 documents; n = 2 queries" in evaluation.describe("dev", metrics)


@pytest.mark.parametrize("loss", ["cosent", "cosine_mse"])
def test_similarities_are_compared_with_cosines(loss):
    weights = np.array([1, 1, 1, 1, 0, 0, 1, 1], np.float32)
    labels = np.repeat(np.array([0.9, 0.5, 0, 0.1], np.float32), 2)
    examples = make_examples(range(8), [0, 1] * 4, np.repeat(range(4), 2), labels=labels, weights=weights)
    vectors = [at(angle) for angle in (0, 10, 0, 50, 0, 0, 0, 70)]
    task = make_task(loss=loss, temperature=0.5)
    evaluation = embedding_evaluation(task)
    metrics = evaluation.measure({"vectors": vectors}, examples, (), task)
    cosines = np.cos(np.radians([10, 50, 70]))
    assert metrics["n"] == 3
    assert metrics["spearman"] == 1
    assert metrics["pearson"] == pytest.approx(np.corrcoef(cosines, [0.9, 0.5, 0.1])[0, 1], abs=1e-6)
    s = cosines / 0.5
    expected = {
        "cosent": np.log(1 + np.exp(s[1] - s[0]) + np.exp(s[2] - s[0]) + np.exp(s[2] - s[1])),
        "cosine_mse": np.mean((cosines - [0.9, 0.5, 0.1]) ** 2),
    }
    assert metrics["loss"] == pytest.approx(expected[loss], rel=1e-5)
    assert len(list(evaluation.predictions({"vectors": vectors}, examples, (), task))) == 4


def test_cosent_of_a_set_with_ties():
    random = np.random.default_rng(0)
    scores, wanted = random.standard_normal(30), random.integers(0, 4, 30).astype(float)
    pairs = [scores[j] - scores[i] for i in range(30) for j in range(30) if wanted[i] > wanted[j]]
    assert cosent(scores, wanted) == pytest.approx(math.log(1 + np.exp(pairs).sum()))
    assert cosent(scores, np.zeros(30)) == 0
