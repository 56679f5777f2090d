"""Metrics of rankings, from the ranks of the relevant documents of each query."""

import math
from collections.abc import Sequence

import numpy as np

CUTOFF = 10  # of nDCG and recall


def relevant_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Returns the ranks, from 1 and ascending, of the relevant documents of one query, int64 [number of them].

    scores float [C], relevant bool [C]. A relevant document is behind the others with the same score, so that a model
    that scores all of them equally gains nothing.
    """
    wanted = np.sort(scores[relevant])[::-1]
    others = np.sort(scores[~relevant])
    ahead = len(others) - np.searchsorted(others, wanted, side="left")
    return ahead + np.arange(1, len(wanted) + 1)


def ranking_metrics(ranks: Sequence[np.ndarray]) -> dict[str, float]:
    """Returns means over queries; ranks are those of `relevant_ranks`, at least one for each query.

    map is the mean average precision, mrr the mean reciprocal rank of the first relevant document, ndcg_at_10 has
    relevance 0 or 1 as gain, recall_at_k is the fraction of the relevant documents among the first k. All are NaN
    without queries.
    """
    if not ranks:
        return dict.fromkeys(("map", "mrr", "ndcg_at_10", "recall_at_1", "recall_at_10"), math.nan)
    ideal = np.concatenate([[0], np.cumsum(1 / np.log2(1 + np.arange(1, CUTOFF + 1)))])

    def mean(value_of) -> float:  # type: ignore[no-untyped-def]
        return float(np.mean([value_of(found) for found in ranks]))

    return {
        "map": mean(lambda found: (np.arange(1, len(found) + 1) / found).mean()),
        "mrr": mean(lambda found: 1 / found[0]),
        "ndcg_at_10": mean(
            lambda found: (1 / np.log2(1 + found[found <= CUTOFF])).sum() / ideal[min(len(found), CUTOFF)]
        ),
        "recall_at_1": mean(lambda found: (found <= 1).mean()),
        "recall_at_10": mean(lambda found: (found <= CUTOFF).mean()),
    }
