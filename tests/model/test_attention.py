import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.model.attention import AttentionMask, alibi_bias, attend, positions_in_segments, rotary_table, rotate
from jaxlm.model.execution import Execution
from jaxlm.model.layers import dropout_kept

FLOAT32 = Execution()
LENGTH = 9


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@st.composite
def packed_rows(draw, rows=3, length=LENGTH):
    """Segment ids as the input pipeline makes them: 1, 2, 3... for pieces of documents, then 0 for padding."""
    table = []
    for _ in range(rows):
        pieces = draw(st.lists(st.integers(1, length), max_size=length))
        row = [segment for segment, size in enumerate(pieces, 1) for _ in range(size)][:length]
        table.append(row + [0] * (length - len(row)))
    return np.array(table, np.int32)


def sees(query, key, segments, prefix, window, causal):
    """Returns whether a query attends to a key, by the definition."""
    if segments is not None and segments[query] != segments[key]:
        return False
    if window is not None and abs(query - key) > window // 2:
        return False
    return not (causal and key > query and not (prefix is not None and key < prefix))


@settings(deadline=None, max_examples=60)
@given(
    st.none() | packed_rows(),
    st.none() | st.lists(st.integers(0, LENGTH), min_size=3, max_size=3),
    st.none() | st.integers(1, 2 * LENGTH + 2),
    st.booleans(),
)
def test_mask_matches_its_definition(segment_ids, prefix, window, causal):
    mask = AttentionMask(
        None if segment_ids is None else jnp.asarray(segment_ids),
        None if prefix is None else jnp.array(prefix, jnp.int32),
        window,
        causal,
    )
    matrix = mask.materialise(LENGTH)
    if segment_ids is None and window is None and not causal:
        assert matrix is None
        return
    assert matrix.dtype == bool
    assert matrix.ndim == 4
    matrix = np.broadcast_to(matrix, (3, 1, LENGTH, LENGTH))
    for row in range(3):
        segments, first = (None if what is None else what[row] for what in (segment_ids, prefix))
        expected = [
            [sees(query, key, segments, first, window, causal) for key in range(LENGTH)] for query in range(LENGTH)
        ]
        np.testing.assert_array_equal(matrix[row, 0], expected)
    assert matrix.any(-1).all(), "a token that sees nothing would get NaN"


def test_mask_is_a_valid_argument_of_a_jitted_function():
    segment_ids = jnp.array([[1, 1, 2, 0]])
    mask = AttentionMask(segment_ids, window=2, causal=True)
    jitted = jax.jit(lambda mask: mask.materialise(4))(mask)
    np.testing.assert_array_equal(jitted, mask.materialise(4))


@settings(deadline=None, max_examples=40)
@given(packed_rows())
def test_positions_restart_with_every_segment(segment_ids):
    expected = np.zeros_like(segment_ids)
    for row, ids in zip(expected, segment_ids, strict=True):
        for index in range(1, LENGTH):
            row[index] = row[index - 1] + 1 if ids[index] == ids[index - 1] else 0
    positions = positions_in_segments(jnp.asarray(segment_ids))
    assert positions.dtype == jnp.int32
    np.testing.assert_array_equal(positions, expected)


# Rotary positions


def test_rotation_is_multiplication_by_unit_complex_numbers():
    positions, width, base = np.array([[0, 1, 2, 500], [3, 3, 0, 8000]]), 8, 160_000.0
    x = normal(0, 2, 4, 3, width)
    turned = rotate(x, rotary_table(jnp.asarray(positions), width, base))
    pairs = np.asarray(x, np.float64)[..., : width // 2] + 1j * np.asarray(x, np.float64)[..., width // 2 :]
    angles = positions[:, :, None, None] / base ** (np.arange(width // 2) / (width // 2))
    pairs = pairs * np.exp(1j * angles)
    np.testing.assert_allclose(turned, np.concatenate([pairs.real, pairs.imag], -1), atol=2e-3)
    np.testing.assert_allclose(turned[:, :3], np.concatenate([pairs.real, pairs.imag], -1)[:, :3], atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400))
def test_products_of_rotated_vectors_depend_only_on_distance(first, second, shift):
    query, key = normal(0, 16), normal(1, 16)

    def product(i, j):
        table = rotary_table(jnp.array([[i, j]]), 16, 10_000.0)
        turned = rotate(jnp.stack([query, key])[None, :, None], table)[0, :, 0]
        return float(turned[0] @ turned[1])

    assert product(first, second) == pytest.approx(product(first + shift, second + shift), abs=1e-3)


@pytest.mark.parametrize(
    ("base", "components", "angles"),
    [
        (10_000.0, [5, 9, 10, 12], [1897.098876953125, 599.9153442382812, 449.8730163574219, 252.9822235107422]),
        (160_000.0, [6, 14, 23, 25], [845.89697265625, 42.29485321044922, 1.4542155265808105, 0.6876559853553772]),
    ],
)
def test_rotary_angles_at_position_8000_are_those_of_transformers(base, components, angles):
    """The angles are 8000 * (1 / base ** (torch.arange(0, 64, 2).float() / 64)) in torch."""
    cosines, sines = jax.jit(lambda positions: rotary_table(positions, 64, base))(jnp.array([[8000]]))
    np.testing.assert_allclose(cosines[0, 0, 0, np.array(components)], np.cos(np.array(angles)), atol=1e-6)
    np.testing.assert_allclose(sines[0, 0, 0, np.array(components)], np.sin(np.array(angles)), atol=1e-6)


def test_rotation_keeps_lengths_and_dtype():
    x = normal(0, 1, 5, 2, 6).astype(jnp.bfloat16)
    turned = rotate(x, rotary_table(jnp.arange(5)[None], 6, 10_000.0))
    assert turned.dtype == jnp.bfloat16
    norms = [np.linalg.norm(np.asarray(a.astype(jnp.float32)), axis=-1) for a in (x, turned)]
    np.testing.assert_allclose(*norms, rtol=2e-2)


# ALiBi


def slopes_of_the_paper(heads):
    """Press et al. 2022: a geometric sequence for powers of two; else that, and every other one of the next power."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start**power for power in range(1, heads + 1)]
    closest = 2 ** math.floor(math.log2(heads))
    return slopes_of_the_paper(closest) + slopes_of_the_paper(2 * closest)[0::2][: heads - closest]


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20, 25])
def test_alibi_slopes_match_the_paper(heads):
    bias = np.asarray(alibi_bias(heads, 7))
    assert bias.shape == (1, heads, 7, 7)
    distance = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    expected = -np.array(slopes_of_the_paper(heads))[:, None, None] * distance
    np.testing.assert_allclose(bias[0], expected, rtol=1e-6)


def test_alibi_slopes_of_twelve_heads():
    slopes = -np.asarray(alibi_bias(12, 2))[0, :, 0, 1]
    np.testing.assert_allclose(slopes[:8], [1 / 2**i for i in range(1, 9)], rtol=1e-6)
    np.testing.assert_allclose(slopes[8:], [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rtol=1e-6)


# The product


def inputs(seed, batch=3, length=LENGTH, heads=2, width=8):
    return [2 * normal(seed + i, batch, length, heads, width) for i in range(3)]


def plain_attention(query, key, value, seen, bias):
    logits = jnp.einsum("bqnh,bknh->bnqk", query, key) / query.shape[-1] ** 0.5 + bias
    weights = jnp.exp(logits - logits.max(-1, keepdims=True)) * seen
    return jnp.einsum("bnqk,bknh->bqnh", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(packed_rows(), st.none() | st.integers(1, 12), st.booleans(), st.booleans())
def test_attention_and_its_gradients_match_an_einsum_in_float64(segment_ids, window, causal, alibi):
    arrays, weigh = inputs(0), normal(9, 3, LENGTH, 2, 8)
    mask = AttentionMask(jnp.asarray(segment_ids), None, window, causal)
    bias = alibi_bias(2, LENGTH) if alibi else None

    def ours(arrays):
        out = attend(*arrays, mask, FLOAT32, bias)
        return (out * weigh).sum(), out

    grads, out = jax.grad(ours, has_aux=True)(arrays)
    with jax.enable_x64(True):
        to64 = lambda array: jnp.asarray(np.asarray(array, np.float64))  # noqa: E731
        seen = np.asarray(mask.materialise(LENGTH), np.float64)
        plain = lambda arrays: plain_attention(*arrays, seen, to64(bias) if alibi else 0.0)  # noqa: E731
        expected = plain([to64(array) for array in arrays])
        expected_grads = jax.grad(lambda a: (plain(a) * to64(weigh)).sum())([to64(array) for array in arrays])
    np.testing.assert_allclose(out, expected, atol=5e-6)
    for grad, want in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, want, atol=2e-5)


def test_masked_keys_have_zero_weight_even_if_other_logits_are_very_low():
    query, key, value = inputs(0)
    query, key, mask = -1e6 * jnp.abs(query), jnp.abs(key), AttentionMask(jnp.array([[1] * 4 + [2] * 5] * 3))
    before = attend(query, key, value, mask, FLOAT32)
    after = attend(query, key, value.at[:, 4:].add(1.0), mask, FLOAT32)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])


def test_a_materialised_mask_gives_the_same_bits():
    mask = AttentionMask(jnp.array([[1] * 4 + [2] * 5] * 3), None, 4)
    np.testing.assert_array_equal(
        attend(*inputs(0), mask, FLOAT32), attend(*inputs(0), mask.materialise(LENGTH), FLOAT32)
    )


@pytest.mark.parametrize("execution", [FLOAT32, Execution("bfloat16"), Execution("bfloat16", "bfloat16")], ids=str)
def test_attention_weights_sum_to_one(execution):
    query, key, _ = inputs(0)
    for mask in (None, AttentionMask(jnp.array([[1] * 3 + [2] * 2 + [0] * 4] * 3), None, 2)):
        out = attend(query, key, jnp.ones_like(query), mask, execution)
        assert out.dtype == execution.activation_dtype
        tolerance = 1e-6 if execution is FLOAT32 else 1e-2
        np.testing.assert_allclose(out.astype(jnp.float32), 1.0, atol=tolerance)


@pytest.mark.parametrize("execution", [FLOAT32, Execution("bfloat16"), Execution("bfloat16", "bfloat16")], ids=str)
def test_attention_over_a_row_of_padding_has_finite_outputs_and_gradients(execution):
    mask = AttentionMask(jnp.zeros((3, LENGTH), jnp.int32), None, 2)
    arrays = [1e4 * array for array in inputs(0)]
    grads = jax.grad(lambda a: attend(*a, mask, execution).astype(jnp.float32).sum())(arrays)
    assert np.isfinite(attend(*arrays, mask, execution).astype(jnp.float32)).all()
    assert all(np.isfinite(grad).all() for grad in grads)


def test_attention_dropout_keeps_the_expectation():
    rows = 3000
    arrays = [jnp.broadcast_to(array[:1], (rows, *array.shape[1:])) for array in inputs(0, 1, 5)]
    seeds = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, (rows, 2)), jnp.uint32)
    whole = attend(*[array[:1] for array in arrays], None, FLOAT32)[0]
    dropped = np.asarray(attend(*arrays, None, FLOAT32, dropout_rate=0.3, dropout_seeds=seeds, site=1))
    error = dropped.std(0) / math.sqrt(rows)
    assert (dropped.std(0) > 0.05).all()
    assert (np.abs(dropped.mean(0) - whole) < 5 * error).all()


def test_attention_dropout_applies_to_weights_not_to_values():
    """With values of 1, an output is the sum of the kept weights: it differs by token, not within a head."""
    query, key, value = inputs(0)
    seeds = jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)
    out = np.asarray(attend(query, key, jnp.ones_like(value), None, FLOAT32, dropout_rate=0.5, dropout_seeds=seeds))
    np.testing.assert_allclose(out, out[..., :1] * np.ones(8), rtol=1e-5)
    assert len(np.unique(out[..., 0].round(5))) > 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [(FLOAT32, 1e-5), (Execution("float32", transpose_gradients=True), 1e-5), (Execution("bfloat16"), 0.05),
     (Execution("bfloat16", transpose_gradients=True), 0.05), (Execution("bfloat16", "bfloat16"), 0.05)],
    ids=str,
)  # fmt: skip
def test_gradients_through_attention_dropout_match_the_definition(execution, tolerance):
    arrays, weigh = inputs(0), normal(9, 3, LENGTH, 2, 8)
    seeds = jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)
    mask = AttentionMask(jnp.array([[1] * 4 + [2] * 5] * 3))

    def plain(arrays):
        query, key, value = arrays
        logits = jnp.einsum("bqnh,bknh->bnqk", query, key) / query.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask.materialise(LENGTH), logits, -jnp.inf), axis=-1)
        weights = jnp.where(dropout_kept(weights.shape, 0.4, seeds, 7), weights / 0.6, 0)
        return (jnp.einsum("bnqk,bknh->bqnh", weights, value) * weigh).sum()

    def ours(arrays):
        out = attend(*arrays, mask, execution, None, 0.4, seeds, 7)
        return (out.astype(jnp.float32) * weigh).sum()

    for grad, want in zip(jax.jit(jax.grad(ours))(arrays), jax.grad(plain)(arrays), strict=True):
        assert np.abs(grad - want).max() < tolerance * np.abs(want).max()
