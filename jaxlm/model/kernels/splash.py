"""Attention on TPU by JAX's splash kernel, which does not store the weights and skips blocks outside a window.

XLA does not split a Pallas call over devices, so the kernel runs under `shard_map`: rows are split like the batch,
heads over the axis `tensor`. Shapes: as in `attention`.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from jaxlm.model.attention import AttentionMask
from jaxlm.model.execution import Execution

LANES = 128  # block sizes are multiples of it


def splash_attend(
    query_blnh: Array, key_blnh: Array, value_blnh: Array, mask: AttentionMask, execution: Execution, name: str
) -> Array:
    """Returns `attention.attend`, [B, L, N, H] in the activation dtype, for a mask without a prefix.

    Rows are padded to a multiple of 128 tokens. `name` is the name of the saved outputs for rematerialisation policies.
    """
    length, dtype = query_blnh.shape[1], jnp.dtype(execution.compute_dtype)
    padding = -length % LANES
    segment_ids = mask.segment_ids
    if segment_ids is None:
        segment_ids = jnp.zeros(query_blnh.shape[:2], jnp.int32)
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)), constant_values=-1)  # an id of its own

    def attend(query: Array, key: Array, value: Array, segment_ids: Array) -> Array:
        with jax.ensure_compile_time_eval():
            kernel = _kernel(query.shape[1], length + padding, mask.window, mask.causal, name, execution.interpret)
        return jax.vmap(kernel)(query, key, value, splash.SegmentIds(segment_ids, segment_ids))

    if execution.rows is not None:  # XLA does not split a Pallas call over devices
        rows = execution.rows.spec[0]
        heads = PartitionSpec(rows, "tensor", None, None)
        attend = jax.shard_map(
            attend,
            mesh=execution.rows.mesh,
            in_specs=(heads, heads, heads, PartitionSpec(rows, None)),
            out_specs=heads,
            check_vma=False,
        )

    def padded(x: Array) -> Array:
        return jnp.pad(x.astype(dtype), ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    scale = query_blnh.shape[-1] ** -0.5  # the kernel does not scale
    out = attend(padded(query_blnh * scale), padded(key_blnh), padded(value_blnh), segment_ids)
    return out.swapaxes(1, 2)[:, :length].astype(execution.activation_dtype)


@lru_cache(maxsize=64)
def _kernel(heads: int, length: int, window: int | None, causal: bool, name: str, interpret: bool):
    """Returns the kernel: query, key, value [N, L, H] and segment ids [L] to [N, L, H]; cached for all layers."""
    shape = (length, length)
    if window is not None:
        pattern: splash.Mask = splash.LocalMask(shape, (window // 2, 0 if causal else window // 2), 0)
    else:
        pattern = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    # With a window, small blocks skip more keys; without one, large blocks need fewer steps.
    most = 512 if window is None else LANES * max(1, -(-window // LANES))
    block = next(size for size in range(min(most, length), 0, -LANES) if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha(
        mask=splash.MultiHeadMask([pattern] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=name,
        interpret=interpret,
    )
