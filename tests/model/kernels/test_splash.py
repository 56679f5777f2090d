"""The TPU's kernel: its figures by Pallas' interpreter, its compilation by libtpu, which needs no TPU."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.config import default_config
from jaxlm.model.attention import AttentionMask
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.heads import MaskedLM, encode, init_params
from jaxlm.model.kernels.dispatch import attend, mask_for
from jaxlm.model.presets import PRESETS
from tests.model.kernels.test_local_attention import normal, random_segments

XLA, SPLASH = Execution(), Execution(attention="splash", interpret=True)


@functools.partial(jax.jit, static_argnames="execution")
def results(arrays, mask, execution):
    def run(arrays):
        return attend(*arrays[:3], mask_for(mask, arrays[0].shape[1], execution), execution)

    out, pull = jax.vjp(run, arrays)
    return out, pull(arrays[3])[0][:3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "window", "causal", "packed"),
    [(256, None, False, True), (200, 64, False, True), (60, None, True, False), (100, 6, True, True)],
    ids=str,
)
def test_outputs_and_gradients_match_xla(length, window, causal, packed):
    arrays = [normal(i, 2, length, 2, 64) for i in range(4)]
    mask = AttentionMask(random_segments(5, 2, length) if packed else None, None, window, causal)
    ours, theirs = results(arrays, mask, SPLASH), results(arrays, mask, XLA)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_an_encoder_with_splash_matches_one_with_xla():
    """With packed rows, a row of padding alone, rotary positions and layers of both kinds."""
    config = default_config()
    config.model.update(PRESETS["modernbert_base"])
    config.model.update(vocab_size=50, layers=2, width=32, heads=2, feed_forward_width=20, layer_pattern="gl", window=8)
    architecture = encoder_config(config.model)
    params = jax.tree.map(lambda leaf: 5 * leaf, init_params(architecture, 0))  # otherwise attention is nearly uniform
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, 40)), jnp.int32)
    segment_ids = random_segments(2, 3, 40).at[1].set(0)

    def states(execution, segment_ids):
        return jax.jit(lambda: encode(MaskedLM(architecture, execution), params, tokens, segment_ids))()

    theirs = states(XLA, segment_ids)
    np.testing.assert_allclose(states(SPLASH, segment_ids), theirs, atol=1e-4)
    assert jnp.abs(states(XLA, None) - theirs).max() > 0.1, "segments this small a matter would hide anything"


def test_splash_rejects_unsupported_arguments_by_name():
    arrays, seeds = [normal(0, 1, 8, 1, 8)] * 3, jnp.ones((1, 2), jnp.uint32)
    prefixed = AttentionMask(None, jnp.array([2], jnp.int32), None, causal=True)
    with pytest.raises(ValueError, match="splash attention does not support a prefix"):
        attend(*arrays, prefixed, SPLASH)
    with pytest.raises(ValueError, match="splash attention does not support a bias"):
        attend(*arrays, AttentionMask(), SPLASH, bias=jnp.zeros((1, 1, 8, 8)))
    with pytest.raises(ValueError, match="splash attention does not support dropout"):
        attend(*arrays, AttentionMask(), SPLASH, None, 0.1, seeds)
    attend(*arrays, AttentionMask(), SPLASH, None, 0.1, None)  # as in evaluation: nothing is dropped


@pytest.fixture(scope="module")
def tpus():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install libtpu, which needs no TPU to compile for one")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices


def compiled_for(devices, shape, length, window):
    """Returns the program of the gradient of attention over packed rows, compiled for a mesh of TPUs."""
    chips = np.array(devices[: np.prod(shape)]).reshape(shape)
    mesh = Mesh(chips, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    execution = Execution("bfloat16", "bfloat16", attention="splash", rows=rows if mesh.size > 1 else None)

    def loss(query, key, value, segment_ids):
        mask = mask_for(AttentionMask(segment_ids, None, window), length, execution)
        return attend(query, key, value, mask, execution).astype(jnp.float32).sum()

    heads = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    x = jax.ShapeDtypeStruct((4, length, 4, 64), jnp.bfloat16, sharding=heads)
    ids = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=rows)
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, ids).compile().as_text()


@pytest.mark.parametrize(("length", "window"), [(128, None), (512, 128), (1024, None), (1024, 128)])
def test_libtpu_compiles_forward_and_backward_of_packed_rows(tpus, length, window):
    program = compiled_for(tpus, (1, 1, 1), length, window)
    assert program.count('custom_call_target="tpu_custom_call"') == 3  # forward, queries' gradient, keys' and values'


def test_on_a_mesh_each_tpu_computes_its_rows_and_heads_without_communication(tpus):
    program = compiled_for(tpus, (2, 1, 2), 512, 128)
    assert program.count('custom_call_target="tpu_custom_call"') == 3
    assert not any(word in program for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"))
    assert "bf16[2,2,512,64]" in program
