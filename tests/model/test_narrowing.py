"""Removing units: those without effect go first, and the outputs then stay what they were."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.init_from import Start
from jaxlm.model.config import encoder_config
from jaxlm.model.heads import MaskedLM, encode, init_params
from jaxlm.model.narrowing import keep_units

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
        start.check(encoder_of(16), "refuse")
    start.check(encoder_of(16), "refuse", "magnitude")
    with pytest.raises(UserError, match="feed_forward_width=32, but runs/wide has 24"):
        start.check(encoder_of(32), "refuse", "magnitude")
