"""Removing layers, heads and units: those without effect go first, and the outputs then stay what they were."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.huggingface.families import FAMILIES
from jaxlm.huggingface.refit import refit, refit_params
from jaxlm.init_from import Fitting, Start
from jaxlm.model.config import encoder_config
from jaxlm.model.flops import training_flops
from jaxlm.model.heads import MaskedLM, encode, init_params
from jaxlm.model.narrowing import keep_heads, keep_layers, keep_units, kept_layers

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def encoder_of(feed_forward_width, activation="gelu"):
    section = default_config().model
    section.update(layers=2, width=16, heads=2, feed_forward_width=feed_forward_width, activation=activation)
    return encoder_config(section, 40)


@pytest.mark.parametrize("activation", ["gelu", "geglu"])
def test_a_model_without_its_idle_units_has_the_same_outputs(activation):
    random = np.random.default_rng(0)
    params = jax.tree.map(np.array, jit(lambda: init_params(encoder_of(24, activation), 0))())
    for number in range(2):
        block = params["encoder"][f"layers_{number}"]["feed_forward"]
        block["up"].setdefault("bias", np.zeros(24, np.float32))[:] = random.normal(size=24)
        block["down"]["kernel"][random.permutation(24)[:8]] = 0
    narrow = keep_units(params, 16)
    tokens = random.integers(5, 40, (2, 8)).astype(np.int32)
    states = [
        np.asarray(jit(functools.partial(encode, MaskedLM(encoder_of(width, activation))))(some, tokens))
        for width, some in ((24, params), (16, narrow))
    ]
    np.testing.assert_allclose(*states, rtol=1e-5, atol=1e-5)
    shapes = jax.eval_shape(lambda: init_params(encoder_of(16, activation), 0))
    assert jax.tree.map(np.shape, narrow) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    smaller = keep_units(params, 15)
    assert not np.allclose(smaller["encoder"]["layers_0"]["feed_forward"]["down"]["kernel"], 0)


def test_a_narrower_model_is_refused_unless_the_setting_says_how():
    model = {"layers": 2, "width": 16, "heads": 2, "feed_forward_width": 24, "vocab_size": 40, "activation": "gelu"}
    start = Start("runs/wide", None, model, {}, None, None)
    with pytest.raises(
        UserError, match=r"feed_forward_width=16 is below the 24 of runs/wide; set model\.remove_units="
    ):
        start.check(encoder_of(16))
    start.check(encoder_of(16), Fitting(remove_units="magnitude"))
    with pytest.raises(UserError, match="feed_forward_width=32, but runs/wide has 24"):
        start.check(encoder_of(32), Fitting(remove_units="magnitude"))


def with_heads(heads, **changes):
    section = default_config().model
    section.update(layers=2, width=16, heads=heads, head_width=4, feed_forward_width=24, vocab_size=40)
    section.update({"activation": "gelu", "positions": "learned", "norm_position": "post"} | changes)
    return encoder_config(section, 40)


def random_params(config):
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    return jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def states_of(config, params, tokens):
    return np.asarray(jit(functools.partial(encode, MaskedLM(config)))(params, tokens))


@pytest.mark.parametrize("changes", [{}, {"positions": "rotary"}, {"attention_bias": False}])
def test_a_model_without_its_idle_heads_has_the_same_outputs(changes):
    """A head is idle if its values are the same for all tokens: their biases remain."""
    before, after = with_heads(4, **changes), with_heads(2, **changes)
    params, tokens = random_params(before), np.random.default_rng(1).integers(5, 40, (2, 8)).astype(np.int32)
    for number, idle in ((0, (1, 2)), (1, (0, 3))):
        for head in idle:
            block = params["encoder"][f"layers_{number}"]["attention"]
            block["value"]["kernel"][:, 4 * head : 4 * head + 4] = 0
    fewer = keep_heads(params, 2, 4)
    assert jax.tree.map(np.shape, fewer) == jax.tree.map(
        lambda leaf: leaf.shape, jax.eval_shape(lambda: init_params(after, 0))
    )
    expected = states_of(before, params, tokens)
    np.testing.assert_allclose(states_of(after, fewer, tokens), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(states_of(with_heads(1, **changes), keep_heads(params, 1, 4), tokens), expected, atol=1e-2)
    assert training_flops(after, 2, 8, 0) < training_flops(before, 2, 8, 0)


def test_the_head_that_can_write_least_is_removed_first():
    params = random_params(with_heads(4))["encoder"]["layers_0"]["attention"]
    for part, sizes in (("value", (1, 1e-3, 1, 1e3)), ("output", (1, 1e3, 1e-2, 1e-6))):
        kernel = params[part]["kernel"]
        heads = kernel.reshape(-1, 4, 4) if part == "value" else kernel.reshape(4, 4, -1)
        heads *= np.array(sizes, np.float32).reshape((1, 4, 1) if part == "value" else (4, 1, 1))
    kept = keep_heads(params, 2, 4)["query"]["kernel"]
    np.testing.assert_array_equal(kept, params["query"]["kernel"][:, :8])  # heads 0 and 1; 2 has 0.01, 3 has 0.001


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_removed_heads_are_exported_as_zeros_with_the_same_outputs(family):
    config = with_heads(3, token_types=2 if family == "bert" else 0)
    params, tokens = random_params(config), np.random.default_rng(1).integers(5, 40, (2, 8)).astype(np.int32)
    target = refit(config, FAMILIES[family], 0)
    assert (target.heads, target.head_width) == (4, 4)
    full = refit_params(params, config, target)
    np.testing.assert_allclose(states_of(target, full, tokens), states_of(config, params, tokens), rtol=1e-4, atol=1e-5)


def test_fewer_heads_are_refused_unless_the_setting_says_how_and_heads_are_alike():
    model = {"layers": 2, "width": 16, "heads": 4, "head_width": 4, "feed_forward_width": 24, "vocab_size": 40,
             "activation": "gelu", "positions": "learned", "norm_position": "post"}  # fmt: skip

    def check(start_settings, encoder, **settings):
        Start("runs/wide", None, model | start_settings, {}, None, None).check(encoder, Fitting(**settings))

    with pytest.raises(UserError, match=r"heads=2 is below the 4 of runs/wide; set model\.remove_heads=magnitude"):
        check({}, with_heads(2))
    check({}, with_heads(2), remove_heads="magnitude")
    with pytest.raises(UserError, match=r"model\.heads=8, but runs/wide has 4"):
        check({}, with_heads(8), remove_heads="magnitude")
    with pytest.raises(UserError, match=r"with model\.positions=alibi a head depends on its number"):
        check({"positions": "alibi"}, with_heads(2, positions="alibi"), remove_heads="magnitude")
    with pytest.raises(UserError, match=r"with model\.value_residual a head depends on its number"):
        check({"value_residual": 0.5}, with_heads(2, value_residual=0.5), remove_heads="magnitude")


def test_heads_need_not_fill_the_width_if_theirs_is_set():
    section = default_config().model
    section.update(width=16, heads=3)
    with pytest.raises(UserError, match=r"model\.heads=3 does not divide model\.width=16"):
        encoder_config(section, 40)
    assert with_heads(3).attention_width == 12
    assert encoder_of(24).head_width == 8


@pytest.mark.parametrize(("given", "layers", "remove", "kept"), [
    (12, 6, "spread", [0, 2, 4, 7, 9, 11]), (12, 6, "top", [0, 1, 2, 3, 4, 5]), (6, 3, "spread", [0, 2, 5]),
    (6, 1, "spread", [0]), (5, 4, "spread", [0, 1, 3, 4]),
])  # fmt: skip
def test_the_layers_that_remain_are_the_lowest_or_spread_over_the_model(given, layers, remove, kept):
    assert kept_layers(given, layers, remove) == kept
    encoder = {"token_embedding": 0, **{f"layers_{number}": number for number in range(given)}}
    expected = {"token_embedding": 0} | {f"layers_{new}": old for new, old in enumerate(kept)}
    assert keep_layers(encoder, kept) == expected


def test_a_shallower_model_is_refused_unless_the_setting_says_how_and_layers_are_alike():
    model = {"layers": 6, "width": 16, "heads": 2, "feed_forward_width": 24, "vocab_size": 40}

    def check(layers, pattern="g", **settings):
        section = default_config().model
        section.update(model | {"layers": layers, "layer_pattern": pattern})
        start = Start("runs/deep", None, model | {"layer_pattern": pattern}, {}, None, None)
        start.check(encoder_config(section, 40), Fitting(**settings))

    with pytest.raises(UserError, match=r"layers=3 is below the 6 of runs/deep; set model\.remove_layers to top or"):
        check(3)
    for remove in ("top", "spread"):
        check(3, remove_layers=remove)
    with pytest.raises(UserError, match=r"model\.layers=8, but runs/deep has 6"):
        check(8, remove_layers="top")
    check(3, "gl", remove_layers="top")
    with pytest.raises(UserError, match=r"remove_layers=spread would keep local layers where model\.layer_pattern=gl"):
        check(3, "gl", remove_layers="spread")
