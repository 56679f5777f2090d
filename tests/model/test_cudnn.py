"""cuDNN's kernel runs on GPUs only; here it is seen what is asked of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model import kernels
from jaxlm.model.attention import AttentionMask, attend
from jaxlm.model.config import Execution
from tests.model.test_local_attention import normal, random_segments

CUDNN = Execution("bfloat16", "bfloat16", attention="cudnn")


@pytest.mark.parametrize(("length", "window"), [(64, None), (400, 128), (200, 128)], ids=str)
def test_the_mask_that_cudnn_gets_is_that_of_the_rows(monkeypatch, length, window):
    """With JAX's own XLA implementation of the same call in its place."""
    implementations = []

    def stand_in(query, key, value, *, mask, implementation):
        implementations.append(implementation)
        return original(query, key, value, mask=mask, implementation="xla")

    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    arrays = [normal(i, 2, length, 2, 16).astype(jnp.bfloat16) for i in range(3)]
    mask = AttentionMask(random_segments(4, 2, length), None, window)
    ours = kernels.attend(*arrays, kernels.mask_for(mask, length, CUDNN), CUDNN)
    theirs = attend(*arrays, mask, CUDNN)
    assert implementations == ["cudnn"]
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=0.03)


def test_training_lowers_for_cuda_to_cudnn_s_kernels_forward_and_backward(monkeypatch):
    """JAX asks which cuDNN is there, and the devices whether they are Hopper: both are answered for them."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    x = jax.ShapeDtypeStruct((2, 64, 2, 64), jnp.bfloat16)

    def loss(query, key, value, segment_ids):
        mask = kernels.mask_for(AttentionMask(segment_ids), 64, CUDNN)
        return kernels.attend(query, key, value, mask, CUDNN).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, x, x, ids)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn$fmhaScaleBiasSoftmax" in text
    assert "cudnn$fmhaScaleBiasSoftmaxBackward" in text


def test_what_cudnn_cannot_do_is_refused_by_name():
    arrays, mask = [normal(0, 1, 8, 1, 8)] * 3, None
    with pytest.raises(ValueError, match="cudnn attention cannot do dropout"):
        kernels.attend(*arrays, mask, CUDNN, None, 0.1, jnp.ones((1, 2), jnp.uint32))
    with pytest.raises(ValueError, match="cudnn attention cannot do a bias"):
        kernels.attend(*arrays, mask, CUDNN, jnp.zeros((1, 1, 8, 8)))
