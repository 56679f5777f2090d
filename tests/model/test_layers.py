import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import default_config
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.layers import Dense, Norm, activate, column_sums, dropout, gelu, kernel_init, multiply, normalise


def architecture(**changes):
    config = default_config().model
    config.update(vocab_size=40, layers=6, width=16, heads=2, feed_forward_width=24)
    config.update(changes)
    return encoder_config(config)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def seeds_of(rows, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, (rows, 2)), jnp.uint32)


EXECUTIONS = [
    Execution("float32", "float32", False),
    Execution("float32", "float32", True),
    Execution("bfloat16", "float32", False),
    Execution("bfloat16", "float32", True),
    Execution("bfloat16", "bfloat16", False),
]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("execution", EXECUTIONS, ids=str)
def test_multiply_and_its_gradients_match_a_plain_product(execution, transposed, with_bias):
    x, kernel, weigh = normal(0, 3, 5, 24), normal(1, 24, 16), normal(2, 3, 5, 16)
    bias = normal(3, 16) if with_bias else None
    stored = kernel.T if transposed else kernel

    def ours(x, stored, bias):
        return (multiply(x, stored, execution, bias, transposed).astype(jnp.float32) * weigh).sum()

    y = multiply(x, stored, execution, bias, transposed)
    assert y.dtype == execution.activation_dtype
    grads = jax.grad(ours, (0, 1, 2) if with_bias else (0, 1))(x, stored, bias)
    assert all(grad.dtype == jnp.float32 for grad in grads)

    # Operands and incoming gradient are rounded to the compute dtype, then everything is in float64.
    cast = lambda array: np.asarray(array.astype(execution.compute_dtype), np.float64)  # noqa: E731
    expected = cast(x) @ cast(kernel) + (0 if bias is None else np.asarray(bias, np.float64))
    dy, flat_x = cast(weigh).reshape(-1, 16), cast(x).reshape(-1, 24)
    dkernel = flat_x.T @ dy
    wanted = [(dy @ cast(kernel).T).reshape(x.shape), dkernel.T if transposed else dkernel, dy.sum(0)]
    tolerance = 5e-2 if execution.activation_dtype == "bfloat16" else 2e-5
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance)
    for grad, want in zip(grads, wanted, strict=False):
        np.testing.assert_allclose(grad, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("execution", [EXECUTIONS[1], EXECUTIONS[3]], ids=str)
def test_multiply_gives_the_same_under_vmap_scan_and_remat(execution):
    x, kernels, bias = normal(0, 4, 6, 16), normal(1, 3, 16, 16) / 4, normal(2, 16)

    def one(x, kernel):
        return jnp.tanh(multiply(x, kernel, execution, bias))

    def looped(kernels):
        state = x
        for kernel in kernels:
            state = one(state, kernel)
        return state.sum()

    def scanned(kernels):
        return jax.lax.scan(lambda state, kernel: (jax.checkpoint(one)(state, kernel), None), x, kernels)[0].sum()

    def mapped(kernels):
        state = x
        for kernel in kernels:
            state = jax.vmap(one, (0, None))(state, kernel)
        return state.sum()

    expected = jax.jit(jax.value_and_grad(looped))(kernels)
    for other in (scanned, mapped):
        value, grad = jax.jit(jax.value_and_grad(other))(kernels)
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        np.testing.assert_allclose(grad, expected[1], atol=2e-2 if execution.compute_dtype == "bfloat16" else 1e-5)


def test_column_sums_are_sums_over_rows():
    x = normal(0, 300, 7)
    np.testing.assert_allclose(column_sums(x), np.asarray(x, np.float64).sum(0), rtol=1e-5, atol=1e-5)


def test_dense_has_a_bias_only_if_set():
    config = architecture()
    x = normal(0, 2, 3, 16)
    for use_bias in (True, False):
        params = Dense(8, use_bias, config, Execution()).init(jax.random.key(0), x)["params"]
        assert jax.tree.map(jnp.shape, params) == {"kernel": (16, 8)} | ({"bias": (8,)} if use_bias else {})


def reference_norm(x, scale, bias, epsilon, kind):
    if kind == "layer_norm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale + bias


@pytest.mark.parametrize(
    ("kind", "with_bias", "epsilon"),
    [("layer_norm", True, 1e-12), ("layer_norm", False, 0.1), ("rms_norm", False, 1e-5), ("rms_norm", False, 0.1)],
)
def test_norms_and_their_gradients_match_the_papers(kind, with_bias, epsilon):
    config = architecture(norm=kind, norm_bias=with_bias, norm_epsilon=epsilon)
    x, weigh = 3 * normal(0, 4, 5, 16) + 1, normal(1, 4, 5, 16)
    params = {"scale": 1 + normal(2, 16) / 2} | ({"bias": normal(3, 16)} if with_bias else {})
    assert jax.tree.structure(Norm(config).init(jax.random.key(0), x)["params"]) == jax.tree.structure(params)

    ours = jax.value_and_grad(lambda params, x: (Norm(config).apply({"params": params}, x) * weigh).sum(), (0, 1))
    value, grads = ours(params, x)
    with jax.enable_x64(True):
        to64 = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), tree)  # noqa: E731

        def plain(params, x):
            x = x - x.mean(-1, keepdims=True) if kind == "layer_norm" else x
            y = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
            return ((y * params["scale"] + params.get("bias", 0)) * to64(weigh)).sum()

        expected, expected_grads = jax.value_and_grad(plain, (0, 1))(to64(params), to64(x))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected_grads)


def test_norm_of_bfloat16_is_computed_in_float32():
    x = (normal(0, 2, 16) + 100).astype(jnp.bfloat16)  # a mean in bfloat16 would lose the deviations
    config = architecture(norm_epsilon=1e-5)
    params = Norm(config).init(jax.random.key(0), x)
    y = Norm(config).apply(params, x)
    assert y.dtype == jnp.bfloat16
    expected = reference_norm(np.asarray(x.astype(jnp.float32), np.float64), 1, 0, 1e-5, "layer_norm")
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=2e-2)


@pytest.mark.parametrize("centre", [True, False])
def test_norm_of_a_constant_row_is_finite_with_a_finite_gradient(centre):
    for row in (jnp.zeros((2, 8)), jnp.full((2, 8), 3.0)):
        value, grad = jax.value_and_grad(lambda x: normalise(x, 1e-12, centre).sum())(row)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


def test_activations_match_their_names():
    x = np.linspace(-6, 6, 201)
    exact = x * np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    silu = x / (1 + np.exp(-x))
    expected = {
        "gelu": exact, "geglu": exact, "gelu_tanh": tanh, "swiglu": silu,
        "relu": np.maximum(x, 0), "relu_squared": np.maximum(x, 0) ** 2,
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(activate(name, jnp.asarray(x, jnp.float32)), values, atol=2e-6, err_msg=name)
    assert np.abs(exact - tanh).max() > 1e-4


def test_gelu_gradient_is_cumulative_plus_x_times_density():
    x = np.linspace(-8, 8, 101)
    share = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    grad = jax.vmap(jax.grad(gelu))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(grad, share + x * density, atol=2e-6)


# Dropout


def test_dropout_without_seeds_or_with_rate_zero_is_the_identity():
    x = normal(0, 4, 6)
    assert dropout(x, 0.5, None, 1) is x
    assert dropout(x, 0.0, seeds_of(4), 1) is x


def test_dropout_bits_are_pinned():
    """A run resumed with another version must have the same bits."""
    seeds = jnp.array([[1, 2], [0xDEADBEEF, 0x12345678]], jnp.uint32)
    kept = np.asarray(dropout(jnp.ones((2, 4, 8)), 0.5, seeds, site=3) > 0).reshape(2, 32)
    assert [np.packbits(row).tobytes().hex() for row in kept] == ["e7eb6328", "b917ee2b"]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate):
    x = np.asarray(dropout(jnp.full((8, 300, 300), 2.0), rate, seeds_of(8), site=5))
    kept = x > 0
    deviation = math.sqrt(rate * (1 - rate) / kept[0].size)
    assert np.abs(kept.mean((1, 2)) - (1 - rate)).max() < 4.5 * deviation
    np.testing.assert_allclose(x[kept], 2 / (1 - rate), rtol=1e-6)


def test_dropout_gradient_flows_through_kept_entries():
    x, seeds = normal(0, 3, 40), seeds_of(3)
    grad = jax.grad(lambda x: dropout(x, 0.3, seeds, 1).sum())(x)
    np.testing.assert_array_equal(grad, dropout(jnp.ones_like(x), 0.3, seeds, 1))


def test_dropout_keeps_the_dtype():
    x = jnp.ones((2, 8), jnp.bfloat16)
    assert dropout(x, 0.1, seeds_of(2), 0).dtype == jnp.bfloat16


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(st.permutations(range(6)), st.sampled_from([1, 2, 3]), st.sampled_from([(5,), (2, 3, 4)]), st.integers(0, 200))
def test_a_row_has_the_same_bits_at_any_index_and_in_any_micro_batch(order, size, inner, site):
    seeds, order = seeds_of(6), jnp.array(order)
    whole = dropout(jnp.ones((6, *inner)), 0.5, seeds, site)
    parts = [
        dropout(jnp.ones((len(rows), *inner)), 0.5, seeds[rows], site)
        for rows in (order[start : start + size] for start in range(0, 6, size))
    ]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole[order])


def test_bits_of_the_corners_of_rectangles_are_independent():
    """Bits come from sums of a row's hash and a column's: the signs at a rectangle's corners must not multiply to more
    of one sign than coins' do."""
    signs = np.where(np.asarray(dropout(jnp.ones((2, 512, 512)), 0.5, seeds_of(2), 3)) > 0, 1.0, -1.0)
    for across, along in ((1, 1), (2, 1), (1, 64), (128, 256), (7, 3)):
        corners = signs[:, across:, along:] * signs[:, :-across, along:] * signs[:, across:, :-along]
        products = corners * signs[:, :-across, :-along]
        assert abs(products.mean()) < 4.5 / products.size**0.5 * 2  # rectangles share corners
    spectrum = np.linalg.svd(signs[0], compute_uv=False)  # structure would stand out of the noise's edge
    assert spectrum[0] < 1.1 * 2 * 512**0.5


def correlation(first, second):
    return abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1])


def kept_at(seeds, site, inner=(128, 128), rate=0.5):
    return np.asarray(dropout(jnp.ones((len(seeds), *inner)), rate, seeds, site) > 0)


def test_bits_of_different_sites_rows_and_seeds_are_uncorrelated():
    limit = 4.5 / 128  # deviations of a correlation of 128 x 128 coins
    neighbours = jnp.array([[7, 7], [7, 8], [8, 7], [7, 7 + 2**31]], jnp.uint32)  # seeds that differ in one bit or two
    sites = {site: kept_at(neighbours, site) for site in (0, 1, 2, 3, 4, 36)}
    fields = [field for rows in sites.values() for field in rows]
    for index, first in enumerate(fields):
        assert all(correlation(first, second) < limit for second in fields[:index])


def test_bits_of_neighbouring_positions_are_uncorrelated():
    bits = kept_at(seeds_of(1), 2, (512, 512))[0]
    limit = 4.5 / 512
    for axis in (0, 1):
        for distance in (1, 2, 3, 64, 128, 256):
            first, second = np.split(bits, [bits.shape[axis] - distance], axis)[0], np.split(bits, [distance], axis)[1]
            assert correlation(first, second) < limit


def test_each_position_is_dropped_at_the_rate_over_many_steps():
    kept = kept_at(seeds_of(4000), 1, (8, 8), rate=0.2).mean(0)
    assert np.abs(kept - 0.8).max() < 5 * math.sqrt(0.16 / 4000)


# Initial weights


@pytest.mark.parametrize(
    ("initialization", "inner", "residual", "logits"),
    [("normal", 1, 1, 1), ("depth_scaled", 1, 12**-0.5, 1), ("zero_output", 1, 0, 0)],
)
def test_kernels_have_the_initial_deviation_of_their_role(initialization, inner, residual, logits):
    config = architecture(initialization=initialization, initialization_std=0.05)
    # The standard deviation of a normal distribution truncated at two deviations.
    cut = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
    for role, share in (("inner", inner), ("residual", residual), ("logits", logits)):
        weights = np.asarray(kernel_init(config, role)(jax.random.key(0), (200, 300)))
        assert weights.std() == pytest.approx(0.05 * cut * share, rel=0.02, abs=1e-12)
        assert np.abs(weights).max() <= 0.05 * 2 * share
        assert abs(weights.mean()) < 0.001
