"""Attention by XLA: masks (`AttentionMask`), position encodings (rotary, ALiBi), and the product with its gradient.

Shapes: B batch, L sequence length, N heads, H head width.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from jaxlm.model.execution import Execution
from jaxlm.model.layers import dropout_kept, precision_of

ATTENDED = "attended"  # name of attention's outputs for rematerialisation policies


@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Which keys are visible to which queries; a kernel makes a matrix of it only if it needs one.

    segment_ids int32 [B, L]: tokens attend within their own segment (packed documents; padding is segment 0).
    window: tokens attend to half of it on each side. causal: tokens attend to no later token, except that the first
    `prefix` int32 [B] tokens of a row are visible to all.
    """

    segment_ids: Array | None = None
    prefix: Array | None = None
    window: int | None = None
    causal: bool = False

    def materialise(self, length: int) -> Array | None:
        """Returns bool [B or 1, 1, L, L], True where a query (row) attends to a key (column); None if everywhere."""
        query, key = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
        visible = None
        if self.causal:
            visible = (key <= query)[None]
            if self.prefix is not None:
                visible |= key[None] < self.prefix[:, None, None]
        if self.window is not None:
            near = (jnp.abs(query - key) <= self.window // 2)[None]
            visible = near if visible is None else visible & near
        if self.segment_ids is not None:
            same = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
            visible = same if visible is None else visible & same
        return None if visible is None else visible[:, None]


jax.tree_util.register_dataclass(AttentionMask, ["segment_ids", "prefix"], ["window", "causal"])


def positions_in_segments(segment_ids: Array) -> Array:
    """Returns position ids int32 [B, L], which start at 0 in each segment of segment_ids [B, L]."""
    index = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    starts = segment_ids != jnp.pad(segment_ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return index - lax.cummax(jnp.where(starts, index, 0), axis=1)


def rotary_table(positions: Array, head_width: int, base: float) -> tuple[Array, Array]:
    """Returns cosines and sines float32 [B, L, 1, H/2] of the rotary angles (arXiv 2104.09864) at positions [B, L]."""
    # With the roundings of Transformers, on the host: at position 8,000, a frequency that differs in its last bit turns
    # by another 0.0002, and the power functions of accelerators are less exact than that.
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    frequencies = np.float32(1) / (base ** exponents.astype(np.float64)).astype(np.float32)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_blnh: Array, table: tuple[Array, Array]) -> Array:
    """Returns x [B, L, N, H] rotated by position; component i pairs with i + H/2, as in Hugging Face checkpoints."""
    cos, sin = table
    first, second = jnp.split(x_blnh.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_blnh.dtype)


def alibi_bias(heads: int, length: int) -> Array:
    """Returns ALiBi's bias float32 [1, N, L, L]: minus slope times distance in both directions (arXiv 2108.12409)."""
    power = 2 ** (heads.bit_length() - 1)  # the largest power of two up to `heads`; other heads lie in between
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
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
) -> Array:
    """Returns softmax(query key / sqrt(H) + bias) value, [B, L, N, H] in the activation dtype.

    `mask` may be materialised already, so that layers share the matrix. Every token must attend to at least itself. The
    softmax is in float32. There may be more keys than queries if both are cut out of longer rows; `dropout_kept`
    describes the dropout seeds of this case.
    """
    visible = mask.materialise(query_blnh.shape[1]) if isinstance(mask, AttentionMask) else mask
    rate = dropout_rate if dropout_seeds is not None else 0.0
    product = _Product(execution.compute_dtype, execution.activation_dtype, execution.transpose_gradients, rate, site)
    states = (x.astype(execution.activation_dtype) for x in (query_blnh, key_blnh, value_blnh))
    return _attend(*states, visible, bias, dropout_seeds, product).astype(execution.activation_dtype)


class _Product(NamedTuple):
    """The static arguments of one attention, and its batched matrix products."""

    compute_dtype: str
    activation_dtype: str
    transpose_gradients: bool
    dropout_rate: float
    site: int

    def dot(self, left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
        """Returns the product [B, N, ...] that contracts one axis of each operand, accumulated in float32."""
        dimensions = (((left_axis,), (right_axis,)), ((0, 1), (0, 1)))
        precision = precision_of(left.dtype)
        left, right = self.in_order(left), self.in_order(right)
        return self.in_order(lax.dot_general(left, right, dimensions, precision, preferred_element_type=jnp.float32))

    def in_order(self, x: Array) -> Array:
        """Returns x with its last axis contiguous in memory, as XLA's fast CPU kernels require."""
        return with_layout_constraint(x, Layout(major_to_minor=(0, 1, 2, 3))) if self.transpose_gradients else x

    def dot_over_queries(self, left_bnqh: Array, right_bnqk: Array) -> Array:
        """Returns the product over the queries, [B, K, N, H]; transposes the narrow operand, which is cheaper."""
        if self.transpose_gradients:
            return self.dot(left_bnqh.swapaxes(2, 3), right_bnqk, 3, 2).transpose(0, 3, 1, 2)
        return _swap(self.dot(right_bnqk, left_bnqh, 2, 2))

    def drop(self, signed: Array) -> Array:
        """Returns the weights after dropout; a negative sign marks dropped weights."""
        return jnp.maximum(signed, 0) * (1 / (1 - self.dropout_rate)) if self.dropout_rate else signed


def _swap(x: Array) -> Array:
    """Returns x with axes 1 and 2 swapped: [B, L, N, H] to [B, N, L, H], and back."""
    return x.swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(query, key, value, visible, bias, seeds, product: _Product) -> Array:
    """Returns attention, float32 [B, L, N, H].

    The custom gradient gives the backward products operands of the compute dtype, and saves one array of weights.
    """
    return _attend_forward(query, key, value, visible, bias, seeds, product)[0]


def _attend_forward(query, key, value, visible, bias, seeds, product):
    dtype = jnp.dtype(product.compute_dtype)
    query, key, value = (_swap(x.astype(dtype)) for x in (query * query.shape[-1] ** -0.5, key, value))
    logits = product.dot(query, key, 3, 3)
    if bias is not None:
        logits += bias
    if visible is not None:
        logits = jnp.where(visible, logits, -1e30)
    weights = jax.nn.softmax(logits, axis=-1)
    if product.dropout_rate:
        kept = dropout_kept(weights.shape, product.dropout_rate, seeds, product.site)
        weights = jnp.where(kept, weights, -weights)
    signed = weights.astype(dtype)
    # Named here, because the backward pass uses this array: a name given outside would save a second one.
    out = checkpoint_name(_swap(product.dot(product.drop(signed).astype(dtype), value, 3, 2)), ATTENDED)
    return out, (query, key, value, out, signed)


def _attend_backward(product, saved, grad_out):
    query, key, value, out, signed = saved
    dtype = signed.dtype
    # The sum of weights times their gradients over a row equals that of outputs times theirs (arXiv 2205.14135).
    delta = _swap((out * grad_out).sum(-1, keepdims=True))
    grad_out = _swap(grad_out.astype(dtype))
    grad_weights = product.dot(grad_out, value, 3, 3)
    if product.dropout_rate:
        grad_weights = jnp.where(signed > 0, grad_weights * (1 / (1 - product.dropout_rate)), 0)
    grad_logits = (jnp.abs(signed) * (grad_weights - delta)).astype(dtype)
    grad_query = _swap(product.dot(grad_logits, key, 3, 2)) * query.shape[-1] ** -0.5
    grad_key = product.dot_over_queries(query, grad_logits)
    grad_value = product.dot_over_queries(grad_out, product.drop(signed).astype(dtype))
    grads = (grad.astype(product.activation_dtype) for grad in (grad_query, grad_key, grad_value))
    return *grads, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)
