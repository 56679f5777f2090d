"""Heads on the encoder: vocabulary logits at chosen positions, and ELECTRA's replaced-token detection."""

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
    """Returns vocabulary logits float32 [..., V] of states [..., D]; `table` [V, E] is the kernel of a tied output.

    With `tokens` int32 [K], returns the logits [..., K] of these alone.
    """

    config: EncoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Array, table: Array, tokens: np.ndarray | None = None) -> Array:
        config = self.config
        if config.head_transform:
            x = Dense(config.embedding_width, config.head_bias, config, self.execution, name="transform")(x)
            x = Norm(config, name="norm")(activate(config.head_activation, x))
        elif config.embedding_width != config.width:
            x = Dense(config.embedding_width, False, config, self.execution, name="transform")(x)
        bias = None
        if config.output_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))
            bias = bias if tokens is None else bias[tokens]
        if config.tied_output:
            table = table if tokens is None else table[tokens]
            logits = multiply(x, table, self.execution, bias, transposed=True, unrounded=True)
        else:
            shape = (config.embedding_width, config.vocab_size)
            kernel = self.param("kernel", kernel_init(config, "logits"), shape)
            kernel = kernel if tokens is None else kernel[:, tokens]
            logits = multiply(x, kernel, self.execution, bias, unrounded=True)
        return logits


class MaskedLM(nn.Module):
    """An encoder with its masked-LM head, applied by the functions `encode` and `predict`. Returns logits [B, L, V]."""

    config: EncoderConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.execution)
        self.head = MaskedLMHead(self.config, self.execution)

    def encode(self, *args, **kwargs) -> Array:
        return self.encoder(*args, **kwargs)

    def predict(self, states: Array, tokens: np.ndarray | None = None) -> Array:
        return self.head(states, self.encoder.embeddings.token.embedding, tokens)

    def __call__(self, tokens: Array, segment_ids: Array | None = None) -> Array:
        return self.predict(self.encoder(tokens, segment_ids))


def encode(model: MaskedLM, params: dict, tokens: Array, segment_ids: Array | None = None, **more: Any) -> Array:
    """Returns the encoder's states [B, L, D] in the activation dtype; the arguments are those of `Encoder`."""
    return cast(Array, model.apply({"params": params}, tokens, segment_ids, method="encode", **more))


def predict(model: MaskedLM, params: dict, states: Array, tokens: np.ndarray | None = None) -> Array:
    """Returns vocabulary logits float32 [..., V] of states [..., D]; with tokens int32 [K], only theirs, [..., K]."""
    return cast(Array, model.apply({"params": params}, states, tokens, method="predict"))


class ReplacedTokenHead(nn.Module):
    """Returns logits float32 [...] of states [..., D] that a token was replaced (ELECTRA, arXiv 2003.10555)."""

    config: EncoderConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        x = activate(config.activation, Dense(config.width, True, config, self.execution, name="transform")(x))
        return Dense(1, True, config, self.execution, name="score")(x)[..., 0].astype(jnp.float32)


def gather_positions(states: Array, positions: Array) -> Array:
    """Returns the states [B, P, D] at positions int32 [B, P] of states [B, L, D]."""
    return jnp.take_along_axis(states, positions[:, :, None], axis=1)


def init_params(config: EncoderConfig, seed: int, counts: np.ndarray | None = None) -> dict:
    """Returns initial parameters, float32 in nested dicts; jit with output shardings creates them sharded.

    counts int64 [V] are the tokens' numbers of occurrences in the training text: with `output_bias_from_frequencies`,
    the output bias starts at the log of their frequencies, with 1 added to each count.
    """
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = MaskedLM(config).init(jax.random.key(seed), tokens)["params"]
    if config.output_bias_from_frequencies and config.output_bias and counts is not None:
        padded = np.ones(config.vocab_size)
        padded[: len(counts)] += counts
        params["head"]["bias"] = jnp.asarray(np.log(padded / padded.sum()), jnp.float32)
    return params


def abstract_params(config: EncoderConfig) -> dict:
    """Returns the shapes and dtypes of `init_params`, without computing them."""
    return jax.eval_shape(lambda: init_params(config, 0))


def abstract_discriminator(config: EncoderConfig) -> dict:
    """Returns the shapes and dtypes of the parameters of `ReplacedTokenHead`."""
    states = jax.ShapeDtypeStruct((1, config.width), jnp.float32)
    return jax.eval_shape(ReplacedTokenHead(config).init, jax.random.key(0), states)["params"]


def parameter_count(config: EncoderConfig) -> int:
    """Returns the number of parameters of encoder and head."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_params(config)))
