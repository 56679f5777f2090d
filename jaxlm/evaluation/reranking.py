"""Evaluation of a reranker: how the passages of each query are ordered by their scores."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jax import Array

from jaxlm.data.examples import Examples
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.ranking import ranking_metrics, relevant_ranks
from jaxlm.evaluation.task_evaluation import Metric, Outputs
from jaxlm.objectives.objective import Params
from jaxlm.text.labelled import text_in


class Reranking:
    """The order of the passages with a label; queries of which none is relevant do not count, as in trec_eval."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "map": Metric(True), "mrr": Metric(True), "ndcg_at_10": Metric(True), "loss": Metric(False)
    }  # fmt: skip
    of_tokens: ClassVar[bool] = False

    def outputs(self, objective: Any, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"outputs": objective.outputs(params, batch)}

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        scores = _scores(outputs)
        relevant, known = examples.columns["labels"] > 0.5, examples.columns["weights"] > 0
        ranks, without, alone = [], 0, 0
        for passages in passages_of_queries(examples, task):
            passages = passages[known[passages]]
            if relevant[passages].any():
                ranks.append(relevant_ranks(scores[passages], relevant[passages]))
                alone += bool(relevant[passages].all())
            else:
                without += bool(len(passages))
        losses = np.logaddexp(0, np.where(relevant, -scores, scores))[known]
        found = ranking_metrics(ranks)
        return {name: found[name] for name in ("map", "mrr", "ndcg_at_10", "recall_at_1")} | {
            "loss": float(losses.mean()) if len(losses) else math.nan,
            "n": len(ranks),
            "passages": int(known.sum()),
            "queries_without_relevant": without,
            "queries_with_only_relevant": alone,
        }

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        """Yields the score of each pair, a logit, and the rank of the passage among those of its query."""
        scores = _scores(outputs)
        ranks = np.zeros(len(scores), np.int64)
        for passages in passages_of_queries(examples, task):
            ranks[passages[np.argsort(-scores[passages], kind="stable")]] = np.arange(1, len(passages) + 1)
        for score, rank in zip(scores.tolist(), ranks.tolist(), strict=True):
            yield {"score": score, "rank": rank}

    def describe(self, name: str, metrics: Metrics) -> str:
        return (
            f"{name}: MAP {metrics['map']:.4f}, MRR {metrics['mrr']:.4f}, nDCG@10 {metrics['ndcg_at_10']:.4f},"
            f" {metrics['loss']:.3f} nats per passage; n = {metrics['n']:,} queries with a relevant passage"
            f" ({metrics['queries_with_only_relevant']:,} with no other), {metrics['queries_without_relevant']:,}"
            " without one do not count"
        )

    def remark(self, name: str, metrics: Metrics) -> str:
        if metrics["n"] or not metrics["passages"]:
            return ""
        return f"{name}: no query has a relevant passage, so that nothing can be ranked"


def passages_of_queries(examples: Examples, task: Any) -> list[np.ndarray]:
    """Returns the examples of each query, int64 [passages], in the order of the file."""
    found: dict[str, list[int]] = {}
    for number, row in enumerate(examples.rows):
        found.setdefault(text_in(row, task.text[0]).strip(), []).append(number)
    return [np.array(numbers, np.int64) for numbers in found.values()]


def _scores(outputs: Outputs) -> np.ndarray:
    return np.stack(outputs["outputs"])[:, 0].astype(np.float64)
