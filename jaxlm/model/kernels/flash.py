"""Attention on GPU by a kernel of our own that never writes the square of weights (FlashAttention-2, arXiv 2307.08691).

A block of queries meets the blocks from the first to the last that it sees anything of, so packed documents and windows
cost what they see. Dropout is within, and drops what it drops in `attention.attend`. Written in Pallas for Triton.

Shapes: as in `attention`, and S tokens in a block, C blocks of a row.
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

LOG2_E = 1.4426950408889634  # the chip has powers of two, not of e
UNSEEN = -1e30
BLOCK = 64  # of 32, 64 and 128 the fastest on an H200, at every length and with a window
QUERY, KEY, VALUE = range(3)  # in what is joined


class FlashMask(NamedTuple):
    """Who sees whom: segment ids int32 [B or 1, L'], and of each block the first block it sees and the one after the
    last, int32 [B or 1, C]; L' is a multiple of the block. `reach` is half the window, if there is one."""

    segment_ids: Array
    first: Array
    last: Array
    reach: int | None
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
    """Returns the mask of rows of `length` tokens in blocks of `block`, a power of two from 16. Raises ValueError."""
    if mask.prefix is not None:
        raise ValueError("flash attention cannot do a prefix; xla can")
    block = block or min(BLOCK, max(16, pl.next_power_of_2(length)))
    segment_ids = jnp.zeros((1, length), jnp.int32) if mask.segment_ids is None else mask.segment_ids
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, -length % block)), constant_values=-1)  # which nobody else has
    count = segment_ids.shape[1] // block
    position = jnp.arange(count * block)
    seen = segment_ids[:, :, None] == segment_ids[:, None, :]
    reach = None if mask.window is None else mask.window // 2
    if reach is not None:
        seen &= jnp.abs(position[:, None] - position[None, :]) <= reach
    blocks = seen.reshape(-1, count, block, count, block).any((2, 4))
    first = jnp.argmax(blocks, axis=2).astype(jnp.int32)
    last = count - jnp.argmax(blocks[:, :, ::-1], axis=2).astype(jnp.int32)
    return FlashMask(segment_ids, first, last, reach, mask.causal)


class _Static(NamedTuple):
    """What is static of one attention."""

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
    """Returns what `attention.attend` does, [B, L, N, H] in the activation dtype, with operands in the compute dtype.

    `joined_blpnh` [B, L, 3, N, H] holds queries, keys and values: as one product made them, and as it wants their
    gradient. What the backward pass needs is named ATTENDED, for policies of rematerialisation.
    """
    rows, length, _, heads, _ = joined_blpnh.shape
    rate = dropout_rate if dropout_seeds is not None else 0.0
    static = _Static(mask.reach, mask.causal, mask.block, rate, execution.interpret)
    padded = mask.segment_ids.shape[1]
    about = [jnp.broadcast_to(x, (rows, x.shape[1])) for x in (mask.segment_ids, mask.first, mask.last)]
    if rate:
        assert dropout_seeds is not None
        of_rows, of_columns = dropout_hashes((rows, heads, padded, padded), dropout_seeds, site)
        about += [of_rows[..., 0], of_columns[:, 0, 0]]  # [B, N, L'], [B, L']

    def attend(joined: Array, *about: Array) -> Array:
        return _attend(joined, about, static)

    if execution.rows is not None:  # XLA does not divide a Pallas call over devices
        split = execution.rows.spec[0]
        places = [PartitionSpec(split, *["tensor"] * (x.ndim - 2), None) for x in about]
        attend = jax.shard_map(
            attend,
            mesh=execution.rows.mesh,
            in_specs=(PartitionSpec(split, None, None, "tensor", None), *places),
            out_specs=PartitionSpec(split, None, "tensor", None),
            check_vma=False,
        )
    joined = joined_blpnh.astype(execution.compute_dtype)
    if padded > length:
        joined = jnp.pad(joined, ((0, 0), (0, padded - length), (0, 0), (0, 0), (0, 0)))
    return attend(joined, *about)[:, :length].astype(execution.activation_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(joined, about, static: _Static) -> Array:
    return _attend_forward(joined, about, static)[0]


def _attend_forward(joined, about, static):
    rows, length, _, heads, width = joined.shape
    block = pl.BlockSpec((None, static.block, None, width), lambda i, n, b: (b, i, n, 0))
    block_of_head = pl.BlockSpec((None, None, static.block), lambda i, n, b: (b, n, i))
    out, sums = pl.pallas_call(
        partial(_forward_kernel, static),
        grid=(length // static.block, heads, rows),
        in_specs=[*_specs_joined(length, width), *_specs_about(static, length)],
        out_specs=[block, block_of_head],
        out_shape=[
            jax.ShapeDtypeStruct((rows, length, heads, width), joined.dtype),
            jax.ShapeDtypeStruct((rows, heads, length), jnp.float32),
        ],
        name="flash_forward",
        **_call(static),
    )(joined, joined, joined, *about)
    out, sums = checkpoint_name(out, ATTENDED), checkpoint_name(sums, ATTENDED)
    return out, (joined, about, out, sums)


def _attend_backward(static, saved, grad_out):
    joined, about, out, sums = saved
    rows, length, _, heads, width = joined.shape
    grad_out = grad_out.astype(joined.dtype)
    # A row's sum of weights times their gradients is that of outputs times theirs.
    along = (out.astype(jnp.float32) * grad_out.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    row = pl.BlockSpec((None, length, None, width), lambda i, n, b: (b, 0, n, 0))
    of_head = pl.BlockSpec((None, None, length), lambda i, n, b: (b, n, 0))
    grad = pl.pallas_call(
        partial(_backward_kernel, static),
        grid=(length // static.block, heads, rows),
        in_specs=[*_specs_joined(length, width), row, of_head, of_head, *_specs_about(static, length)],
        out_specs=pl.BlockSpec((None, static.block, 3, None, width), lambda i, n, b: (b, i, 0, n, 0)),
        out_shape=jax.ShapeDtypeStruct(joined.shape, joined.dtype),
        name="flash_backward",
        **_call(static),
    )(joined, joined, joined, grad_out, sums, along, *about)
    return grad, None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward_kernel(static, query_ref, key_ref, value_ref, *refs):
    """Attention of one block of queries of one head: out [S, H], and log2 of the softmax's sums [S]."""
    *about_refs, out_ref, sums_ref = refs
    about = _About(static, about_refs)
    index = pl.program_id(0)
    here = about.slice(index)
    query = query_ref[here, :]

    def meet(number, carry):
        out, top, total = carry
        there = about.slice(number)
        key, value = key_ref[there, :], value_ref[there, :]
        logits = _dot(query, key, 1, 1) * (LOG2_E * query.shape[-1] ** -0.5)
        logits = jnp.where(about.seen(here, there), logits, UNSEEN)
        new_top = jnp.maximum(top, logits.max(1))
        weights, shrink = jnp.exp2(logits - new_top[:, None]), jnp.exp2(top - new_top)
        total = total * shrink + weights.sum(1)
        weights = about.drop(weights, here, there, flipped=False)
        out = out * shrink[:, None] + _dot(weights.astype(value.dtype), value, 1, 0)
        return out, new_top, total

    size = static.block
    start = jnp.zeros(query.shape, jnp.float32), jnp.full(size, UNSEEN, jnp.float32), jnp.zeros(size, jnp.float32)
    out, top, total = about.loop(index, meet, start)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    sums_ref[...] = top + jnp.log2(total)


def _backward_kernel(static, query_ref, key_ref, value_ref, grad_out_ref, sums_ref, along_ref, *refs):
    """Gradients [S, H] of one block of one head, first as keys and values, then as queries."""
    *about_refs, grad_ref = refs
    about = _About(static, about_refs)
    index = pl.program_id(0)
    here = about.slice(index)
    scale = query_ref.shape[-1] ** -0.5

    def as_keys(number, carry):
        grad_key, grad_value = carry
        there = about.slice(number)
        query, grad = query_ref[there, :], grad_out_ref[there, :]
        weights = about.weights(query, key, sums_ref[there], there, here)
        grad_value += _dot(about.drop(weights, there, here).astype(grad.dtype), grad, 1, 0)
        grad_weights = about.drop(_dot(value, grad, 1, 1), there, here)
        grad_logits = weights * (grad_weights - along_ref[there][None, :])
        return grad_key + _dot(grad_logits.astype(query.dtype), query, 1, 0), grad_value

    key, value = key_ref[here, :], value_ref[here, :]
    zeros = jnp.zeros(key.shape, jnp.float32)
    grad_key, grad_value = about.loop(index, as_keys, (zeros, zeros))
    grad_ref[:, KEY, :] = (grad_key * scale).astype(grad_ref.dtype)
    grad_ref[:, VALUE, :] = grad_value.astype(grad_ref.dtype)

    def as_queries(number, grad_query):
        there = about.slice(number)
        key, value = key_ref[there, :], value_ref[there, :]
        weights = about.weights(query, key, sums, here, there)
        grad_weights = about.drop(_dot(value, grad, 1, 1), here, there)
        grad_logits = weights * (grad_weights - along[None, :])
        return grad_query + _dot(grad_logits.astype(key.dtype), key, 0, 0)

    query, grad, sums, along = query_ref[here, :], grad_out_ref[here, :], sums_ref[here], along_ref[here]
    grad_query = about.loop(index, as_queries, zeros)
    grad_ref[:, QUERY, :] = (grad_query * scale).astype(grad_ref.dtype)


class _About:
    """In a kernel: who sees whom, and what is dropped, between blocks of one row and head."""

    def __init__(self, static: _Static, refs: list[Any]):
        self.static = static
        self.segments, self.first, self.last = refs[:3]
        self.hashes = refs[3:]

    def slice(self, number):
        """Returns the tokens of a block."""
        return pl.ds(number * self.static.block, self.static.block)

    def loop(self, index, body, carry):
        """Runs body(number, carry) for all blocks that block `index` sees."""
        if self.segments.shape[0] == self.static.block:
            return body(0, carry)
        return lax.fori_loop(self.first[index], self.last[index], body, carry)

    def seen(self, queries, keys, flipped: bool = False):
        """Returns bool [queries, keys] between two slices of tokens, or [keys, queries] if flipped."""
        across = (lambda x: x[None, :]) if flipped else (lambda x: x[:, None])
        along = (lambda x: x[:, None]) if flipped else (lambda x: x[None, :])
        seen = across(self.segments[queries]) == along(self.segments[keys])
        ahead = along(keys.start + jnp.arange(keys.size)) - across(queries.start + jnp.arange(queries.size))
        if self.static.reach is not None:
            seen &= jnp.abs(ahead) <= self.static.reach
        return seen & (ahead <= 0) if self.static.causal else seen

    def weights(self, query, key, sums, queries, keys):
        """Returns the weights again, keys by queries, before dropout, from the softmax's sums of the queries."""
        logits = _dot(key, query, 1, 1) * (LOG2_E * query.shape[-1] ** -0.5)
        return jnp.where(self.seen(queries, keys, flipped=True), jnp.exp2(logits - sums[None, :]), 0.0)

    def drop(self, x, queries, keys, flipped: bool = True):
        """Returns x, of queries and keys as in `seen`, after dropout."""
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
    """Returns how a program sees queries, keys and values of its head: of the whole row, [L, H]."""
    shape = (None, length, None, None, width)
    return [pl.BlockSpec(shape, lambda i, n, b, part=part: (b, 0, part, n, 0)) for part in (QUERY, KEY, VALUE)]


def _specs_about(static: _Static, length: int) -> list[pl.BlockSpec]:
    of_row = pl.BlockSpec((None, length), lambda i, n, b: (b, 0))
    of_blocks = pl.BlockSpec((None, length // static.block), lambda i, n, b: (b, 0))
    of_head = pl.BlockSpec((None, None, length), lambda i, n, b: (b, n, 0))
    return [of_row, of_blocks, of_blocks] + ([of_head, of_row] if static.dropout_rate else [])


def _call(static: _Static) -> dict[str, Any]:
    return {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=3), "interpret": static.interpret}
