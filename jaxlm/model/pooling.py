"""Pools the states of each segment of a packed row into one vector."""

import jax.numpy as jnp
from jax import Array

from jaxlm.model.heads import gather_positions

POOLINGS = ("mean", "cls", "max", "lasttoken")


def pool_segments(states: Array, segment_ids: Array, slots: int, pooling: str) -> Array:
    """Returns one vector for each segment id from 1 to `slots`, [B, S, D]; zeros where a row has fewer segments.

    states are [B, L, D], segment_ids int32 [B, L]. "mean" averages over the segment's tokens, "max" takes the largest
    value of each dimension, "cls" takes the state of the segment's first token, "lasttoken" that of its last.
    """
    belongs = segment_ids[:, None] == jnp.arange(1, slots + 1)[:, None]  # [B, S, L]
    if pooling == "mean":
        weights = belongs / jnp.maximum(belongs.sum(-1, keepdims=True), 1)
        return jnp.einsum("bsl,bld->bsd", weights.astype(jnp.float32), states, precision="highest")
    if pooling == "cls":
        return gather_positions(states, belongs.argmax(-1)) * belongs.any(-1, keepdims=True)
    if pooling == "lasttoken":
        last = belongs.shape[-1] - 1 - belongs[..., ::-1].argmax(-1)
        return gather_positions(states, last) * belongs.any(-1, keepdims=True)
    vectors = jnp.where(belongs[..., None], states[:, None], -jnp.inf).max(2)
    return jnp.where(belongs.any(-1, keepdims=True), vectors, 0)
