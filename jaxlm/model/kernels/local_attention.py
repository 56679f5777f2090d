"""Local attention by XLA in blocks: each block of queries attends to the keys within half a window of it.

Shapes: as in `attention`; C blocks per row, S queries per block, K = S + 2 R keys per block, R = window // 2.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxlm.model.attention import AttentionMask, alibi_bias, attend
from jaxlm.model.execution import Execution


class LocalBlocks(NamedTuple):
    """The mask of a local layer: visible bool [B or 1, C, S, K], shared by all local layers."""

    visible: Array


def block_size(length: int, window: int) -> int | None:
    """Returns the number of queries in a block, or None if attention over whole rows of `length` costs no more."""
    reach = window // 2
    size = max(reach, 64)
    return size if 2 * (size + 2 * reach) <= length else None


def local_blocks(mask: AttentionMask, length: int, size: int) -> LocalBlocks:
    """Returns a mask with a window, over blocks of `size` queries; size must be at least half the window."""
    assert mask.window is not None
    reach = mask.window // 2
    query, key = _positions(length, size, reach)
    visible = ((jnp.abs(query - key) <= reach) & (key >= 0) & (key < length))[None]
    if mask.causal:
        earlier = (key <= query)[None]
        if mask.prefix is not None:
            earlier |= key[None] < mask.prefix[:, None, None, None]
        visible &= earlier
    if mask.segment_ids is not None:
        own = _blocks(mask.segment_ids, size)
        visible &= own[:, :, :, None] == _with_neighbours(own, reach)[:, :, None, :]
    return LocalBlocks(visible)


def local_alibi_bias(heads: int, blocks: LocalBlocks) -> Array:
    """Returns ALiBi's bias float32 [1, N, S, K], which is the same for every block."""
    size, keys = blocks.visible.shape[-2:]
    query, key = jnp.arange(size)[:, None], jnp.arange(keys)[None, :] - (keys - size) // 2
    return alibi_bias(heads, 2)[:, :, :1, 1:] * jnp.abs(query - key)


def attend_in_blocks(
    query_blnh: Array,
    key_blnh: Array,
    value_blnh: Array,
    blocks: LocalBlocks,
    execution: Execution,
    bias: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_seeds: Array | None = None,
    site: int = 0,
) -> Array:
    """Returns `attention.attend` under the same mask, [B, L, N, H]; `bias` is that of one block, [1, N, S, K].

    Dropout zeroes the same pairs of tokens as attention over whole rows.
    """
    rows, length = query_blnh.shape[:2]
    count, size, keys = blocks.visible.shape[1:]
    reach = (keys - size) // 2

    def stack(x: Array) -> Array:  # makes each block a row
        return x.reshape(rows * count, *x.shape[2:])

    if dropout_seeds is not None:
        start = jnp.broadcast_to(jnp.arange(count, dtype=jnp.uint32)[:, None] * jnp.uint32(size), (rows, count, 1))
        seeds = jnp.broadcast_to(dropout_seeds[:, None], (rows, count, 2))
        dropout_seeds = stack(jnp.concatenate([seeds, start], axis=2))
    out = attend(
        stack(_blocks(query_blnh, size)),
        stack(_with_neighbours(_blocks(key_blnh, size), reach)),
        stack(_with_neighbours(_blocks(value_blnh, size), reach)),
        stack(jnp.broadcast_to(blocks.visible, (rows, count, size, keys)))[:, None],
        execution,
        bias,
        dropout_rate,
        dropout_seeds,
        site,
    )
    return out.reshape(rows, count * size, *out.shape[2:])[:, :length]


def _positions(length: int, size: int, reach: int) -> tuple[Array, Array]:
    """Returns the row positions of queries [C, S, 1] and keys [C, 1, K]; some keys lie beyond the row's ends."""
    start = jnp.arange(-(-length // size))[:, None, None] * size
    return start + jnp.arange(size)[None, :, None], start + jnp.arange(-reach, size + reach)[None, None, :]


def _blocks(x: Array, size: int) -> Array:
    """Returns x [B, L, ...] as blocks [B, C, S, ...], padded with zeros at the end."""
    rows, length = x.shape[:2]
    count = -(-length // size)
    padding = [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding).reshape(rows, count, size, *x.shape[2:])


def _with_neighbours(x: Array, reach: int) -> Array:
    """Returns [B, C, K, ...]: blocks [B, C, S, ...] with the last and first `reach` entries of their neighbours."""
    ends = [(0, 0)] * (x.ndim - 2)
    before = jnp.pad(x[:, :-1, x.shape[2] - reach :], [(0, 0), (1, 0), *ends])
    after = jnp.pad(x[:, 1:, :reach], [(0, 0), (0, 1), *ends])
    return jnp.concatenate([before, x, after], axis=2)
