import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.heads import (
    MaskedLM,
    MaskedLMHead,
    abstract_params,
    encode,
    gather_positions,
    init_params,
    parameter_count,
    predict,
)
from tests.model.test_encoder import products


def architecture(**changes):
    config = default_config().model
    config.update(vocab_size=40, layers=1, width=16, heads=2, feed_forward_width=24)
    config.update(changes)
    return encoder_config(config)


def random_params(config, seed=1):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.standard_normal(leaf.shape) / 2, "float32"), abstract_params(config)
    )


def quickly(function):
    """jit without LLVM optimizations, which take most of the compile time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


TOKENS = np.array([[3, 14, 15, 9, 26, 5], [35, 8, 9, 7, 9, 3]], np.int32)


@pytest.mark.slow
def test_logits_at_chosen_positions_match_those_at_all_positions():
    config = architecture()
    model, params = MaskedLM(config), random_params(config)
    positions = jnp.array([[4, 0, 4], [5, 1, 0]])
    states = quickly(lambda: encode(model, params, TOKENS))()
    everywhere = predict(model, params, states)
    assert states.shape == (2, 6, 16)
    assert everywhere.shape == (2, 6, 40)
    chosen = predict(model, params, gather_positions(states, positions))
    for row in range(2):
        np.testing.assert_allclose(chosen[row], everywhere[row, positions[row]], atol=1e-5)
    np.testing.assert_allclose(quickly(model.apply)({"params": params}, TOKENS), everywhere, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"embedding_width": 12}, {"head_transform": False}], ids=str)
def test_tied_logits_are_products_with_the_token_table(changes):
    config = architecture(**changes)
    model, params = MaskedLM(config), random_params(config)
    table = np.asarray(params["encoder"]["embeddings"]["token"]["embedding"], np.float64)
    states = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    logits = np.asarray(predict(model, params, states), np.float64) - np.asarray(params["head"]["bias"])
    # Logits that are products with the table lie in the column space of the table.
    solved, *_ = np.linalg.lstsq(table, logits.T, rcond=None)
    np.testing.assert_allclose(table @ solved, logits.T, atol=1e-4)
    assert "kernel" not in params["head"]


def test_a_tied_table_has_gradients_from_both_uses():
    config = architecture()
    model, params = MaskedLM(config), random_params(config)

    def rows_that_learn(loss):
        grads = quickly(jax.grad(loss))(params)["encoder"]["embeddings"]["token"]["embedding"]
        return set(np.flatnonzero(np.abs(grads).sum(-1)))

    assert rows_that_learn(lambda p: encode(model, p, TOKENS).std()) == set(TOKENS.ravel().tolist())
    states = jnp.ones((1, 16))
    assert rows_that_learn(lambda p: jax.nn.log_softmax(predict(model, p, states))[0, 0]) == set(range(40))


def test_untied_logits_have_their_own_kernel():
    config = architecture(tied_output=False, embedding_width=12)
    params = random_params(config)
    assert params["head"]["kernel"].shape == (12, 40)
    states = jnp.ones((3, 16))
    before = predict(MaskedLM(config), params, states)
    params["encoder"]["embeddings"]["token"]["embedding"] *= 2
    np.testing.assert_array_equal(predict(MaskedLM(config), params, states), before)
    params["head"]["kernel"] *= 2
    assert (predict(MaskedLM(config), params, states) != before).any()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["bias", "norm", "transform"]),
        ({"head_transform": False}, ["bias"]),
        ({"head_transform": False, "embedding_width": 12}, ["bias", "transform"]),
        ({"output_bias": False}, ["norm", "transform"]),
        ({"tied_output": False, "output_bias": False, "head_transform": False}, ["kernel"]),
    ],
    ids=str,
)
def test_head_has_the_parts_of_its_settings(changes, expected):
    assert sorted(abstract_params(architecture(**changes))["head"]) == expected


def test_head_bias_applies_to_the_head_transform():
    for head_bias in (True, False):
        config = architecture(head_bias=head_bias, attention_bias=not head_bias)
        assert ("bias" in abstract_params(config)["head"]["transform"]) == head_bias


@pytest.mark.parametrize("execution", [Execution("bfloat16"), Execution("bfloat16", "bfloat16")], ids=str)
def test_logits_are_float32_whatever_the_execution(execution):
    config = architecture()
    params = random_params(config)["head"]
    states, table = jnp.ones((2, 16), execution.activation_dtype), jnp.ones((40, 16))
    assert MaskedLMHead(config, execution).apply({"params": params}, states, table).dtype == jnp.float32


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_not_rounded_before_the_loss(tied):
    """On GPUs and TPUs activations are bfloat16: a logit of 20 would be off by up to 0.06 nats."""
    config, execution = architecture(tied_output=tied), Execution("bfloat16", "bfloat16")
    params = random_params(config)["head"]
    states, table = jnp.ones((2, 16), jnp.bfloat16), jnp.ones((40, 16))
    head = lambda params: MaskedLMHead(config, execution).apply({"params": params}, states, table)  # noqa: E731
    program = jax.make_jaxpr(head)(params)
    *inner, last = products(program.jaxpr)
    assert [variable.aval.dtype for variable in last.invars] == [jnp.bfloat16] * 2  # at the speed of bfloat16
    assert last.outvars[0].aval.dtype == jnp.float32
    assert {equation.outvars[0].aval.dtype for equation in inner} == {jnp.dtype(jnp.bfloat16)}
    logits = np.asarray(head(params))
    assert (logits != logits.astype(jnp.bfloat16).astype(np.float32)).any()
    both = products(jax.make_jaxpr(jax.grad(lambda p: head(p).sum()))(params).jaxpr)
    operands = [variable.aval for equation in both for variable in equation.invars]
    wide = [operand for operand in operands if config.vocab_size in operand.shape]
    assert len(wide) > 2
    assert {operand.dtype for operand in wide} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
def test_output_bias_starts_at_the_log_of_frequencies():
    counts = np.array([0, 7, 91, 10**9] + [3] * 30)  # the table has six rows more than the tokenizer
    config = architecture(output_bias_from_frequencies=True)
    bias = np.asarray(init_params(config, 0, counts)["head"]["bias"], np.float64)
    smoothed = np.concatenate([counts + 1, np.ones(6)])
    np.testing.assert_allclose(bias, np.log(smoothed / smoothed.sum()), rtol=1e-5)
    assert np.exp(bias).sum() == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"output_bias_from_frequencies": True, "output_bias": False}], ids=str)
def test_counts_change_nothing_without_the_setting(changes):
    config = architecture(**changes)
    with_counts, without = init_params(config, 0, np.arange(40)), init_params(config, 0)
    jax.tree.map(np.testing.assert_array_equal, with_counts, without)


@pytest.mark.slow
def test_initial_weights_depend_only_on_the_seed():
    config = architecture()
    jax.tree.map(np.testing.assert_array_equal, init_params(config, 3), init_params(config, 3))
    first, second = init_params(config, 3), init_params(config, 4)
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(first) if path[-1].key == "kernel"]
    assert len({leaf.ravel()[0].item() for leaf in kernels}) == len(kernels), "two kernels start with the same numbers"
    assert (first["head"]["transform"]["kernel"] != second["head"]["transform"]["kernel"]).all()


def test_parameters_are_counted_without_allocating_them():
    config = architecture(vocab_size=50_000_000, width=1024)
    assert parameter_count(config) > 50_000_000 * 1024
    assert parameter_count(architecture()) == sum(leaf.size for leaf in jax.tree.leaves(init_params(architecture(), 0)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(abstract_params(config)))


def test_gathered_positions_and_their_gradients():
    states = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)), jnp.float32)
    positions = jnp.array([[0, 3, 3], [4, 4, 1]])
    gathered = gather_positions(states, positions)
    np.testing.assert_array_equal(gathered, np.stack([states[0, positions[0]], states[1, positions[1]]]))
    grad = jax.grad(lambda states: gather_positions(states, positions).sum())(states)
    np.testing.assert_array_equal(grad[..., 0], [[1, 0, 0, 2, 0], [0, 1, 0, 0, 2]])


@pytest.mark.parametrize("changes", [{}, {"tied_output": False, "head_transform": False}, {"output_bias": False}])
def test_the_logits_of_some_tokens_are_those_among_all(changes):
    config = architecture(**changes)
    model, params = MaskedLM(config), random_params(config)
    states = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, config.width)), "float32")
    tokens = np.array([7, 2, 31])
    some = quickly(lambda params, states: predict(model, params, states, tokens))(params, states)
    every = quickly(lambda params, states: predict(model, params, states))(params, states)
    np.testing.assert_allclose(some, every[..., tokens], rtol=1e-5, atol=1e-5)
