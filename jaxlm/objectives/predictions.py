"""Predicting tokens: from a batch to the vocabulary logits at some positions, in pieces of bounded size.

Training, held-out evaluation, scoring and mask filling all encode a batch, gather the states at the positions of their
predictions, and reduce vocabulary logits to something small. They do it here.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlm.model.heads import MaskedLM, encode, gather_positions, predict
from jaxlm.model.layers import split_rows

T = TypeVar("T")
Rows = tuple[Array, ...]


def sum_predictions(
    model: MaskedLM,
    params: dict,
    tokens: Array,
    segment_ids: Array | None,
    positions: Array,
    columns: Rows,
    function: Callable[..., T],
    logits_bytes: int = 2**28,
    **encoder_arguments: Any,
) -> T:
    """Returns function(logits, *columns), a tree of sums over predictions.

    tokens and segment_ids are int32 [B, L], positions int32 [B, P], columns arrays [B, P]. `function` takes logits
    float32 [M, V] and the columns [M] of M predictions, and returns sums over them. The logits of all B * P predictions
    exist at once only if they need at most `logits_bytes` on a device; otherwise they are computed in equal pieces, and
    again in the backward pass.
    """
    rows = _gathered(model, params, tokens, segment_ids, positions, columns, encoder_arguments)
    piece = lambda rows: function(predict(model, params, rows[0]), *rows[1:])  # noqa: E731
    return sum_in_pieces(piece, rows, model.config.vocab_size * 4, logits_bytes, model.execution.batch_parts)


def map_predictions(
    model: MaskedLM,
    params: dict,
    tokens: Array,
    segment_ids: Array | None,
    positions: Array,
    columns: Rows,
    function: Callable[..., Array],
    logits_bytes: int = 2**28,
    **encoder_arguments: Any,
) -> Array:
    """Returns function(logits, *columns) for each prediction, [B, P, ...]; arguments as of `sum_predictions`.

    `function` returns an array [M, ...].
    """
    rows = _gathered(model, params, tokens, segment_ids, positions, columns, encoder_arguments)
    piece = lambda rows: function(predict(model, params, rows[0]), *rows[1:])  # noqa: E731
    parts = model.execution.batch_parts
    found = map_in_pieces(piece, rows, model.config.vocab_size * 4, logits_bytes, parts)
    return found.reshape(*positions.shape, *found.shape[1:])


def _gathered(
    model: MaskedLM, params: dict, tokens: Array, segment_ids: Array | None, positions: Array, columns: Rows,
    encoder_arguments: dict[str, Any],
) -> Rows:  # fmt: skip
    """Returns the states at the positions, [B * P, D] split over devices as the batch is, and the columns [B * P]."""
    states = encode(model, params, tokens, segment_ids, **encoder_arguments)
    states = gather_positions(states, positions)
    states = split_rows(states.reshape(-1, states.shape[-1]), model.execution)
    return states, *(column.reshape(-1) for column in columns)


def sum_in_pieces(sums: Callable[[Rows], T], rows: Rows, row_bytes: int, most_bytes: int, parts: int = 1) -> T:
    """Returns sums(rows), which adds up over rows, computed in equal pieces whose rows need at most `most_bytes`.

    If `parts` devices hold equal runs of the rows, each piece takes its share of every run, and the limit is per
    device: pieces that were runs themselves would be gathered and computed by all devices.
    """
    pieces = _pieces(len(rows[0]) // parts, row_bytes, most_bytes)
    if pieces == 1:
        return sums(rows)
    split = jax.tree.map(lambda x: _cut(x, pieces, parts), rows)
    return jax.tree.map(lambda x: x.sum(0), lax.map(jax.checkpoint(sums), split))


def map_in_pieces(
    function: Callable[[Rows], Array], rows: Rows, row_bytes: int, most_bytes: int, parts: int = 1
) -> Array:
    """Returns function(rows) [M, ...], computed in pieces like `sum_in_pieces`."""
    pieces = _pieces(len(rows[0]) // parts, row_bytes, most_bytes)
    if pieces == 1:
        return function(rows)
    found = lax.map(function, jax.tree.map(lambda x: _cut(x, pieces, parts), rows))
    found = found.reshape(pieces, parts, -1, *found.shape[2:]).swapaxes(0, 1)
    return found.reshape(-1, *found.shape[3:])


def _cut(x: Array, pieces: int, parts: int) -> Array:
    """Returns [M, ...] as [pieces, M / pieces, ...], each piece an equal share of each of `parts` runs."""
    if parts == 1:
        return x.reshape(pieces, -1, *x.shape[1:])
    return x.reshape(parts, pieces, -1, *x.shape[1:]).swapaxes(0, 1).reshape(pieces, -1, *x.shape[1:])


def _pieces(rows: int, row_bytes: int, most_bytes: int) -> int:
    """Returns the smallest number of equal pieces of which each needs at most `most_bytes` (or is a single row)."""
    least = max(1, -(-rows * row_bytes // most_bytes))
    return next(pieces for pieces in range(min(least, rows), rows + 1) if rows % pieces == 0)


@jax.custom_vjp
def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Returns nats float32 [M], and bool [M], whether no logit exceeds the label's.

    logits are float32 [M, V], labels int32 [M]. The gradient is written out, softmax minus one at the label, so that
    the backward pass reads the logits once and the forward pass keeps nothing of their size but themselves.
    """
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(logits, labels):
    highest = logits.max(-1)
    normaliser = highest + jnp.log(jnp.exp(logits - highest[:, None]).sum(-1))
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return (normaliser - own, own >= highest), (logits, labels, normaliser)


def _cross_entropy_backward(saved, gradients):
    logits, labels, normaliser = saved
    at_label = labels[:, None] == lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    gradient = (jnp.exp(logits - normaliser[:, None]) - at_label) * gradients[0][:, None]
    return gradient, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def weighted_sums(logits: Array, labels: Array, weights: Array) -> dict[str, Array]:
    """Returns the float32 sums "loss" (nats), "correct" and "predictions" over logits float32 [M, V].

    labels are int32 [M]; weights float32 [M], where 0 leaves a prediction out. A prediction is correct if the label's
    logit is the highest.
    """
    losses, correct = cross_entropy(logits, labels)
    return {"loss": (losses * weights).sum(), "correct": (correct * weights).sum(), "predictions": weights.sum()}
