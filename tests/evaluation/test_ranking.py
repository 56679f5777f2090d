"""Ranking metrics: those of trec_eval, and nothing to be gained by equal scores."""

import json

import numpy as np
import pytest

from jaxlm.evaluation.ranking import ranking_metrics, relevant_ranks
from tests.conftest import ROOT

GOLDEN = json.loads((ROOT / "tests" / "golden" / "ranking.json").read_text())


def test_metrics_are_those_of_trec_eval():
    ranks = [
        relevant_ranks(np.array(query["scores"]), np.array(query["relevant"], bool)) for query in GOLDEN["queries"]
    ]
    found = ranking_metrics(ranks)
    assert found == pytest.approx(GOLDEN["metrics"], abs=1e-6)


def test_ties_are_no_hits():
    relevant = np.array([True, False, True, False])
    assert relevant_ranks(np.zeros(4), relevant).tolist() == [3, 4]
    assert relevant_ranks(np.array([1.0, 1, 0, 0]), relevant).tolist() == [2, 4]
    assert relevant_ranks(np.array([1.0, 0, 1, 0]), relevant).tolist() == [1, 2]


def test_no_queries_have_no_metrics():
    assert all(np.isnan(value) for value in ranking_metrics([]).values())
