"""Attention on GPU by a Pallas Triton kernel that does not store the matrix of weights (arXiv 2307.08691).

Each block of queries loops over the blocks from the first to the last that contain a visible key, so packed documents
and windows cost no more than they need. Dropout is computed in the kernel, and drops the same entries as
`attention.attend`.

Shapes: as in `attention`; S tokens per block, C blocks per row, L' length padded to a multiple of S.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from jaxlm.model.attention import ATTENDED, AttentionMask
from jaxlm.model.execution import Execution
from jaxlm.model.layers import dropout_hashes, dropout_kept_by

LOG2_E = 1.4426950408889634  # GPUs compute powers of 2 in hardware, not of e
HIDDEN = -1e30
BLOCK = 64  # fastest of 32, 64 and 128 on an H200, at every length and with a window
QUERY, KEY, VALUE = range(3)  # indices in the joined array


class FlashMask(NamedTuple):
    """The mask in the form that the kernel takes."""

    segment_ids: Array  # int32 [B or 1, L']
    first: Array  # int32 [B or 1, C], the first block that a block attends to
    last: Array  # int32 [B or 1, C], the block after the last one
    reach: int | None  # half the window
    causal: bool

    @property
    def block(self) -> int:
        return self.segment_ids.shape[1] // self.first.shape[1]


jax.tree_util.register_pytree_node(
    FlashMask,
    lambda mask: ((mask.segment_ids, mask.first, mask.last), (mask.reach, mask.causal)),
    lambda static, leaves: FlashMask(*leaves, *static),
)


def flash_mask(mask: AttentionMask, length: int, block: int | None = None) -> FlashMask:
    """Returns the mask of rows of `length` tokens; `block` is a power of two, at least 16.

    Raises ValueError for a mask with a prefix.
    """
    if mask.prefix is not None:
        raise ValueError("flash attention does not support a prefix; use xla")
    block = block or min(BLOCK, max(16, pl.next_power_of_2(length)))
    segment_ids = jnp.zeros((1, length), jnp.int32) if mask.segment_ids is None else mask.segment_ids
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, -length % block)), constant_values=-1)  # an id of its own
    count = segment_ids.shape[1] // block
    position = jnp.arange(count * block)
    visible = segment_ids[:, :, None] == segment_ids[:, None, :]
    reach = None if mask.window is None else mask.window // 2
    if reach is not None:
        visible &= jnp.abs(position[:, None] - position[None, :]) <= reach
    blocks = visible.reshape(-1, count, block, count, block).any((2, 4))
    first = jnp.argmax(blocks, axis=2).astype(jnp.int32)
    last = count - jnp.argmax(blocks[:, :, ::-1], axis=2).astype(jnp.int32)
    return FlashMask(segment_ids, first, last, reach, mask.causal)


class _Static(NamedTuple):
    """The static arguments of one attention."""

    reach: int | None
    causal: bool
    block: int
    dropout_rate: float
    interpret: bool


def flash_attend(
    joined_blpnh: Array,
    mask: FlashMask,
    execution: Execution,
    dropout_rate: float = 0.0,
    dropout_seeds: Array | None = None,
    site: int = 0,
) -> Array:
    """Returns `attention.attend`, [B, L, N, H] in the activation dtype, with operands in the compute dtype.

    `joined_blpnh` [B, L, 3, N, H] contains queries, keys and values, as one product computes them; its gradient has the
    same layout. The saved outputs are named ATTENDED for rematerialisation policies.
    """
    rows, length, _, heads, _ = joined_blpnh.shape
    rate = dropout_rate if dropout_seeds is not None else 0.0
    static = _Static(mask.reach, mask.causal, mask.block, rate, execution.interpret)
    padded = mask.segment_ids.shape[1]
    mask_arrays = [jnp.broadcast_to(x, (rows, x.shape[1])) for x in (mask.segment_ids, mask.first, mask.last)]
    if rate:
        assert dropout_seeds is not None
        of_rows, of_columns = dropout_hashes((rows, heads, padded, padded), dropout_seeds, site)
        mask_arrays += [of_rows[..., 0], of_columns[:, 0, 0]]  # [B, N, L'], [B, L']

    def attend(joined: Array, *mask_arrays: Array) -> Array:
        return _attend(joined, mask_arrays, static)

    if execution.rows is not None:  # XLA does not split a Pallas call over devices
        split = execution.rows.spec[0]
        mask_specs = [PartitionSpec(split, *["tensor"] * (x.ndim - 2), None) for x in mask_arrays]
        attend = jax.shard_map(
            attend,
            mesh=execution.rows.mesh,
            in_specs=(PartitionSpec(split, None, None, "tensor", None), *mask_specs),
            out_specs=PartitionSpec(split, None, "tensor", None),
            check_vma=False,
        )
    joined = joined_blpnh.astype(execution.compute_dtype)
    if padded > length:
        joined = jnp.pad(joined, ((0, 0), (0, padded - length), (0, 0), (0, 0), (0, 0)))
    return attend(joined, *mask_arrays)[:, :length].astype(execution.activation_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(joined, mask_arrays, static: _Static) -> Array:
    return _attend_forward(joined, mask_arrays, static)[0]


def _attend_forward(joined, mask_arrays, static):
    rows, length, _, heads, width = joined.shape
    block = pl.BlockSpec((None, static.block, None, width), lambda i, n, b: (b, i, n, 0))
    block_of_head = pl.BlockSpec((None, None, static.block), lambda i, n, b: (b, n, i))
    out, sums = pl.pallas_call(
        partial(_forward_kernel, static),
        grid=(length // static.block, heads, rows),
        in_specs=[*_specs_joined(length, width), *_mask_specs(static, length)],
        out_specs=[block, block_of_head],
        out_shape=[
            jax.ShapeDtypeStruct((rows, length, heads, width), joined.dtype),
            jax.ShapeDtypeStruct((rows, heads, length), jnp.float32),
        ],
        name="flash_forward",
        **_call(static),
    )(joined, joined, joined, *mask_arrays)
    out, sums = checkpoint_name(out, ATTENDED), checkpoint_name(sums, ATTENDED)
    return out, (joined, mask_arrays, out, sums)


def _attend_backward(static, saved, grad_out):
    joined, mask_arrays, out, sums = saved
    rows, length, _, heads, width = joined.shape
    grad_out = grad_out.astype(joined.dtype)
    # The sum of weights times their gradients over a row equals that of outputs times theirs.
    delta = (out.astype(jnp.float32) * grad_out.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    row = pl.BlockSpec((None, length, None, width), lambda i, n, b: (b, 0, n, 0))
    of_head = pl.BlockSpec((None, None, length), lambda i, n, b: (b, n, 0))
    grad = pl.pallas_call(
        partial(_backward_kernel, static),
        grid=(length // static.block, heads, rows),
        in_specs=[*_specs_joined(length, width), row, of_head, of_head, *_mask_specs(static, length)],
        out_specs=pl.BlockSpec((None, static.block, 3, None, width), lambda i, n, b: (b, i, 0, n, 0)),
        out_shape=jax.ShapeDtypeStruct(joined.shape, joined.dtype),
        name="flash_backward",
        **_call(static),
    )(joined, joined, joined, grad_out, sums, delta, *mask_arrays)
    return grad, None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward_kernel(static, query_ref, key_ref, value_ref, *refs):
    """Computes attention of one block of queries and one head: out [S, H], and log2 of the softmax's sums [S]."""
    *mask_refs, out_ref, sums_ref = refs
    blocks = _Blocks(static, mask_refs)
    index = pl.program_id(0)
    own = blocks.slice(index)
    query = query_ref[own, :]

    def attend_to(number, carry):
        out, top, total = carry
        other = blocks.slice(number)
        key, value = key_ref[other, :], value_ref[other, :]
        logits = _dot(query, key, 1, 1) * (LOG2_E * query.shape[-1] ** -0.5)
        logits = jnp.where(blocks.visible(own, other), logits, HIDDEN)
        new_top = jnp.maximum(top, logits.max(1))
        weights, shrink = jnp.exp2(logits - new_top[:, None]), jnp.exp2(top - new_top)
        total = total * shrink + weights.sum(1)
        weights = blocks.drop(weights, own, other, flipped=False)
        out = out * shrink[:, None] + _dot(weights.astype(value.dtype), value, 1, 0)
        return out, new_top, total

    size = static.block
    start = jnp.zeros(query.shape, jnp.float32), jnp.full(size, HIDDEN, jnp.float32), jnp.zeros(size, jnp.float32)
    out, top, total = blocks.loop(index, attend_to, start)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    sums_ref[...] = top + jnp.log2(total)


def _backward_kernel(static, query_ref, key_ref, value_ref, grad_out_ref, sums_ref, delta_ref, *refs):
    """Computes the gradients [S, H] of one block and one head: first as keys and values, then as queries."""
    *mask_refs, grad_ref = refs
    blocks = _Blocks(static, mask_refs)
    index = pl.program_id(0)
    own = blocks.slice(index)
    scale = query_ref.shape[-1] ** -0.5

    def as_keys(number, carry):
        grad_key, grad_value = carry
        other = blocks.slice(number)
        query, grad = query_ref[other, :], grad_out_ref[other, :]
        weights = blocks.weights(query, key, sums_ref[other], other, own)
        grad_value += _dot(blocks.drop(weights, other, own).astype(grad.dtype), grad, 1, 0)
        grad_weights = blocks.drop(_dot(value, grad, 1, 1), other, own)
        grad_logits = weights * (grad_weights - delta_ref[other][None, :])
        return grad_key + _dot(grad_logits.astype(query.dtype), query, 1, 0), grad_value

    key, value = key_ref[own, :], value_ref[own, :]
    zeros = jnp.zeros(key.shape, jnp.float32)
    grad_key, grad_value = blocks.loop(index, as_keys, (zeros, zeros))
    grad_ref[:, KEY, :] = (grad_key * scale).astype(grad_ref.dtype)
    grad_ref[:, VALUE, :] = grad_value.astype(grad_ref.dtype)

    def as_queries(number, grad_query):
        other = blocks.slice(number)
        key, value = key_ref[other, :], value_ref[other, :]
        weights = blocks.weights(query, key, sums, own, other)
        grad_weights = blocks.drop(_dot(value, grad, 1, 1), own, other)
        grad_logits = weights * (grad_weights - delta[None, :])
        return grad_query + _dot(grad_logits.astype(key.dtype), key, 0, 0)

    query, grad, sums, delta = query_ref[own, :], grad_out_ref[own, :], sums_ref[own], delta_ref[own]
    grad_query = blocks.loop(index, as_queries, zeros)
    grad_ref[:, QUERY, :] = (grad_query * scale).astype(grad_ref.dtype)


class _Blocks:
    """The mask and dropout between blocks of one row and head, inside a kernel."""

    def __init__(self, static: _Static, refs: list[Any]):
        self.static = static
        self.segments, self.first, self.last = refs[:3]
        self.hashes = refs[3:]

    def slice(self, number):
        """Returns the slice of a block's tokens."""
        return pl.ds(number * self.static.block, self.static.block)

    def loop(self, index, body, carry):
        """Runs body(number, carry) over the blocks that block `index` attends to."""
        if self.segments.shape[0] == self.static.block:
            return body(0, carry)
        return lax.fori_loop(self.first[index], self.last[index], body, carry)

    def visible(self, queries, keys, flipped: bool = False):
        """Returns bool [queries, keys] for two slices of tokens, or [keys, queries] if flipped."""
        of_queries = (lambda x: x[None, :]) if flipped else (lambda x: x[:, None])
        of_keys = (lambda x: x[:, None]) if flipped else (lambda x: x[None, :])
        visible = of_queries(self.segments[queries]) == of_keys(self.segments[keys])
        ahead = of_keys(keys.start + jnp.arange(keys.size)) - of_queries(queries.start + jnp.arange(queries.size))
        if self.static.reach is not None:
            visible &= jnp.abs(ahead) <= self.static.reach
        return visible & (ahead <= 0) if self.static.causal else visible

    def weights(self, query, key, sums, queries, keys):
        """Returns the weights [keys, queries] before dropout, recomputed from the softmax's sums of the queries."""
        logits = _dot(key, query, 1, 1) * (LOG2_E * query.shape[-1] ** -0.5)
        return jnp.where(self.visible(queries, keys, flipped=True), jnp.exp2(logits - sums[None, :]), 0.0)

    def drop(self, x, queries, keys, flipped: bool = True):
        """Returns x, with the axes of `visible`, after dropout."""
        rate = self.static.dropout_rate
        if not rate:
            return x
        of_rows, of_columns = self.hashes[0][queries], self.hashes[1][keys]
        hashes = of_columns[:, None] + of_rows[None, :] if flipped else of_rows[:, None] + of_columns[None, :]
        return jnp.where(dropout_kept_by(hashes, rate), x * (1 / (1 - rate)), 0.0)


def _dot(left, right, left_axis: int, right_axis: int):
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    return lax.dot_general(left, right, dimensions, precision, preferred_element_type=jnp.float32)


def _specs_joined(length: int, width: int) -> list[pl.BlockSpec]:
    """Returns the block specs of a program's queries, keys and values: those of the whole row, [L, H]."""
    shape = (None, length, None, None, width)
    return [pl.BlockSpec(shape, lambda i, n, b, part=part: (b, 0, part, n, 0)) for part in (QUERY, KEY, VALUE)]


def _mask_specs(static: _Static, length: int) -> list[pl.BlockSpec]:
    of_row = pl.BlockSpec((None, length), lambda i, n, b: (b, 0))
    of_blocks = pl.BlockSpec((None, length // static.block), lambda i, n, b: (b, 0))
    of_head = pl.BlockSpec((None, None, length), lambda i, n, b: (b, n, 0))
    return [of_row, of_blocks, of_blocks] + ([of_head, of_row] if static.dropout_rate else [])


def _call(static: _Static) -> dict[str, Any]:
    return {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=3), "interpret": static.interpret}
