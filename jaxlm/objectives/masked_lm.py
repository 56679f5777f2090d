"""What training minimises. Objectives return sums, so that accumulation, sharding and uneven rows change nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlm.model.heads import MaskedLM, encode, gather_positions, predict
from jaxlm.model.layers import split_rows
from jaxlm.objectives.masking import MaskedTokens

T = TypeVar("T")


class PredictionSums(NamedTuple):
    """Sums over the predictions of a batch, float32 scalars: divide by `predictions` for means."""

    loss: Array  # nats
    correct: Array  # where the true token had the highest logit
    predictions: Array


def masked_lm(
    model: MaskedLM,
    params: dict,
    masked: MaskedTokens,
    segment_ids: Array,
    dropout_seeds: Array | None = None,
    logits_bytes: int = 2**28,
    causal: bool = False,
) -> PredictionSums:
    """Returns the summed cross entropy of the masked tokens; `causal` hides from each token what follows it.

    Vocabulary logits exist at masked positions only, [B * P, V] float32 at once, or where a device's part of that is
    more than `logits_bytes` in equal pieces whose logits are computed again in the backward pass.
    """
    states = encode(model, params, masked.inputs, segment_ids, dropout_seeds=dropout_seeds, causal=causal)
    states = gather_positions(states, masked.masked_positions)
    states = split_rows(states.reshape(-1, states.shape[-1]), model.execution)
    labels, weights = masked.labels.reshape(-1), masked.weights.reshape(-1)

    def sums(piece: tuple[Array, Array, Array]) -> PredictionSums:
        states, labels, weights = piece
        logits = predict(model, params, states)
        return prediction_sums(logits, labels, weights)

    parts = model.execution.batch_parts
    return sum_in_pieces(sums, (states, labels, weights), model.config.vocab_size * 4, logits_bytes, parts)


def sum_in_pieces(sums: Callable[[tuple], T], rows: tuple, row_bytes: int, most_bytes: int, parts: int = 1) -> T:
    """Returns sums(rows), whose results add up over rows, taken over pieces whose rows need at most `most_bytes`.

    Where `parts` devices hold equal runs of the rows, each piece has its share of every run, and the limit is a
    device's: pieces that were runs themselves would be gathered, and computed by all devices.
    """
    pieces = _pieces(len(rows[0]) // parts, row_bytes, most_bytes)
    if pieces == 1:
        return sums(rows)

    def cut(x: Array) -> Array:
        if parts == 1:
            return x.reshape(pieces, -1, *x.shape[1:])
        return x.reshape(parts, pieces, -1, *x.shape[1:]).swapaxes(0, 1).reshape(pieces, -1, *x.shape[1:])

    split = jax.tree.map(cut, rows)
    return jax.tree.map(lambda x: x.sum(0), lax.map(jax.checkpoint(sums), split))


def _pieces(rows: int, row_bytes: int, most_bytes: int) -> int:
    """Returns into how many equal pieces rows are cut so that one holds at most `most_bytes` (or a single row)."""
    least = max(1, -(-rows * row_bytes // most_bytes))
    return next(pieces for pieces in range(min(least, rows), rows + 1) if rows % pieces == 0)


def prediction_sums(logits: Array, labels: Array, weights: Array) -> PredictionSums:
    """Returns sums over logits float32 [M, V] for labels int32 [M]; weights float32 [M] of 0 leave one out."""
    losses, correct = cross_entropy(logits, labels)
    return PredictionSums((losses * weights).sum(), (correct * weights).sum(), weights.sum())


@jax.custom_vjp
def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Returns nats float32 [M], and bool [M] whether no logit is above the label's.

    The gradient is written out, softmax minus one at the label, so that the backward pass reads the logits once and
    the forward pass keeps nothing of their size but themselves.
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


def mean_loss(sums: PredictionSums, predictions: Any = None) -> Array:
    """Returns nats per prediction; 0, with zero gradients, for a batch without any."""
    total = sums.predictions if predictions is None else predictions
    return sums.loss / jnp.maximum(total, 1)
