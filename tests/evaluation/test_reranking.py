"""The order of the passages of each query."""

import math

import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.data.examples import Examples
from jaxlm.evaluation.reranking import Reranking
from jaxlm.text.labelled import Row


def make_set(rows):
    """rows are (query, label or None)."""
    task = default_config().task
    task.text = ("query", "passage")
    found = [Row(f"line {n}", {"query": query, "passage": f"p{n}"}) for n, (query, _) in enumerate(rows)]
    columns = {
        "labels": np.array([label or 0 for _, label in rows], np.float32),
        "weights": np.array([label is not None for _, label in rows], np.float32),
    }
    tokens = [np.zeros(4, np.int32)] * len(rows)
    return Examples(found, tokens, tokens, columns), task


def test_passages_are_ranked_by_query():
    # The rows of a query need not be neighbours; c has no relevant passage, d no other, and one passage has no label.
    examples, task = make_set([("a", 0), ("b", 1), ("a", 1), ("b", 0), ("c", 0), ("d", 1), ("a", None), ("a", 1)])
    outputs = {"outputs": [np.array([score]) for score in (2.0, 1.0, 1.0, 0.5, 3.0, -1.0, 9.0, 3.0)]}
    metrics = Reranking().measure(outputs, examples, (), task)
    assert metrics["n"] == 3
    assert metrics["passages"] == 7
    assert metrics["queries_without_relevant"] == 1
    assert metrics["queries_with_only_relevant"] == 1
    assert metrics["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 + 1) / 3)
    assert metrics["mrr"] == 1
    losses = [math.log(1 + math.exp(x)) for x in (2, -1, -1, 0.5, 3, 1, -3)]
    assert metrics["loss"] == pytest.approx(np.mean(losses))
    predictions = list(Reranking().predictions(outputs, examples, (), task))
    assert [one["rank"] for one in predictions] == [3, 1, 4, 2, 1, 1, 1, 2]
    assert predictions[6]["score"] == 9
    assert "n = 3 queries with a relevant passage (1 with no other), 1 without one" in Reranking().describe(
        "t", metrics
    )


def test_a_model_that_scores_all_passages_equally_gains_nothing():
    examples, task = make_set([("a", 1), ("a", 0), ("a", 0)])
    metrics = Reranking().measure({"outputs": [np.zeros(1)] * 3}, examples, (), task)
    assert metrics["mrr"] == pytest.approx(1 / 3)
    none, _ = make_set([("a", 0)])
    metrics = Reranking().measure({"outputs": [np.zeros(1)]}, none, (), task)
    assert metrics["n"] == 0
    assert "no query has a relevant passage" in Reranking().remark("dev", metrics)
