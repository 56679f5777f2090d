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


def test_metrics_are_those_of_ir_measures():
    ir_measures = pytest.importorskip("ir_measures", reason="the oracles extra is not installed")
    names = {
        "map": ir_measures.AP, "mrr": ir_measures.RR, "ndcg_at_10": ir_measures.nDCG @ 10,
        "recall_at_1": ir_measures.R @ 1, "recall_at_10": ir_measures.R @ 10,
    }  # fmt: skip
    random = np.random.default_rng(0)
    ranks, judged, run = [], {}, {}
    for query in range(50):
        scores = random.permutation(random.integers(1, 40)).astype(float)
        relevant = random.random(len(scores)) < 0.3
        relevant[random.integers(len(scores))] = True
        ranks.append(relevant_ranks(scores, relevant))
        judged[f"q{query}"] = {f"d{n}": int(value) for n, value in enumerate(relevant)}
        run[f"q{query}"] = {f"d{n}": value for n, value in enumerate(scores.tolist())}
    expected = ir_measures.calc_aggregate(names.values(), judged, run)
    assert ranking_metrics(ranks) == pytest.approx({name: expected[of] for name, of in names.items()}, abs=1e-6)


def test_ties_are_no_hits():
    relevant = np.array([True, False, True, False])
    assert relevant_ranks(np.zeros(4), relevant).tolist() == [3, 4]
    assert relevant_ranks(np.array([1.0, 1, 0, 0]), relevant).tolist() == [2, 4]
    assert relevant_ranks(np.array([1.0, 0, 1, 0]), relevant).tolist() == [1, 2]


def test_no_queries_have_no_metrics():
    assert all(np.isnan(value) for value in ranking_metrics([]).values())
