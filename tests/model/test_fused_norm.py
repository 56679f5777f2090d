"""The GPU's norm: its figures by Pallas' interpreter, beside XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.layers import Norm

FUSED = Execution(fused_norm=True, interpret=True)


@pytest.mark.parametrize(
    ("norm", "bias", "width"), [("layer_norm", True, 24), ("layer_norm", False, 32), ("rms_norm", False, 20)], ids=str
)
def test_outputs_and_gradients_match_xla(norm, bias, width):
    config = default_config()
    config.model.update(norm=norm, norm_bias=bias, width=width, heads=1, vocab_size=50)
    config = encoder_config(config.model)
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.normal(1, 2, (4, 16, width)), jnp.float32) for _ in range(2))
    params = Norm(config).init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(0, 1, leaf.shape), jnp.float32), params)

    def results(execution):
        out, pull = jax.vjp(lambda params, x: Norm(config, execution).apply(params, x), params, x)
        return out, pull(gradient)

    ours, theirs = jax.jit(results, static_argnums=0)(FUSED), results(Execution())
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
