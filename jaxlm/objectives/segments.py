"""Losses that compare segments of a batch with each other, wherever packing put them.

Such a loss does not add over rows. The segments are encoded, in chunks if memory is short, and then put in the order of
their examples: on one device or many, packed in one way or another, the loss is the same.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

Encode = Callable[[Mapping[str, Array], Array | None], Array]  # rows and dropout seeds -> [B, S, ...]


def encode_in_chunks(encode: Encode, rows: Mapping[str, Array], dropout_seeds: Array | None, chunks: int) -> Array:
    """Returns encode(rows, dropout_seeds) [B, S, ...], computed in `chunks` parts of the rows, one after another.

    Only the results of all rows are in memory at once: the backward pass computes the states of a part again, with the
    same dropout (GradCache, arXiv 2101.06983). The rows' number must be a multiple of `chunks`.
    """
    if chunks == 1:
        return encode(rows, dropout_seeds)
    # Row b goes to part b % chunks, so that a batch split over devices stays where it is.
    parts = jax.tree.map(lambda x: x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1), (dict(rows), dropout_seeds))
    encoded = lax.map(jax.checkpoint(lambda part: encode(*part)), parts)
    return encoded.swapaxes(0, 1).reshape(-1, *encoded.shape[2:])


def by_example(values: Array, examples: Array, roles: Array, count: int, size: int) -> tuple[Array, Array]:
    """Returns values [B, S, ...] of segments as [U, K, ...], and bool [U, K]: which of them exist; zero if not.

    `examples` and `roles`, int32 [B, S], say where each segment belongs: the example, less than `count` = U, or -1 if
    there is no segment; and its number in the example, less than `size` = K.
    """
    place = jnp.where(examples >= 0, examples * size + roles, count * size).reshape(-1)
    values = values.reshape(-1, *values.shape[2:])
    ordered = jnp.zeros((count * size, *values.shape[1:]), values.dtype).at[place].set(values, mode="drop")
    exists = jnp.zeros(count * size, bool).at[place].set(True, mode="drop")
    return ordered.reshape(count, size, *values.shape[1:]), exists.reshape(count, size)
