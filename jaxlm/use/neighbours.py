"""Exact nearest neighbours by cosine, computed with matrix products in pieces that fit in memory."""

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.errors import UserError

QUERIES, VECTORS = 1024, 16_384  # per piece


def similarity(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Returns the cosine of each vector of a [n, D] with each of b [m, D], float32 [n, m]; 0 for a vector of zeros.

    Raises UserError if the arrays have other shapes, or contain NaN or infinity.
    """
    first, second = _vectors(a, "the first array"), _vectors(b, "the second array")
    _check_widths(first, second)
    return _unit(first, "the first array") @ _unit(second, "the second array").T


def nearest(queries: ArrayLike, corpus: ArrayLike, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest vectors of corpus [m, D] for each of queries [n, D] by cosine, the nearest first.

    The results are row numbers int64 [n, k] and cosines float32 [n, k]; k is reduced to m if it is larger. Among equal
    cosines the lower row comes first. The corpus is read in pieces, so it may be `np.load(file, mmap_mode="r")`. Raises
    UserError, also for NaN and infinity.
    """
    queries, corpus = _vectors(queries, "queries"), _vectors(corpus, "corpus")
    _check_widths(queries, corpus)
    check_count("k", k)
    k = min(k, len(corpus))
    rows = np.zeros((len(queries), k), np.int64)
    cosines = np.zeros((len(queries), k), np.float32)
    for first in range(0, len(queries), QUERIES):
        part = slice(first, first + QUERIES)
        rows[part], cosines[part] = _nearest(_unit(queries[part], "queries"), corpus, k)
    return rows, cosines


def _nearest(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = [np.zeros(0, np.int64)] * len(queries)
    cosines = [np.zeros(0, np.float32)] * len(queries)
    for first in range(0, len(corpus), VECTORS):
        found = queries @ _unit(corpus[first : first + VECTORS], "corpus").T
        keep = min(k, found.shape[1])
        least = np.partition(found, -keep, axis=1)[:, -keep]
        for number, row in enumerate(found):
            better = np.flatnonzero(row >= least[number])
            all_rows = np.concatenate([rows[number], better + first])
            all_cosines = np.concatenate([cosines[number], row[better]])
            order = np.lexsort((all_rows, -all_cosines))[:k]
            rows[number], cosines[number] = all_rows[order], all_cosines[order]
    return np.stack(rows), np.stack(cosines)


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    vectors = np.asarray(vectors, np.result_type(vectors.dtype, np.float32))
    largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True)
    if not np.isfinite(largest).all():
        raise UserError(f"{name}: a vector contains NaN or infinity, so it has no cosine; remove it")
    scaled = (vectors / np.where(largest > 0, largest, 1)).astype(np.float32)  # whose squares do not overflow
    return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1)


def _vectors(array: ArrayLike, name: str) -> np.ndarray:
    try:
        vectors = np.asanyarray(array)
    except ValueError as error:
        raise UserError(f"{name} must have numbers of shape [n, D], but its rows differ in length") from error
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise UserError(
            f"{name} must have numbers of shape [n, D], as `embed` returns, not {vectors.dtype} {list(vectors.shape)}"
        )
    if not len(vectors):
        raise UserError(f"{name} must contain at least one vector")
    return vectors


def _check_widths(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"vectors of width {first.shape[1]} and {second.shape[1]} cannot be compared: use the same model for both"
        )


def check_count(name: str, value: int) -> None:
    """Raises UserError unless a number of results is an int of at least 1."""
    if not isinstance(value, int | np.integer):
        raise UserError(f"{name} must be an int, not {type(value).__name__}")
    if value < 1:
        raise UserError(f"{name}={value}: must be at least 1")
