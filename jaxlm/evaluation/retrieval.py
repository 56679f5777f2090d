"""Evaluation of vectors: retrieval among all texts of a set, or the correlation of cosines with similarities."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax import Array

from jaxlm.data.examples import Examples
from jaxlm.data.tasks.retrieval import ANCHOR, POSITIVE
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.ranking import ranking_metrics, relevant_ranks
from jaxlm.evaluation.sequences import correlation
from jaxlm.evaluation.task_evaluation import Metric, Outputs, TaskEvaluation
from jaxlm.objectives.objective import Params

QUERIES = 256  # that are compared with all documents at once


def embedding_evaluation(task: Any) -> TaskEvaluation:
    """Returns how vectors are evaluated with the task.loss of a run."""
    return Retrieval() if task.loss == "contrastive" else Similarity()


class _Vectors:
    """What both evaluations share: the vectors of the segments."""

    of_tokens: ClassVar[bool] = False

    def outputs(self, objective: Any, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"vectors": objective.outputs(params, batch)}

    def remark(self, name: str, metrics: Metrics) -> str:
        return ""


class Retrieval(_Vectors):
    """Each different anchor is a query; the documents are the different positives and hard negatives of the set."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "ndcg_at_10": Metric(True), "mrr": Metric(True), "map": Metric(True), "recall_at_1": Metric(True),
        "recall_at_10": Metric(True), "loss": Metric(False),
    }  # fmt: skip

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        return retrieval_metrics(search(_by_cosine(unit_vectors(outputs)), examples, task.temperature))

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        """Yields the cosine of the two texts of each example, and the rank of the second among the documents."""
        vectors = unit_vectors(outputs)
        ranks = search(_by_cosine(vectors), examples, task.temperature).rank_of_row
        for cosine, rank in zip(_cosines(vectors, examples).tolist(), ranks, strict=True):
            yield {"cosine": cosine, "rank": rank}

    def describe(self, name: str, metrics: Metrics) -> str:
        return (
            f"{name}: nDCG@10 {metrics['ndcg_at_10']:.4f}, MRR {metrics['mrr']:.4f}, recall@1"
            f" {metrics['recall_at_1']:.2%}, recall@10 {metrics['recall_at_10']:.2%} among {metrics['documents']:,}"
            f" documents; n = {metrics['n']:,} queries"
        )


class Similarity(_Vectors):
    """The correlation of the cosines of pairs with their similarities; the loss is that of training, over the set."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "spearman": Metric(True), "pearson": Metric(True), "loss": Metric(False)
    }  # fmt: skip

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        first = examples.first[:-1]
        known = examples.columns["weights"][first] > 0
        found = _cosines(unit_vectors(outputs), examples)[known]
        wanted = examples.columns["labels"][first][known].astype(np.float64)
        if not len(found):
            return {"spearman": math.nan, "pearson": math.nan, "loss": math.nan, "n": 0}
        errors = task.loss == "cosine_mse"
        loss = ((found - wanted) ** 2).mean() if errors else cosent(found / task.temperature, wanted)
        return {
            "spearman": correlation(found, wanted, "spearman"), "pearson": correlation(found, wanted, "pearson"),
            "loss": float(loss), "n": len(found),
        }  # fmt: skip

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        for cosine in _cosines(unit_vectors(outputs), examples).tolist():
            yield {"cosine": cosine}

    def describe(self, name: str, metrics: Metrics) -> str:
        return (
            f"{name}: Spearman of the cosine {metrics['spearman']:.4f}, Pearson {metrics['pearson']:.4f}, loss"
            f" {metrics['loss']:.4f}; n = {metrics['n']:,}"
        )


class Found(NamedTuple):
    """What a search of all queries finds."""

    ranks: list[np.ndarray]  # of the relevant documents of each query
    losses: list[float]  # nats of each query's relevant documents, each among it and the documents that are not
    rank_of_row: list[int]  # of each example's positive
    documents: int


def unit_vectors(outputs: Outputs) -> np.ndarray:
    """Returns the vectors of all segments scaled to length 1, float32 [n, D]."""
    vectors = np.stack(outputs["vectors"]).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _cosines(vectors: np.ndarray, examples: Examples) -> np.ndarray:
    """Returns the cosine of the two texts of each example, float64 [n]."""
    first = examples.first[:-1]
    return (vectors[first].astype(np.float64) * vectors[first + 1]).sum(1)


def _by_cosine(vectors: np.ndarray) -> Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Returns the argument of `search` that scores the segments by the products of their vectors [n, D]."""

    def against(documents: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        index = vectors[documents].T
        return lambda queries: vectors[queries] @ index

    return against


def retrieval_metrics(found: Found) -> Metrics:
    """Returns the metrics of a search, with the number of queries n and that of documents."""
    return ranking_metrics(found.ranks) | {
        "loss": float(np.mean(found.losses)) if found.losses else math.nan,
        "n": len(found.ranks),
        "documents": found.documents,
    }


def search(
    scores_against: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]], examples: Examples, temperature: float
) -> Found:
    """Compares every query with every document; a query's own text is not among its documents.

    Called with the segments of the documents, `scores_against` returns the function that scores them for the segments
    of queries, [queries, documents]. The loss is that of scores divided by the temperature.
    """
    role, text = examples.columns["role"], examples.columns["text"]
    query_texts, query_segments = np.unique(text[role == ANCHOR], return_index=True)
    query_segments = np.flatnonzero(role == ANCHOR)[query_segments]
    document_texts, document_segments = np.unique(text[role != ANCHOR], return_index=True)
    scores_of = scores_against(np.flatnonzero(role != ANCHOR)[document_segments])
    row_queries = np.searchsorted(query_texts, text[role == ANCHOR])
    row_documents = np.searchsorted(document_texts, text[role == POSITIVE])
    relevant: list[list[int]] = [[] for _ in query_texts]
    for query, document in zip(row_queries.tolist(), row_documents.tolist(), strict=True):
        relevant[query].append(document)
    ranks: list[np.ndarray] = []
    losses: list[float] = []
    rank_of_pair: dict[tuple[int, int], int] = {}
    for first in range(0, len(query_texts), QUERIES):
        block = scores_of(query_segments[first : first + QUERIES])
        for number, scores in enumerate(block, first):
            wanted = np.unique(relevant[number])
            known = document_texts == query_texts[number]
            known[wanted] = False
            scores = np.where(known, -np.inf, scores)  # the query itself
            marked = np.zeros(len(document_texts), bool)
            marked[wanted] = True
            ranks.append(relevant_ranks(scores, marked))
            losses.append(_nats(scores / temperature, marked))
            best_first = wanted[np.argsort(-scores[wanted], kind="stable")]
            found = zip(best_first.tolist(), ranks[-1].tolist(), strict=True)
            rank_of_pair |= {(number, document): rank for document, rank in found}
    pairs = zip(row_queries.tolist(), row_documents.tolist(), strict=True)
    return Found(ranks, losses, [rank_of_pair[pair] for pair in pairs], len(document_texts))


def _nats(logits: np.ndarray, relevant: np.ndarray) -> float:
    """Returns the mean cross entropy of the relevant documents, each among itself and those that are not relevant."""
    logits = logits.astype(np.float64)
    highest = logits.max()
    others = np.exp(logits[~relevant] - highest).sum()
    own = logits[relevant] - highest
    return float((np.log(others + np.exp(own)) - own).mean())


def cosent(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Returns log(1 + sum of exp(score_j - score_i) over pairs with wanted_i > wanted_j), in O(n log n)."""
    order = np.argsort(wanted, kind="stable")
    scores, wanted = scores[order], wanted[order]
    below = np.concatenate([[-np.inf], np.logaddexp.accumulate(scores)])  # log sum exp of the i lowest
    lower = np.searchsorted(wanted, wanted, side="left")
    return float(np.logaddexp.reduce(np.concatenate([[0.0], below[lower] - scores])))
