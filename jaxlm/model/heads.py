"""What stands on the encoder: the masked-LM head, applied at the masked positions only."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.model.config import EncoderConfig
from jaxlm.model.encoder import Encoder
from jaxlm.model.execution import Execution
from jaxlm.model.layers import Dense, Norm, activate, kernel_init, multiply


class MaskedLMHead(nn.Module):
    """States [..., D] -> vocabulary logits float32 [..., V]; `table` [V, E] is the token table where they are tied."""

    config: EncoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        config = self.config
        if config.head_transform:
            x = Dense(config.embedding_width, config.head_bias, config, self.execution, name="transform")(x)
            x = Norm(config, name="norm")(activate(config.head_activation, x))
        elif config.embedding_width != config.width:
            x = Dense(config.embedding_width, False, config, self.execution, name="transform")(x)
        bias = None
        if config.output_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))
        if config.tied_output:
            logits = multiply(x, table, self.execution, bias, transposed=True, unrounded=True)
        else:
            shape = (config.embedding_width, config.vocab_size)
            kernel = self.param("kernel", kernel_init(config, "logits"), shape)
            logits = multiply(x, kernel, self.execution, bias, unrounded=True)
        return logits


class MaskedLM(nn.Module):
    """An encoder with its masked-LM head; `encode` and `predict` below apply them. Calling it gives all logits."""

    config: EncoderConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.execution)
        self.head = MaskedLMHead(self.config, self.execution)

    def encode(self, *args, **kwargs) -> Array:
        return self.encoder(*args, **kwargs)

    def predict(self, states: Array) -> Array:
        return self.head(states, self.encoder.embeddings.token.embedding)

    def __call__(self, tokens: Array, segment_ids: Array | None = None) -> Array:
        return self.predict(self.encoder(tokens, segment_ids))


def encode(model: MaskedLM, params: dict, tokens: Array, segment_ids: Array | None = None, **more: Any) -> Array:
    """Returns the encoder's states [B, L, D]; arguments as of `Encoder`."""
    return cast(Array, model.apply({"params": params}, tokens, segment_ids, method="encode", **more))


def predict(model: MaskedLM, params: dict, states: Array) -> Array:
    """Returns vocabulary logits float32 [..., V] of states [..., D]."""
    return cast(Array, model.apply({"params": params}, states, method="predict"))


class ReplacedTokenHead(nn.Module):
    """States [..., D] -> logits float32 [...] that a token was replaced: ELECTRA's discriminator (arXiv 2003.10555)."""

    config: EncoderConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        x = activate(config.activation, Dense(config.width, True, config, self.execution, name="transform")(x))
        return Dense(1, True, config, self.execution, name="score")(x)[..., 0].astype(jnp.float32)


def gather_positions(states: Array, positions: Array) -> Array:
    """Returns states [B, L, D] at positions int32 [B, P] -> [B, P, D]."""
    return jnp.take_along_axis(states, positions[:, :, None], axis=1)


def init_params(config: EncoderConfig, seed: int, counts: np.ndarray | None = None) -> dict:
    """Returns fresh parameters (float32, nested dicts); jit it to build them sharded.

    counts int64 [V], how often each token occurs in training, start the output bias at the log of their frequencies
    (plus one each) where `output_bias_from_frequencies` is set.
    """
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = MaskedLM(config).init(jax.random.key(seed), tokens)["params"]
    if config.output_bias_from_frequencies and config.output_bias and counts is not None:
        padded = np.ones(config.vocab_size)
        padded[: len(counts)] += counts
        params["head"]["bias"] = jnp.asarray(np.log(padded / padded.sum()), jnp.float32)
    return params


def abstract_params(config: EncoderConfig) -> dict:
    """Returns the tree of shapes and dtypes that `init_params` would make, without making it."""
    return jax.eval_shape(lambda: init_params(config, 0))


def abstract_discriminator(config: EncoderConfig) -> dict:
    """Returns the tree of shapes and dtypes of ELECTRA's discriminator."""
    states = jax.ShapeDtypeStruct((1, config.width), jnp.float32)
    return jax.eval_shape(ReplacedTokenHead(config).init, jax.random.key(0), states)["params"]


def parameter_count(config: EncoderConfig) -> int:
    """Returns how many parameters encoder and head have."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_params(config)))
