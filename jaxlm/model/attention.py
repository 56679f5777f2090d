"""Attention: which tokens see which (`AttentionMask`), where they stand (rotary, ALiBi), and the product itself."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlm.model.config import Execution
from jaxlm.model.layers import dropout, precision_of


@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """What is known about who sees whom; only a kernel that needs a matrix makes one.

    `segment_ids` int32 [B, L]: a token sees its own segment only (packed documents; padding is segment 0).
    `window`: a token sees half of it on each side. `causal`: it sees no later token, but for the first `prefix`
    int32 [B] tokens of a row, which all see each other.
    """

    segment_ids: Array | None = None
    prefix: Array | None = None
    window: int | None = None
    causal: bool = False

    def materialise(self, length: int) -> Array | None:
        """Returns bool [B or 1, 1, L, L], True where row's token sees column's; None where all see all."""
        query, key = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
        seen = None
        if self.causal:
            seen = (key <= query)[None]
            if self.prefix is not None:
                seen |= key[None] < self.prefix[:, None, None]
        if self.window is not None:
            near = (jnp.abs(query - key) <= self.window // 2)[None]
            seen = near if seen is None else seen & near
        if self.segment_ids is not None:
            same = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
            seen = same if seen is None else seen & same
        return None if seen is None else seen[:, None]


jax.tree_util.register_dataclass(AttentionMask, ["segment_ids", "prefix"], ["window", "causal"])


def positions_in_segments(segment_ids: Array) -> Array:
    """Returns position ids int32 [B, L] that start at 0 with each segment of segment_ids [B, L]."""
    index = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    starts = segment_ids != jnp.pad(segment_ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return index - lax.cummax(jnp.where(starts, index, 0), axis=1)


def rotary_table(positions: Array, head_width: int, base: float) -> tuple[Array, Array]:
    """Returns cosines and sines float32 [B, L, 1, H/2] of RoFormer's angles (arXiv 2104.09864) at positions [B, L]."""
    frequencies = base ** -(jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_blnh: Array, table: tuple[Array, Array]) -> Array:
    """Returns x turned by its position: component i pairs with component i + H/2, as in Hugging Face checkpoints."""
    cos, sin = table
    first, second = jnp.split(x_blnh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_blnh.dtype)


def alibi_bias(heads: int, length: int) -> Array:
    """Returns ALiBi's penalty float32 [1, N, L, L], minus slope times distance either way (arXiv 2108.12409)."""
    whole = 2 ** (heads.bit_length() - 1)  # the largest power of two up to `heads`; more heads take slopes in between
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    slopes += [2 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)]
    distance = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length)[None, :])
    return -jnp.array(slopes, jnp.float32)[None, :, None, None] * distance


def attend(
    query_blnh: Array,
    key_blnh: Array,
    value_blnh: Array,
    mask: AttentionMask | Array | None,
    execution: Execution,
    bias: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_seeds: Array | None = None,
    site: int = 0,
    square: int | None = None,
) -> Array:
    """Returns softmax(query key / sqrt(H) + bias) value, [B, L, N, H] in the activation dtype.

    `mask` may be a value or already materialised, so that layers of one kind share the matrix. Softmax is in float32;
    a token that sees nothing else sees itself at least through its own segment, so no row is empty. Keys may be more
    than queries where both are cut out of rows of `square` tokens; of its dropout's seeds see `dropout`.
    """
    dtype = jnp.dtype(execution.compute_dtype)
    scale = query_blnh.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bqnh,bknh->bnqk",
        (query_blnh * scale).astype(dtype),
        key_blnh.astype(dtype),
        precision=precision_of(dtype),
        preferred_element_type=jnp.float32,
    )
    if bias is not None:
        logits += bias
    seen = mask.materialise(query_blnh.shape[1]) if isinstance(mask, AttentionMask) else mask
    if seen is not None:
        logits = jnp.where(seen, logits, -1e30)
    weights = jax.nn.softmax(logits, axis=-1)
    weights = dropout(weights, dropout_rate, dropout_seeds, site, square)
    out = jnp.einsum(
        "bnqk,bknh->bqnh",
        weights.astype(dtype),
        value_blnh.astype(dtype),
        precision=precision_of(dtype),
        preferred_element_type=jnp.float32,
    )
    return out.astype(execution.activation_dtype)
