"""An encoder that classifies the segments of packed rows, and the pooling of a segment's states into one vector."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxlm.model.config import EncoderConfig
from jaxlm.model.encoder import Encoder
from jaxlm.model.execution import Execution
from jaxlm.model.heads import gather_positions
from jaxlm.model.layers import Dense, dropout, kernel_init, multiply


def pool_segments(states: Array, segment_ids: Array, slots: int, pooling: str) -> Array:
    """Returns one vector for each segment id from 1 to `slots`, [B, S, D]; zeros where a row has fewer segments.

    states are [B, L, D], segment_ids int32 [B, L]. "mean" averages over the segment's tokens, "max" takes the largest
    value of each dimension, "cls" takes the state of the segment's first token.
    """
    belongs = segment_ids[:, None] == jnp.arange(1, slots + 1)[:, None]  # [B, S, L]
    if pooling == "mean":
        weights = belongs / jnp.maximum(belongs.sum(-1, keepdims=True), 1)
        return jnp.einsum("bsl,bld->bsd", weights.astype(jnp.float32), states, precision="highest")
    if pooling == "cls":
        return gather_positions(states, belongs.argmax(-1)) * belongs.any(-1, keepdims=True)
    vectors = jnp.where(belongs[..., None], states[:, None], -jnp.inf).max(2)
    return jnp.where(belongs.any(-1, keepdims=True), vectors, 0)


class ClassificationHead(nn.Module):
    """Pooled states [B, S, D] -> logits float32 [B, S, C]: dense layer, tanh, dropout and output, as in BERT."""

    config: EncoderConfig
    execution: Execution
    classes: int

    @nn.compact
    def __call__(self, x: Array, dropout_seeds: Array | None) -> Array:
        config = self.config
        x = jnp.tanh(Dense(config.width, True, config, self.execution, name="transform")(x))
        x = dropout(x, config.dropout, dropout_seeds, site=1 + 3 * config.layers)  # the site after the last layer's
        bias = self.param("bias", nn.initializers.zeros_init(), (self.classes,))
        kernel = self.param("kernel", kernel_init(config, "logits"), (config.width, self.classes))
        return multiply(x, kernel, self.execution, bias, unrounded=True)


class Classifier(nn.Module):
    """An encoder with a classification head over the pooled states of each segment.

    tokens, segment_ids and token_types are int32 [B, L]; returns logits float32 [B, S, C] of segments 1 to `slots`.
    """

    config: EncoderConfig
    execution: Execution
    classes: int
    pooling: str = "mean"

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.execution)
        self.head = ClassificationHead(self.config, self.execution, self.classes)

    def __call__(
        self, tokens: Array, segment_ids: Array, token_types: Array, slots: int, dropout_seeds: Array | None = None
    ) -> Array:
        types = token_types if self.config.token_types > 1 else None
        states = self.encoder(tokens, segment_ids, types, dropout_seeds)
        pooled = pool_segments(states.astype(jnp.float32), segment_ids, slots, self.pooling)
        return self.head(pooled, dropout_seeds)
