"""An encoder with the head of a task, on each segment of packed rows or on each token, as in each family."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxlm.model.config import EncoderConfig
from jaxlm.model.encoder import Encoder
from jaxlm.model.execution import Execution
from jaxlm.model.layers import Dense, Norm, activate, dropout, kernel_init, multiply
from jaxlm.model.pooling import pool_segments


class HeadStyle(NamedTuple):
    """The layers of a head before its output."""

    transform: bool = True  # a dense layer and an activation
    activation: str = ""  # of the transform; "": that of the masked-LM head
    norm: bool = False  # after the activation
    first_dropout: bool = False  # before the transform
    dropout: bool = True  # before the output


# As the classes of these families in Transformers: ...ForSequenceClassification, and the others.
SEGMENT_HEADS = {
    "bert": HeadStyle(activation="tanh"),
    "roberta": HeadStyle(activation="tanh", first_dropout=True),
    "distilbert": HeadStyle(activation="relu"),
    "electra": HeadStyle(activation="gelu", first_dropout=True),
    "modernbert": HeadStyle(norm=True),
}
# RoBERTa and ELECTRA choose with other layers than they classify with: a pooler as BERT's, and a summary.
CHOICE_HEADS = SEGMENT_HEADS | {"roberta": HeadStyle(activation="tanh"), "electra": HeadStyle(activation="gelu")}
_PLAIN = HeadStyle(transform=False)
TOKEN_HEADS = {
    "bert": _PLAIN, "roberta": _PLAIN, "distilbert": _PLAIN, "electra": _PLAIN, "modernbert": HeadStyle(norm=True)
}  # fmt: skip
_BARE = HeadStyle(transform=False, dropout=False)
SPAN_HEADS = {
    "bert": _BARE, "roberta": _BARE, "distilbert": _PLAIN, "electra": _BARE, "modernbert": HeadStyle(norm=True)
}  # fmt: skip


def family_style(config: EncoderConfig) -> str:
    """Returns the family whose head suits an encoder, a key of these tables: the one it can be exported with."""
    if config.norm_position == "pre":
        return "modernbert"
    if config.position_offset:
        return "roberta"
    if config.embedding_width != config.width:
        return "electra"
    return "bert"


def default_pooling(style: str) -> str:
    """Returns how a family's head pools the states of a segment."""
    return "mean" if style == "modernbert" else "cls"


class TaskHead(nn.Module):
    """States [..., D] -> outputs float32 [..., C]."""

    config: EncoderConfig
    execution: Execution
    outputs: int
    style: HeadStyle
    rate: float  # of dropout

    @nn.compact
    def __call__(self, x: Array, dropout_seeds: Array | None) -> Array:
        config, style = self.config, self.style
        site = 1 + 3 * config.layers  # the site after the last layer's
        if style.first_dropout:
            x = dropout(x, self.rate, dropout_seeds, site + 1)
        if style.transform:
            bias = config.head_bias if style.norm else True
            x = Dense(config.width, bias, config, self.execution, name="transform")(x)
            x = jnp.tanh(x) if style.activation == "tanh" else activate(style.activation or config.head_activation, x)
        if style.norm:
            x = Norm(config, name="norm")(x)
        if style.dropout:
            x = dropout(x, self.rate, dropout_seeds, site)
        output_bias = self.param("bias", nn.initializers.zeros_init(), (self.outputs,))
        kernel = self.param("kernel", kernel_init(config, "logits"), (config.width, self.outputs))
        return multiply(x, kernel, self.execution, output_bias, unrounded=True)


class SegmentModel(nn.Module):
    """An encoder with a head on the pooled states of each segment.

    tokens, segment_ids and token_types are int32 [B, L]; returns float32 [B, S, C] of segments 1 to `slots`.
    """

    config: EncoderConfig
    execution: Execution
    outputs: int
    style: HeadStyle
    rate: float
    pooling: str

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.execution)
        self.head = TaskHead(self.config, self.execution, self.outputs, self.style, self.rate)

    def __call__(
        self, tokens: Array, segment_ids: Array, token_types: Array, slots: int, dropout_seeds: Array | None = None
    ) -> Array:
        return self.with_states(tokens, segment_ids, token_types, slots, dropout_seeds)[0]

    def with_states(
        self, tokens: Array, segment_ids: Array, token_types: Array, slots: int, dropout_seeds: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns the outputs, and the pooled states float32 [B, S, D] that the head makes them of."""
        types = token_types if self.config.token_types > 1 else None
        states = self.encoder(tokens, segment_ids, types, dropout_seeds)
        pooled = pool_segments(states.astype(jnp.float32), segment_ids, slots, self.pooling)
        return self.head(pooled, dropout_seeds), pooled


class EmbeddingModel(nn.Module):
    """An encoder whose states are pooled over each segment; arguments as of SegmentModel, returns float32 [B, S, D]."""

    config: EncoderConfig
    execution: Execution
    pooling: str

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.execution)

    def __call__(
        self, tokens: Array, segment_ids: Array, token_types: Array, slots: int, dropout_seeds: Array | None = None
    ) -> Array:
        types = token_types if self.config.token_types > 1 else None
        states = self.encoder(tokens, segment_ids, types, dropout_seeds)
        return pool_segments(states.astype(jnp.float32), segment_ids, slots, self.pooling)


class TokenModel(nn.Module):
    """An encoder with a head on the state of each token; arguments as of SegmentModel, returns float32 [B, L, C]."""

    config: EncoderConfig
    execution: Execution
    outputs: int
    style: HeadStyle
    rate: float

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.execution)
        self.head = TaskHead(self.config, self.execution, self.outputs, self.style, self.rate)

    def __call__(
        self, tokens: Array, segment_ids: Array, token_types: Array, dropout_seeds: Array | None = None
    ) -> Array:
        types = token_types if self.config.token_types > 1 else None
        return self.head(self.encoder(tokens, segment_ids, types, dropout_seeds), dropout_seeds)
