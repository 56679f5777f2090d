import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.model.attention import AttentionMask, alibi_bias, attend
from jaxlm.model.execution import Execution
from jaxlm.model.kernels.dispatch import alibi_bias_for, mask_for
from jaxlm.model.kernels.local_attention import (
    LocalBlocks,
    attend_in_blocks,
    block_size,
    local_alibi_bias,
    local_blocks,
)

UNOPTIMIZED = {"xla_backend_optimization_level": 0}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def random_segments(seed, rows, length):
    """Documents of random lengths, then padding (segment 0), which may be a whole row."""
    random = np.random.default_rng(seed)
    table = np.zeros((rows, length), np.int32)
    for row in table:
        ends = np.sort(random.integers(0, length + 1, 4))
        for segment, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            row[first:last] = segment
    return jnp.asarray(table)


@functools.partial(jax.jit, static_argnames=("size", "rate", "alibi", "execution"), compiler_options=UNOPTIMIZED)
def results(arrays, mask, size=None, rate=0.0, alibi=False, execution=Execution()):  # noqa: B008
    """Returns output and gradients with attention over whole rows, or in blocks of `size`."""
    rows, length, heads, _ = arrays[0].shape
    seeds = jnp.arange(2 * rows, dtype=jnp.uint32).reshape(rows, 2)

    def run(arrays):
        query, key, value, _ = arrays
        if size is None:
            bias = alibi_bias(heads, length) if alibi else None
            return attend(query, key, value, mask, execution, bias, rate, seeds, 7)
        blocks = local_blocks(mask, length, size)
        bias = local_alibi_bias(heads, blocks) if alibi else None
        return attend_in_blocks(query, key, value, blocks, execution, bias, rate, seeds, 7)

    out, pull = jax.vjp(run, arrays)
    return out, pull(arrays[3].astype(out.dtype))[0][:3]


def close(first, second, tolerance):
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.slow
@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    length=st.integers(1, 40),
    window=st.integers(1, 50),
    spare=st.integers(0, 9),
    packed=st.booleans(),
    causal=st.booleans(),
    prefixed=st.booleans(),
    alibi=st.booleans(),
    rate=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 100),
)
def test_blocks_match_attention_over_whole_rows(length, window, spare, packed, causal, prefixed, alibi, rate, seed):
    """With any window, also longer than the row, and any block size of at least half of it, divisor or not."""
    arrays = [normal(seed + i, 2, length, 2, 4) for i in range(4)]
    prefix = jnp.array([length // 2, 1], jnp.int32) if prefixed else None
    mask = AttentionMask(random_segments(seed, 2, length) if packed else None, prefix, window, causal)
    size = max(window // 2 + spare, 1)
    close(results(arrays, mask, size, rate, alibi), results(arrays, mask, None, rate, alibi), 1e-5)


def test_modernbert_window_at_lengths_that_blocks_do_not_divide():
    for length in (500, 512):
        arrays = [normal(i, 1, length, 2, 8) for i in range(4)]
        mask = AttentionMask(random_segments(3, 1, length), None, 128)
        size = block_size(length, 128)
        assert size is not None
        close(results(arrays, mask, size, 0.1), results(arrays, mask, None, 0.1), 1e-5)


def test_dropout_in_blocks_drops_the_same_weights():
    """With values of 1, an output is the fraction of the weights that were kept."""
    query, key, weigh = (normal(i, 2, 37, 3, 4) for i in range(3))
    arrays, mask = [query, key, jnp.ones_like(query), weigh], AttentionMask(None, None, 8)
    square, blocks = results(arrays, mask, None, 0.5)[0], results(arrays, mask, 6, 0.5)[0]
    np.testing.assert_allclose(blocks, square, atol=1e-6)
    assert len(np.unique(np.asarray(square).round(4))) > 100


def test_blocks_in_bfloat16_match_up_to_rounding():
    arrays = [normal(i, 2, 50, 2, 16) for i in range(4)]
    mask, execution = AttentionMask(random_segments(1, 2, 50), None, 10), Execution("bfloat16", "bfloat16")
    blocks, square = (results(arrays, mask, size, execution=execution)[0] for size in (8, None))
    assert blocks.dtype == jnp.bfloat16
    np.testing.assert_allclose(blocks.astype(jnp.float32), square.astype(jnp.float32), atol=0.02)


def test_no_array_has_the_size_of_the_whole_attention_matrix():
    """Neither in the forward nor in the backward pass, nor for dropout."""
    length, execution = 1000, Execution()

    def loss(arrays, segment_ids, seeds):
        mask = mask_for(AttentionMask(segment_ids, None, 128), length, execution)
        bias = alibi_bias_for(mask, 2, length)
        return attend_in_blocks(*arrays, mask, execution, bias, 0.1, seeds).sum()

    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    ids, seeds = jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    shapes = list(all_shapes(jax.make_jaxpr(jax.grad(loss))([x] * 3, ids, seeds).jaxpr))
    assert max(np.prod(shape) for shape in shapes) == 2 * 1024 * 192  # heads, queries, visible keys


def all_shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from all_shapes(inner)


@pytest.mark.parametrize(
    ("length", "window", "expected"),
    [(128, 128, None), (256, 128, None), (383, 128, None), (384, 128, 64), (1024, 128, 64), (8192, 128, 64),
     (512, 512, None), (1536, 512, 256), (128, 6, None), (140, 6, 64)],
)  # fmt: skip
def test_rows_of_at_least_twice_a_block_s_keys_use_blocks(length, window, expected):
    assert block_size(length, window) == expected
    chosen = mask_for(AttentionMask(jnp.ones((1, length), jnp.int32), None, window), length, Execution())
    assert isinstance(chosen, LocalBlocks) == (expected is not None)
