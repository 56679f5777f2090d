"""The GPU's kernel: its figures by Pallas' interpreter, beside XLA's attention over the masked square."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.model.attention import AttentionMask
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.heads import MaskedLM, encode, init_params
from jaxlm.model.kernels.dispatch import attend, mask_for
from jaxlm.model.kernels.flash import flash_mask
from jaxlm.model.presets import PRESETS
from tests.model.kernels.test_local_attention import normal, random_segments

XLA, FLASH = Execution(), Execution(attention="flash", interpret=True)


@functools.partial(jax.jit, static_argnames=("execution", "rate", "block"))
def results(arrays, mask, execution, rate=0.0, block=None):
    """Returns output and gradients; `block` overrides the kernel's choice."""
    length, seeds = arrays[0].shape[1], jnp.array([[1, 2], [3, 4]], jnp.uint32)

    def run(arrays):
        made = flash_mask(mask, length, block) if block else mask_for(mask, length, execution)
        return attend(*arrays[:3], made, execution, None, rate, seeds, 7)

    out, pull = jax.vjp(run, arrays)
    return out, pull(arrays[3])[0][:3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "window", "causal", "packed", "rate", "block"),
    [
        (128, None, False, True, 0.0, None),  # one block
        (60, None, True, False, 0.3, None),
        (200, 64, False, True, 0.0, None),
        (160, None, False, True, 0.3, 16),  # many blocks, most of which attend to few
        (100, 6, True, True, 0.3, 16),
    ],
    ids=str,
)
def test_outputs_and_gradients_match_xla(length, window, causal, packed, rate, block):
    arrays = [normal(i, 2, length, 2, 16) for i in range(4)]
    mask = AttentionMask(random_segments(5, 2, length) if packed else None, None, window, causal)
    ours, theirs = results(arrays, mask, FLASH, rate, block), results(arrays, mask, XLA, rate)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_blocks_without_visible_pairs_are_skipped():
    ids = jnp.asarray(np.repeat([[1, 2, 3]], [20, 44, 32], axis=1), jnp.int32)  # borders at 20 and 64
    mask = flash_mask(AttentionMask(ids), 96, 16)
    assert mask.first.tolist() == [[0, 0, 1, 1, 4, 4]]
    assert mask.last.tolist() == [[2, 4, 4, 4, 6, 6]]
    local = flash_mask(AttentionMask(None, None, 16), 96, 16)  # 8 tokens to each side
    assert local.first.tolist() == [[0, 0, 1, 2, 3, 4]]
    assert local.last.tolist() == [[2, 3, 4, 5, 6, 6]]


@pytest.mark.slow
def test_an_encoder_with_flash_matches_one_with_xla():
    """With packed rows, a row of padding alone, dropout, rotary positions, layers of both kinds, values mixed."""
    config = default_config()
    config.model.update(PRESETS["modernbert_base"])
    config.model.update(vocab_size=50, layers=2, width=32, heads=2, feed_forward_width=20, layer_pattern="gl", window=8)
    config.model.update(dropout=0.2, attention_dropout=0.2, value_residual=0.5)
    architecture = encoder_config(config.model)
    params = jax.tree.map(lambda leaf: 5 * leaf, init_params(architecture, 0))  # otherwise attention is nearly uniform
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, 40)), jnp.int32)
    segment_ids = random_segments(2, 3, 40).at[1].set(0)
    seeds = jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)

    def states(execution, segment_ids, seeds=None):
        model = MaskedLM(architecture, execution)
        return jax.jit(lambda: encode(model, params, tokens, segment_ids, dropout_seeds=seeds))()

    for given in (None, seeds):
        theirs = states(XLA, segment_ids, given)
        np.testing.assert_allclose(states(FLASH, segment_ids, given), theirs, atol=1e-4)
    assert jnp.abs(states(XLA, None, seeds) - theirs).max() > 0.1, "segments this small a matter would hide anything"


def test_flash_rejects_unsupported_arguments_by_name():
    arrays = [normal(0, 1, 16, 1, 16)] * 3
    with pytest.raises(ValueError, match="flash attention does not support a prefix"):
        mask_for(AttentionMask(None, jnp.array([2], jnp.int32), None, causal=True), 16, FLASH)
    with pytest.raises(ValueError, match="flash attention does not support a bias"):
        attend(*arrays, mask_for(AttentionMask(), 16, FLASH), FLASH, bias=jnp.zeros((1, 1, 16, 16)))


def test_training_lowers_to_a_forward_and_a_backward_kernel_for_cuda():
    """Needs no GPU: Pallas generates the Triton programs."""
    ids, x = jax.ShapeDtypeStruct((2, 96), jnp.int32), jax.ShapeDtypeStruct((2, 96, 2, 64), jnp.bfloat16)
    execution = Execution("bfloat16", "bfloat16", attention="flash")

    def loss(query, key, value, segment_ids):
        mask = mask_for(AttentionMask(segment_ids, None, 32), 96, execution)
        seeds = jnp.ones((2, 2), jnp.uint32)
        return attend(query, key, value, mask, execution, None, 0.1, seeds, 1).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, x, x, ids)
    try:
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:  # from jax 0.11 on
        if "No supported GPU devices" not in str(error):
            raise
        pytest.skip("this jax lowers to CUDA only beside a GPU")
    assert text.count("triton_kernel_call") + text.count("__gpu$xla.gpu.triton") == 2
    assert "flash_forward" in text
    assert "flash_backward" in text
